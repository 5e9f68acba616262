"""ImageNet-V2, -R, -A and -Sketch: folders of classes, some of the model's or all, in the model's order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import Acdc, run_acdc
from digits import TINY, image_folders

from acdc_cli.data.data_set import open_set
from acdc_cli.data.relatives import indices
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import ImagesBlock

WNIDS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850)]


def test_classes_are_found_by_name_by_number_and_as_imagenets() -> None:
    assert indices(["b", "a"], ["a", "c", "b"], 3, "set") == [2, 0]
    # folders sort as text: ImageNet-V2's second one is 1, its third 10
    assert indices(["0", "1", "10", "2"], WNIDS * 4, 12, "set") == [0, 1, 10, 2]
    assert indices(["n01443537", "n15075141"], None, 1000, "set") == [1, 999]


def test_a_class_that_the_model_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"set: 1 of its 2 classes are none of the model's 3: d; name a set"):
        indices(["a", "d"], ["a", "b", "c"], 3, "set")
    with pytest.raises(DataError, match=r"1 of its 1 classes are none of the model's 3: 7"):
        indices(["7"], None, 3, "set")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three digits whose classes are called as ImageNet's, and its relatives."""
    home = tmp_path_factory.mktemp("relatives")
    images = image_folders(home, shrink=6)
    for split in ("train", "val"):
        for digit in "3456789":
            shutil.rmtree(images / split / digit)
        for digit, name in zip("012", WNIDS, strict=True):
            (images / split / digit).rename(images / split / name)
    # as they are published: -R has some of the classes, -V2 all by number
    shutil.copytree(images / "val" / WNIDS[2], home / "imagenet-r" / WNIDS[2])
    shutil.copytree(images / "val" / WNIDS[0], home / "imagenet-r" / WNIDS[0])
    for number, name in enumerate(WNIDS):
        shutil.copytree(images / "val" / name, home / "imagenetv2-matched-frequency-format-val" / str(number))
    data = f"data={{name: folder, path: {images}, batch_size: 20, val_batch_size: 30, workers: 0, {TINY}}}"
    words = [word for each in (data, "epochs=1", "optim.schedule.warmup_epochs=0") for word in ("--set", each)]
    assert run_acdc("train", "demo_dense", *words, "--out", home / "run").exit_code == 0
    return home


def evaluated(acdc: Acdc, home: Path, *words: str | Path) -> dict[str, float]:
    result = acdc("eval", "--checkpoint", home / "run", "--json", *words)
    assert result.exit_code == 0, result.output
    metrics: dict[str, float] = json.loads(result.stdout)
    return metrics


def test_a_relative_with_all_classes_by_number_is_judged_as_the_set_itself(home: Path, acdc: Acdc) -> None:
    expected = evaluated(acdc, home)
    assert expected["samples"] == 30
    measures = evaluated(acdc, home, "--data", home / "imagenetv2-matched-frequency-format-val")
    assert measures == expected


def test_logits_are_restricted_to_the_classes_of_the_relative(
    home: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "imagenet-r", tmp_path / "data/imagenet-r")
    measures = evaluated(acdc, home, "--data", "imagenet-r")
    assert measures["samples"] == 20
    # of two classes, both are among the best five
    assert measures["top5"] == 1
    # two classes' entropy is at most ln 2
    assert measures["entropy"] <= 0.6931472
    shutil.move(tmp_path / "data/imagenet-r" / WNIDS[0], tmp_path / "data/imagenet-r/n99999999")
    result = acdc("eval", "--checkpoint", home / "run", "--data", "imagenet-r")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "1 of its 2 classes are none of the model's 3: n99999999" in result.stderr


def test_a_relative_that_is_missing_says_how_it_must_lie(home: Path, acdc: Acdc, in_tmp: Path) -> None:
    result = acdc("eval", "--checkpoint", home / "run", "--data", "imagenet-a")
    assert result.exit_code == 2
    assert "must hold its class folders, as it is published; unpack it there" in result.stderr
    (in_tmp / "data/imagenet-a/notes").mkdir(parents=True)
    with pytest.raises(DataError, match="must hold its class folders"):
        open_set(ImagesBlock(name="imagenet-a", batch_size=2))
