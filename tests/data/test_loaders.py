from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from acdc_cli.data import image_loaders
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import expected_set, kind_of, open_set
from acdc_cli.data.resident import ResidentLoader
from acdc_cli.data.shard import Shard
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import ImagesBlock

CPU = torch.device("cpu")
NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 training and 23 validation images of 32 x 32 random pixels, as .beton files."""
    folder = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 50), ("val", 23)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        source = Source("tiny", split, pixels, np.arange(count) % 3, NAMES, split)
        write(source, folder / f"{split}.beton", Settings(raw_share=1.0), workers=0)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """train/ and val/ with two classes of three and of two images."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40, 30), (80 * index, 10, 20)).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


@pytest.fixture
def without_ffcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acdc_cli.data.ffcv", None)
    image_loaders._say_once.cache_clear()


def _block(path: Path | None, **values: Any) -> ImagesBlock:
    sizes = {"batch_size": 8, "resolution": 32, "val_resize": 32, "val_crop": 32, "augment": "pad_crop", "workers": 1}
    return ImagesBlock(**{"name": "tiny", "path": None if path is None else str(path)} | sizes | values)


def _train(opened: list[Loader], block: ImagesBlock, sizes: Sequence[int] = [32] * 10) -> Loader:
    opened.append(open_set(block).train_loader(0, sizes, CPU))
    return opened[-1]


def _val(opened: list[Loader], block: ImagesBlock, split: str = "val") -> Loader:
    opened.append(open_set(block).val_loader(CPU, split))
    return opened[-1]


def test_a_written_set_is_described_by_its_manifests(root: Path) -> None:
    data = open_set(_block(root))
    fingerprint = data.fingerprint
    assert data.facts() == {
        "name": "tiny",
        "path": str(root),
        "classes": 3,
        "class_names": NAMES,
        "train": 50,
        "val": 23,
        "fingerprint": fingerprint,
    }
    assert set(fingerprint) == {"train", "val"}
    assert len(set(fingerprint.values())) == 2


def test_image_folders_are_a_set_as_they_are(folders: Path) -> None:
    data = open_set(_block(folders))
    assert (data.classes, data.class_names, data.stored("train"), data.stored("val")) == (2, ("cat", "dog"), 6, 4)
    assert set(data.fingerprint) == {"train", "val"}


def test_a_set_that_needs_no_source_is_made_by_a_command_without_one(in_tmp: Path) -> None:
    with pytest.raises(DataError, match="`acdc data write demo`"):
        open_set(_block(None, name="demo"))


def test_a_split_that_is_not_there_is_missed_when_it_is_asked_for(folders: Path) -> None:
    (folders / "train").rename(folders / "elsewhere")
    assert open_set(_block(folders)).stored("train") == 0
    with pytest.raises(DataError, match="the data set tiny has no train"):
        open_set(_block(folders)).train_loader(0, [32], CPU)


def test_the_path_defaults_to_the_sets_name_below_data(in_tmp: Path, folders: Path) -> None:
    (in_tmp / "data").mkdir()
    (folders / "train").rename(in_tmp / "train")
    (in_tmp / "data" / "pets").symlink_to(folders)
    assert open_set(_block(None, name="pets")).stored("val") == 4


def test_a_damaged_file_is_refused_when_the_set_is_opened(root: Path, tmp_path: Path) -> None:
    for file in root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    beton = tmp_path / "val.beton"
    beton.write_bytes(beton.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"val\.beton"):
        open_set(_block(tmp_path))


def test_auto_takes_ffcv_for_beton_files(ffcv: ModuleType, opened: list[Loader], root: Path) -> None:
    resized = _block(root, augment="random_resized_crop")
    assert _train(opened, resized).kind == "ffcv"
    assert _train(opened, resized.model_copy(update={"loader": "torch"})).kind == "torch"


def test_auto_keeps_small_raw_sets_on_the_device_and_ffcv_may_still_be_asked_for(
    ffcv: ModuleType, opened: list[Loader], root: Path
) -> None:
    assert isinstance(_train(opened, _block(root)), ResidentLoader)
    assert isinstance(_val(opened, _block(root)), ResidentLoader)
    assert isinstance(_train(opened, _block(root, loader="torch")), ResidentLoader)
    assert isinstance(_train(opened, _block(root, loader="ffcv")), ffcv.FFCVLoader)


def test_jpegs_of_one_size_lie_on_the_device_only_where_ffcv_does_not_decode_them(
    ffcv: ModuleType, opened: list[Loader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    source = Source("tiny", "train", pixels, np.arange(12) % 3, NAMES, "train")
    write(source, tmp_path / "train.beton", Settings(raw_share=0.5), workers=0)
    assert isinstance(_train(opened, _block(tmp_path)), ffcv.FFCVLoader)
    assert isinstance(_train(opened, _block(tmp_path, loader="torch")), ResidentLoader)
    monkeypatch.setitem(sys.modules, "acdc_cli.data.ffcv", None)
    assert isinstance(_train(opened, _block(tmp_path)), ResidentLoader)


def test_a_set_whose_resolution_becomes_one_that_needs_resizing_does_not_stay_on_the_device(
    opened: list[Loader], root: Path
) -> None:
    block = _block(root, loader="torch", augment="none")
    loader = _train(opened, block, [32, 24])
    with loader.epoch(1) as batches:
        assert next(batches).inputs.shape[2:] == (24, 24)
    assert not isinstance(loader, ResidentLoader)
    assert isinstance(_train(opened, block, [32]), ResidentLoader)


def test_auto_takes_torchvision_for_folders_and_says_why(
    opened: list[Loader], folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(opened, _block(folders, batch_size=2)).kind == "torch"
    assert "holds images" in capsys.readouterr().err


def test_bicubic_validation_images_are_resized_by_torchvision(
    opened: list[Loader], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_loaders._say_once.cache_clear()
    bicubic = _block(root, val_interpolation="bicubic", val_resize=36)
    assert _val(opened, bicubic).kind == "torch"
    assert "FFCV does not resize with data.val_interpolation: bicubic" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"does not resize with.*bicubic.*--set data\.loader=torch"):
        _val(opened, bicubic.model_copy(update={"loader": "ffcv"}))


def test_processes_draw_what_operations_on_images_make_slow(opened: list[Loader], root: Path) -> None:
    plain = _block(root, loader="torch", augment="random_resized_crop")
    slow = _block(root, loader="torch", augment="random_resized_crop", augmentation={"policy": "trivial"})
    assert [_train(opened, each)._workers is not None for each in (plain, slow)] == [False, True]


def test_mixed_batches_come_from_the_loader_that_the_recipe_would_take_anyway(opened: list[Loader], root: Path) -> None:
    mixing = _train(opened, _block(root, augmentation={"mixup": 0.2}))
    assert (mixing.kind, mixing.samples) == (_train(opened, _block(root)).kind, 50)


@pytest.mark.usefixtures("without_ffcv")
def test_auto_does_without_ffcv_and_says_why_once(
    opened: list[Loader], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resized = _block(root, augment="random_resized_crop", val_resize=36)
    assert _train(opened, resized).kind == _val(opened, resized).kind == "torch"
    said = capsys.readouterr().err
    assert said.count("FFCV cannot be used") == 1
    assert "pip install 'acdc-cli[ffcv]'" in said
    assert "libopencv-dev libturbojpeg0-dev pkg-config g++" in said


@pytest.mark.usefixtures("without_ffcv")
def test_ffcv_asked_for_but_not_there_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"FFCV cannot be used.*pip install 'acdc-cli\[ffcv\]'.*data\.loader=torch"):
        open_set(_block(root, loader="ffcv")).train_loader(0, [32], CPU)


def test_ffcv_asked_for_a_folder_is_an_error(folders: Path) -> None:
    with pytest.raises(DataError, match=r"holds images: .*acdc data write folder --source.*data\.loader=torch"):
        open_set(_block(folders, batch_size=2, loader="ffcv")).train_loader(0, [32], CPU)


def test_a_batch_larger_than_the_set_is_an_error(kind: str, root: Path) -> None:
    with pytest.raises(DataError, match=r"batch_size 51 is more than the 50 images"):
        open_set(_block(root, batch_size=51, loader=kind)).train_loader(0, [32], CPU)


def test_training_drops_the_last_partial_batch(kind: str, opened: list[Loader], root: Path) -> None:
    loader = _train(opened, _block(root, loader=kind))
    assert (loader.samples, loader.steps) == (50, 6)
    with loader.epoch(0) as batches:
        indices = torch.cat([batch.indices for batch in batches])
    assert len(indices.unique()) == 48


def test_a_started_epoch_goes_on_where_it_stopped(kind: str, opened: list[Loader], root: Path) -> None:
    loader = _train(opened, _block(root, loader=kind))
    with loader.epoch(4) as batches:
        whole = [(batch.indices.clone(), batch.inputs.clone()) for batch in batches]
    with loader.epoch(4, start_step=4) as batches:
        rest = [(batch.indices.clone(), batch.inputs.clone()) for batch in batches]
    assert len(rest) == 2
    for (indices, images), (expected_indices, expected_images) in zip(rest, whole[4:], strict=True):
        assert torch.equal(indices, expected_indices)
        assert torch.equal(images, expected_images)


def test_a_trial_uses_some_images_spread_evenly_over_the_set(kind: str, opened: list[Loader], root: Path) -> None:
    block = _block(root, loader=kind, images=20, val_images=5)
    train, val = open_set(block).train_loader(0, [32, 32], CPU), open_set(block).val_loader(CPU)
    opened += [train, val]
    assert (train.samples, train.steps, val.samples, val.steps) == (20, 2, 5, 1)
    with val.epoch(0) as batches:
        # 23 images in 5 parts: 0, 4.6, 9.2, 13.8, 18.4
        assert [index for batch in batches for index in batch.indices.tolist()] == [0, 4, 9, 13, 18]
    seen = set()
    for epoch in range(2):
        with train.epoch(epoch) as batches:
            seen |= {index for batch in batches for index in batch.indices.tolist()}
    # every 50/20th
    assert seen <= {5 * index // 2 for index in range(20)}
    assert len(seen) > 16
    assert expected_set(block) == (3, 20, True)
    with pytest.raises(DataError, match="more than the 7 images"):
        open_set(_block(root, loader=kind, images=7)).train_loader(0, [32, 32], CPU)


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
@pytest.mark.parametrize("split", ["val", "train"])
def test_validation_gives_every_image_once_in_its_order(
    kind: str, opened: list[Loader], root: Path, batch_size: int, split: str
) -> None:
    loader = _val(opened, _block(root, loader=kind, val_batch_size=batch_size), split)
    with loader.epoch(0) as batches:
        given = [(batch.indices.tolist(), batch.targets.tolist(), len(batch.inputs)) for batch in batches]
    count = {"val": 23, "train": 50}[split]
    indices = [index for part, _, _ in given for index in part]
    assert indices == list(range(count))
    assert [label for _, part, _ in given for label in part] == [index % 3 for index in range(count)]
    assert [images for _, _, images in given] == [len(part) for part, _, _ in given]
    assert len(given) == loader.steps


def test_every_epoch_has_its_size_without_a_new_loader(kind: str, opened: list[Loader], root: Path) -> None:
    loader = _train(opened, _block(root, loader=kind, augment="random_resized_crop"), [16, 16, 24, 40])

    def side(epoch: int) -> tuple[int, ...]:
        with loader.epoch(epoch) as batches:
            return tuple(next(batches).inputs.shape[2:])

    assert [side(epoch) for epoch in (0, 1, 2, 3, 0)] == [(16, 16), (16, 16), (24, 24), (40, 40), (16, 16)]


def test_the_recipes_crop_and_flip_reach_the_images(kind: str, opened: list[Loader], root: Path) -> None:
    values = {"augment": "none", "flip": 1.0, "loader": kind}
    with _train(opened, _block(root, **values)).epoch(0) as batches:
        batch = next(batches)
    with _val(opened, _block(root, val_batch_size=50, loader="torch"), "train").epoch(0) as batches:
        stored = next(batches).inputs
    assert torch.equal(batch.inputs, stored[batch.indices].flip(3))


def test_workers_default_to_the_cores_that_this_process_may_use(
    ffcv: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 5})
    monkeypatch.setattr(ffcv, "FFCVLoader", lambda file, plan, workers, device: asked.append(workers))
    open_set(_block(root, workers=None, loader="ffcv")).val_loader(CPU)
    open_set(_block(root, workers=0, loader="ffcv")).val_loader(CPU)
    # two processes of a machine share its cores
    open_set(_block(root, workers=None, loader="ffcv")).val_loader(CPU, shard=Shard(0, 2, local_size=2))
    assert asked == [3, 1, 1]


def test_fingerprints_of_a_place_are_those_of_its_open_set_or_empty(root: Path, folders: Path, tmp_path: Path) -> None:
    written, images = _block(root), _block(folders)
    assert kind_of(written).fingerprints(root, thorough=False) == open_set(written).fingerprint
    assert kind_of(images).fingerprints(folders, thorough=True) == open_set(images).fingerprint
    # reading a folder takes long
    assert kind_of(images).fingerprints(folders, thorough=False) == {"train": None, "val": None}
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("val.beton", "val.beton.json"):
        (damaged / name).touch()
    assert kind_of(written).fingerprints(damaged, thorough=True) == {"val": ""}
