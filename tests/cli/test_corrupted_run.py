"""A run on partly wrong labels from end to end: what is stored, tracked, judged and refused."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Acdc
from digits import TINY
from numpy.typing import NDArray
from PIL import Image
from processes import VIT, together, untimed
from safetensors.torch import load_file

from acdc_cli.data.beton import BetonFile
from acdc_cli.data.data_set import open_set
from acdc_cli.jobs.training_run import train
from acdc_cli.models import build as models
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint

COUNT = "data.corrupt_labels.count=40"
KEYS = {"corrupted_true", "corrupted_given", "corrupted_neither"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Four short epochs of AC/DC: dense 0, sparse 1, dense 2, sparse 3."""
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(
        f"""extends: demo
name: small
epochs: 4
data: {{name: folder, path: {digits}, batch_size: 20, val_batch_size: 30, loader: torch, augment: none, {TINY}}}
optim: {{lr: 0.05, schedule: {{warmup_epochs: 0}}}}
sparsity: {{warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}}
"""
    )
    return path


@pytest.fixture(scope="module")
def corrupted(small: Path) -> RunDir:
    return train(str(small), [COUNT], small.parent / "corrupted")


def flat(text: str) -> str:
    return " ".join(text.split())


def listed(run: RunDir) -> NDArray[np.int64]:
    """(40, 3): index, true and given."""
    return np.loadtxt(run.corrupted_labels, np.int64, delimiter=",", skiprows=1, ndmin=2)


def predictions(run: RunDir, digits: Path) -> NDArray[np.int64]:
    """Of the sparse model for each training image, one at a time, in plain PyTorch."""
    recipe, file = load(run.resolved), BetonFile(digits / "train.beton")
    model = models.build(recipe.model, 10).eval()
    model.load_state_dict(load_file(run.model_file("sparse")))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (recipe.data.mean, recipe.data.std))
    pixels = (torch.from_numpy(file.decode(index)).permute(2, 0, 1) for index in range(file.samples))
    with torch.no_grad():
        return np.array([int(model(((image / 255 - mean) / std)[None]).argmax()) for image in pixels])


def test_the_samples_and_both_their_labels_are_stored(corrupted: RunDir, digits: Path) -> None:
    assert corrupted.corrupted_labels.read_text().splitlines()[0] == "index,true,given"
    index, true, given = listed(corrupted).T
    wrong = open_set(load(corrupted.resolved).data).corrupted_labels
    assert wrong is not None
    assert np.array_equal(index, wrong.indices)
    assert np.array_equal(true, BetonFile(digits / "train.beton").labels[index])
    assert np.array_equal(given, wrong.given)
    assert (true != given).all()


def test_the_tracked_shares_are_those_of_one_image_after_another(corrupted: RunDir, digits: Path) -> None:
    index, true, given = listed(corrupted).T
    predicted = predictions(corrupted, digits)[index]
    record = corrupted.records()[-1]
    assert record["corrupted_true"] == (predicted == true).mean()
    assert record["corrupted_given"] == (predicted == given).mean()
    assert record["corrupted_true"] + record["corrupted_given"] > 0
    assert all(record.keys() >= KEYS for record in corrupted.records())
    summary = json.loads(corrupted.summary.read_text())
    assert all(summary["sparse"][key] == record[key] for key in KEYS)


def test_eval_goes_by_the_true_labels_of_the_training_images(acdc: Acdc, corrupted: RunDir, digits: Path) -> None:
    document = json.loads(acdc("eval", "--checkpoint", corrupted.path, "--split", "train", "--json").stdout)
    labels = BetonFile(digits / "train.beton").labels
    told = labels.copy()
    index, _, given = listed(corrupted).T
    told[index] = given
    predicted = predictions(corrupted, digits)
    assert document["top1"] == (predicted == labels).mean()
    assert (predicted == labels).mean() != (predicted == told).mean()


def test_a_run_on_image_folders_walks_each_of_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [tmp_path / "images" / split / name for split in ("train", "val") for name in ("cat", "dog")]
    for folder in classes:
        folder.mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (28, 28), (index, 0, 0)).save(folder / f"{index}.png")
    walks: Counter[Path] = Counter()
    walk = os.walk

    def counted(top: Path, **options: Any) -> Any:
        walks[Path(top)] += 1
        return walk(top, **options)

    monkeypatch.setattr(os, "walk", counted)
    data = ("data.name=folder", f"data.path={tmp_path / 'images'}", "data.batch_size=4", "data.workers=0")
    train("demo_static", ["epochs=2", "data.corrupt_labels.count=2", *data], tmp_path / "run")
    assert walks == dict.fromkeys(classes, 1)


def test_the_wrong_labels_are_learned(corrupted: RunDir, small: Path) -> None:
    plain = train(str(small), [], small.parent / "plain")
    assert not plain.corrupted_labels.exists()
    assert not any(record.keys() & KEYS for record in plain.records())
    ours, theirs = corrupted.records(), plain.records()
    assert [record["lr"] for record in ours] == [record["lr"] for record in theirs]
    # 40 of 200 cannot be foreseen
    assert ours[-1]["train_loss"] > theirs[-1]["train_loss"] + 0.2


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_bits_with_the_same_labels(
    corrupted: RunDir, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    save = checkpoint.save_state

    def killed(folder: Path, state: Mapping[str, Any]) -> None:
        assert RunDir(folder.parent).corrupted_labels.read_bytes() == corrupted.corrupted_labels.read_bytes()
        save(folder, state)
        raise KilledError

    monkeypatch.setattr(checkpoint, "save_state", killed)
    with pytest.raises(KilledError):
        train(str(small), [COUNT], tmp_path / "cut")
    monkeypatch.undo()
    # as if it had been killed sooner still
    RunDir(tmp_path / "cut").corrupted_labels.unlink()
    resumed = train(str(small), [COUNT], tmp_path / "cut", resume=True)
    assert resumed.corrupted_labels.read_bytes() == corrupted.corrupted_labels.read_bytes()
    assert untimed(resumed.records()) == untimed(corrupted.records())
    ours, theirs = (load_file(run.model_file("sparse")) for run in (resumed, corrupted))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["data.corrupt_labels.count=30"], "data.corrupt_labels.count: 40 there, 30 here"),
        ([COUNT, "data.corrupt_labels.seed=1"], "data.corrupt_labels.seed: 0 there, 1 here"),
        ([], "data.corrupt_labels.count: 40 there, None here"),
    ],
)
def test_another_choice_is_another_run(
    acdc: Acdc, corrupted: RunDir, small: Path, tmp_path: Path, asked: list[str], said: str
) -> None:
    shutil.copytree(corrupted.path, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    sets = [word for override in asked for word in ("--set", override)]
    result = acdc("train", small, *sets, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 2
    assert said in flat(result.stderr)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["data.corrupt_labels.count=201"], "expected at most the 200 training images, found 201"),
        ([COUNT, "data.images=39", "data.batch_size=10"], "expected at most the 39 training images, found 40"),
        (["data.corrupt_labels.count=0"], "data.corrupt_labels.count: expected a whole number above 0, found 0"),
        (["data.corrupt_labels.cuont=3"], "unknown key; did you mean count?"),
        (["data.corrupt_labels=3"], "expected a block with the keys count, classes, seed or null, found 3"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_what_cannot_be_is_an_error_before_anything_is_written(
    acdc: Acdc, small: Path, in_tmp: Path, command: str, sets: list[str], said: str
) -> None:
    result = acdc(command, small, *[word for override in sets for word in ("--set", override)])
    assert result.exit_code == 2
    assert said in flat(result.stderr)
    assert list(in_tmp.iterdir()) == []


def test_train_says_where_the_wrong_labels_are_listed(acdc: Acdc, small: Path, in_tmp: Path) -> None:
    said = acdc("train", small, "--set", COUNT, "--set", "epochs=1", "--set", "sparsity.method=dense").stderr
    assert "40 training labels are deliberately wrong: runs/small-0/corrupted_labels.csv lists them" in flat(said)
    assert "acdc analyze memorisation runs/small-0" in flat(said)


def test_a_plan_is_that_of_true_labels(acdc: Acdc, small: Path) -> None:
    assert acdc("plan", small, "--set", COUNT).output == acdc("plan", small).output


def test_the_option_is_switched_on_and_off_by_set_wherever_it_comes_from(corrupted: RunDir, small: Path) -> None:
    block = load(corrupted.resolved).data.corrupt_labels
    assert block is not None
    assert (block.count, block.seed) == (40, 0)
    assert load(corrupted.resolved, ["data.corrupt_labels=null"]).data == load(small).data
    with_null = small.parent / "null.yaml"
    with_null.write_text("extends: small.yaml\ndata: {corrupt_labels: null}\n")
    assert load(with_null, [COUNT]).data == load(corrupted.resolved).data


@dataclass(frozen=True)
class Run:
    """A work of two processes."""

    recipe: Path
    sets: list[str]

    def __call__(self, rank: int, folder: Path) -> None:
        train(str(self.recipe), self.sets, folder / "two")


@pytest.mark.slow
def test_two_processes_learn_the_wrong_labels_of_one_and_judge_them_together(small: Path, tmp_path: Path) -> None:
    sets = [COUNT, VIT, "data.batch_size=10", "optim={name: adamw, lr: 0.002, schedule: {name: linear}}"]
    [ends] = together([Run(small, sets)], tmp_path)
    assert [end.raised for end in ends] == ["", ""]
    two, one = RunDir(tmp_path / "two"), train(str(small), [*sets, "optim.accumulate=2"], tmp_path / "one")
    assert two.corrupted_labels.read_bytes() == one.corrupted_labels.read_bytes()
    ours, theirs = (load_file(run.model_file("sparse")) for run in (two, one))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # of 40 samples the first process judges 30, the second 10
    for key in KEYS:
        assert [record[key] for record in two.records()] == [record[key] for record in one.records()]
    assert len({tuple(record[key] for key in sorted(KEYS)) for record in two.records()}) > 1
