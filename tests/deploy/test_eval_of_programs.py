"""`acdc eval` of exported programs: the engine's own numbers on the data set of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Acdc

from acdc_cli.jobs.evaluation import Options, evaluate_checkpoint
from acdc_cli.jobs.export_run import Asked, Exported, export

OF_LOGITS = ("top1", "top5", "loss", "entropy")
ExportedAs = Callable[[str], Exported]


@pytest.fixture(scope="module")
def expected(run: Path) -> dict[str, Any]:
    return evaluate_checkpoint(run, Options())


@pytest.mark.parametrize("name", ["onnx", "mnn", "pt2"])
def test_a_program_has_its_models_accuracy(
    name: str, run: Path, exported_as: ExportedAs, expected: dict[str, Any], tmp_path: Path
) -> None:
    # by its ending it is told from a checkpoint
    file = tmp_path / f"model.{name}"
    file.symlink_to(exported_as(name).path)
    metrics = evaluate_checkpoint(file, Options())
    assert metrics.keys() == expected.keys()
    assert metrics["samples"] == 100
    assert metrics["top1"] == expected["top1"]
    assert {key: metrics[key] for key in OF_LOGITS} == pytest.approx(
        {key: expected[key] for key in OF_LOGITS}, rel=1e-4
    )
    assert {key for key in metrics if metrics[key] is None} == {
        "sparsity",
        "sparsity_all",
        "params",
        "nonzero",
        "flops",
    }


@pytest.mark.slow
def test_preprocessing_inside_and_a_fixed_batch_change_no_number(
    run: Path, expected: dict[str, Any], tmp_path: Path, acdc: Acdc
) -> None:
    # 50 images of a validation batch are seven batches of 7 and one image
    export(run, "pt2", Asked(out=tmp_path / "model.pt2"), ["with_preprocessing=true", "batch=7"])
    done = acdc("eval", "--checkpoint", tmp_path / "model.pt2", "--json")
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    assert {key: metrics[key] for key in OF_LOGITS} == pytest.approx(
        {key: expected[key] for key in OF_LOGITS}, rel=1e-4
    )
    assert metrics["samples"] == 100
    shown = acdc("eval", "--checkpoint", tmp_path / "model.pt2").stdout
    assert "top-1" in shown
    assert "FLOPs" not in shown


@pytest.mark.parametrize("name", ["onnx", "mnn", "pt2"])
def test_a_file_of_others_is_refused(name: str, tmp_path: Path, acdc: Acdc) -> None:
    (tmp_path / f"other.{name}").write_bytes(b"something else")
    done = acdc("eval", "--checkpoint", tmp_path / f"other.{name}")
    assert done.exit_code == 2
    assert "is damaged, or was not written by acdc export" in " ".join(done.stderr.split())


def test_a_program_is_not_judged_by_other_classes(exported_as: ExportedAs, run: Path, in_tmp: Path, acdc: Acdc) -> None:
    Path("model.onnx").symlink_to(exported_as("onnx").path)
    for split in ("train", "val"):
        for digit in "07":
            shutil.copytree(run.parent / "images" / split / digit, f"two/{split}/{digit}")
    done = acdc("eval", "--checkpoint", "model.onnx", "--data", "two")
    assert done.exit_code == 2, done.output
    assert "model.onnx has 10 classes, the data set 2; name its own with --data" in " ".join(done.stderr.split())
    # a folder of some of its classes asks for their logits alone
    ours, theirs = (evaluate_checkpoint(each, Options(data="two/val")) for each in (run, Path("model.onnx")))
    assert theirs["samples"] == 20
    assert {key: theirs[key] for key in OF_LOGITS} == pytest.approx({key: ours[key] for key in OF_LOGITS}, rel=1e-4)


def test_a_file_that_is_missing_is_said_to_be(tmp_path: Path, acdc: Acdc) -> None:
    done = acdc("eval", "--checkpoint", tmp_path / "no.onnx")
    assert done.exit_code == 2
    assert "no.onnx does not exist" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["eval", "--which", "dense", "--checkpoint"],
            "is an exported program, which holds one model; leave out --which",
        ),
        (
            ["eval", "--set", "data.val_crop=24", "--checkpoint"],
            "takes images of 28 pixels; leave data.val_crop as it is",
        ),
        (
            ["analyze", "channels"],
            "is an exported program: acdc eval and acdc bench run it; everything else takes the run",
        ),
    ],
)
def test_what_a_program_cannot_do_is_one_line(
    words: list[str], message: str, exported_as: ExportedAs, tmp_path: Path, acdc: Acdc
) -> None:
    file = tmp_path / "model.onnx"
    file.symlink_to(exported_as("onnx").path)
    done = acdc(*words, file)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
