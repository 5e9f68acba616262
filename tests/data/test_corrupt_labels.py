from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from acdc_cli.data.augment import WHOLE, Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.corrupted_labels import CorruptedLabels, corrupt
from acdc_cli.data.data_set import expected_set, open_set
from acdc_cli.data.image_loaders import corrupted_loader
from acdc_cli.data.order import spread
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import CorruptLabelsBlock, ImagesBlock

CPU = torch.device("cpu")
STORED = np.arange(50) % 3
NAMES = ("zero", "one", "two")


@st.composite
def asked(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int, int]:
    """Labels, positions in use, classes, count, seed."""
    classes = draw(st.integers(2, 12))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=60)))
    used = np.array(sorted(draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))))
    return labels, used, classes, draw(st.integers(1, len(used))), draw(st.integers(0, 2**63 - 1))


@given(asked())
def test_exactly_so_many_of_the_samples_in_use_get_another_class(arguments: Any) -> None:
    labels, used, classes, count, _ = arguments
    corrupted = corrupt(*arguments)
    assert len(corrupted.indices) == len(set(corrupted.indices.tolist())) == count
    assert set(corrupted.indices.tolist()) <= set(used.tolist())
    assert corrupted.indices.tolist() == sorted(corrupted.indices.tolist())
    assert np.array_equal(corrupted.true, labels[corrupted.indices])
    assert (corrupted.given != corrupted.true).all()
    assert ((corrupted.given >= 0) & (corrupted.given < classes)).all()


@given(asked())
def test_the_choice_is_that_of_a_slow_obvious_reference(arguments: Any) -> None:
    labels, used, classes, count, seed = arguments
    stream = np.random.Philox(key=np.array([seed, 2**64 - 1], np.uint64))
    drawn = {int(index): int(stream.random_raw()) for index in used}
    chosen = sorted(sorted(drawn, key=drawn.__getitem__)[:count])
    others = [[label for label in range(classes) if label != labels[index]] for index in chosen]
    expected = []
    for index, classes_left in zip(chosen, others, strict=True):
        # counted from the sample's own class on
        classes_left.sort(key=lambda label: (label - labels[index]) % classes)
        expected.append(classes_left[int(stream.random_raw()) % (classes - 1)])
    corrupted = corrupt(*arguments)
    assert corrupted.indices.tolist() == chosen
    assert corrupted.given.tolist() == expected


def test_a_choice_is_the_same_for_ever() -> None:
    corrupted = corrupt(np.arange(20) % 4, np.arange(20), 4, 5, seed=0)
    assert corrupted.csv() == "index,true,given\n7,3,0\n8,0,2\n9,1,3\n17,1,2\n19,3,0\n"


def test_all_other_classes_and_all_samples_are_equally_likely() -> None:
    corrupted = corrupt(np.full(18_000, 3), np.arange(18_000), 10, 9_000, seed=1)
    counts = np.bincount(corrupted.given, minlength=10)
    assert counts[3] == 0
    # 1000 each, with a standard deviation of 30
    assert abs(np.delete(counts, 3) - 1000).max() < 120
    halves = np.histogram(corrupted.indices, 9, (0, 18_000))[0]
    assert abs(halves - 1000).max() < 120


def test_a_label_drawn_from_all_classes_stays_true_one_time_in_as_many_as_there_are_classes() -> None:
    # P1's code: 1,000 of CIFAR-10's labels, of which about 100 stay true
    labels = np.arange(50_000) % 10
    corrupted = corrupt(labels, np.arange(50_000), 10, 1000, seed=0, among_all=True)
    assert len(set(corrupted.indices.tolist())) == 1000
    assert np.array_equal(corrupted.true, labels[corrupted.indices])
    # 100 each, with a standard deviation of 9.5
    assert abs(np.bincount(corrupted.given, minlength=10) - 100).max() < 40
    assert 70 < (corrupted.given == corrupted.true).sum() < 130
    assert np.array_equal(corrupted.indices, corrupt(labels, np.arange(50_000), 10, 1000, seed=0).indices)


def test_seeds_choose_other_samples_and_other_classes() -> None:
    one, other = (corrupt(np.zeros(1000, np.int64), np.arange(1000), 10, 100, seed) for seed in (0, 1))
    # of 100 out of 1000, ten are expected in common
    assert len(set(one.indices.tolist()) & set(other.indices.tolist())) < 30
    assert (one.given == other.given).sum() < 30


@pytest.mark.parametrize(
    ("count", "classes", "said"),
    [
        (51, 3, "data.corrupt_labels.count: expected at most the 50 training images, found 51"),
        (5, 1, "data.corrupt_labels: the set has one class only, so no label can be wrong; remove it"),
    ],
)
def test_what_cannot_be_corrupted_is_an_error(count: int, classes: int, said: str) -> None:
    with pytest.raises(DataError) as caught:
        corrupt(np.zeros(50, np.int64), np.arange(50), classes, count, 0)
    assert str(caught.value) == said


def test_a_plan_leaves_the_stored_labels_as_they_are() -> None:
    stored = np.arange(4)
    plan = Plan(2, lambda epoch: 8, Crop(WHOLE), relabelled=(np.array([2, 0]), np.array([9, 7])))
    assert plan.labels(stored).tolist() == [7, 1, 9, 3]
    assert stored.tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 training and 12 validation images of 32 x 32 random pixels, as .beton files."""
    folder = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 50), ("val", 12)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        write(
            Source("tiny", split, pixels, STORED[:count], NAMES, split),
            folder / f"{split}.beton",
            Settings(raw_share=1.0),
            workers=0,
        )
    return folder


def block(path: Path, count: int | None = 10, **values: Any) -> ImagesBlock:
    sizes = {"batch_size": 10, "resolution": 32, "val_resize": 32, "val_crop": 32, "augment": "pad_crop", "workers": 1}
    wrong = None if count is None else CorruptLabelsBlock(count=count, seed=7)
    return ImagesBlock(**{"name": "tiny", "path": str(path), "corrupt_labels": wrong} | sizes | values)


def wrong_labels(asked: ImagesBlock) -> CorruptedLabels:
    wrong = open_set(asked).corrupted_labels
    assert wrong is not None
    return wrong


def labels_seen(loader: Loader, epoch: int = 0) -> dict[int, int]:
    """By position in the data set."""
    with loader.epoch(epoch) as batches:
        return {
            int(index): int(label)
            for batch in batches
            for index, label in zip(batch.indices, batch.targets, strict=True)
        }


def train(opened: list[Loader], asked: ImagesBlock, shard: Shard = UNDIVIDED) -> Loader:
    opened.append(open_set(asked).train_loader(0, [32, 32], CPU, shard))
    return opened[-1]


def test_training_batches_carry_the_wrong_labels_and_no_others_change(
    kind: str, opened: list[Loader], root: Path
) -> None:
    asked = block(root, loader=kind)
    wrong = wrong_labels(asked)
    expected = dict(enumerate(STORED.tolist())) | dict(zip(wrong.indices.tolist(), wrong.given.tolist(), strict=True))
    loader = train(opened, asked)
    assert labels_seen(loader, 0) == labels_seen(loader, 1) == expected
    assert sum(expected[index] != STORED[index] for index in range(50)) == 10


def test_the_images_and_their_order_are_those_of_a_run_with_true_labels(
    kind: str, opened: list[Loader], root: Path
) -> None:
    with (
        train(opened, block(root, loader=kind)).epoch(1) as ours,
        train(opened, block(root, None, loader=kind)).epoch(1) as theirs,
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.indices, other.indices)


def test_each_of_several_processes_is_told_the_same_labels(kind: str, opened: list[Loader], root: Path) -> None:
    asked = block(root, loader=kind)
    parts = [labels_seen(train(opened, asked, Shard(rank, 2))) for rank in range(2)]
    assert parts[0] | parts[1] == labels_seen(train(opened, asked))
    assert len(parts[0]) == len(parts[1]) == 25


@pytest.mark.parametrize(("split", "count"), [("val", 12), ("train", 50)])
def test_whoever_validates_is_told_the_true_labels(
    kind: str, opened: list[Loader], root: Path, split: str, count: int
) -> None:
    opened.append(open_set(block(root, loader=kind)).val_loader(CPU, split))
    assert labels_seen(opened[-1]) == dict(enumerate(STORED[:count].tolist()))


def test_of_a_trial_only_samples_that_are_used_are_chosen(kind: str, opened: list[Loader], root: Path) -> None:
    asked = block(root, 20, images=20, loader=kind)
    wrong = wrong_labels(asked)
    # every 50/20th, all of them
    assert wrong.indices.tolist() == [5 * index // 2 for index in range(20)] == spread(20, 50).tolist()
    seen = labels_seen(train(opened, asked))
    assert seen == dict(zip(wrong.indices.tolist(), wrong.given.tolist(), strict=True))
    with pytest.raises(DataError, match="at most the 20 training images, found 21"):
        open_set(block(root, 21, images=20, loader=kind)).train_loader(0, [32, 32], CPU)
    with pytest.raises(DataError, match="found 21"):
        expected_set(block(root, 21, images=20, loader=kind))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_the_corrupted_samples_come_once_each_as_validation_shows_them_by_their_number(
    kind: str, opened: list[Loader], root: Path, batch_size: int
) -> None:
    asked = block(root, loader=kind, val_batch_size=batch_size)
    wrong = wrong_labels(asked)
    opened.append(corrupted_loader(open_set(asked), wrong, CPU))
    opened.append(open_set(asked).val_loader(CPU, "train"))
    probe, whole = opened
    assert (probe.samples, probe.steps) == (10, -(-10 // batch_size))
    with probe.epoch(0) as batches:
        given = [(batch.indices.clone(), batch.targets.clone(), batch.inputs.clone()) for batch in batches]
    with whole.epoch(0) as batches:
        stored = torch.cat([batch.inputs.clone() for batch in batches])
    indices, numbers, images = (torch.cat(each) for each in zip(*given, strict=True))
    assert indices.tolist() == wrong.indices.tolist()
    assert numbers.tolist() == list(range(10))
    assert torch.equal(images, stored[indices])


def test_several_processes_share_the_corrupted_samples(kind: str, opened: list[Loader], root: Path) -> None:
    asked = block(root, loader=kind, val_batch_size=4)
    wrong = wrong_labels(asked)
    opened += [corrupted_loader(open_set(asked), wrong, CPU, Shard(rank, 2)) for rank in range(2)]
    # of the batches of 4, 4 and 2 the first and the last are the first process's
    seen = [labels_seen(loader) for loader in opened]
    assert sorted(len(part) for part in seen) == [4, 6]
    assert seen[0] | seen[1] == {int(index): number for number, index in enumerate(wrong.indices)}


def test_folders_and_worker_processes_give_the_same_wrong_labels(
    opened: list[Loader], root: Path, tmp_path: Path
) -> None:
    for index, label in enumerate(sorted(STORED.tolist())):
        folder = tmp_path / "train" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (5 * index, 0, 0)).save(folder / f"{index:02d}.png")
    asked = block(tmp_path, loader="torch", workers=1)
    wrong = wrong_labels(asked)
    names = sorted(NAMES)
    assert wrong.true.tolist() == [names.index(Path(path).parent.name) for path in _paths(tmp_path, wrong)]
    assert labels_seen(train(opened, asked)) == labels_seen(train(opened, block(tmp_path, loader="torch", workers=0)))
    opened.append(corrupted_loader(open_set(asked), wrong, CPU))
    with opened[-1].epoch(0) as batches:
        shown = torch.cat([batch.inputs[:, 0, 0, 0] for batch in batches])
    reds = [5 * int(path.stem) for path in _paths(tmp_path, wrong)]
    assert shown.tolist() == reds


def _paths(root: Path, wrong: CorruptedLabels) -> list[Path]:
    """Of the corrupted samples, in torchvision's order of the folder."""
    paths = sorted(root.rglob("*.png"))
    return [paths[index] for index in wrong.indices]


def test_the_data_set_is_the_same_with_wrong_labels(root: Path) -> None:
    assert open_set(block(root)).facts() == open_set(block(root, None)).facts()
