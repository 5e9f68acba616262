"""Processes that train together over NCCL, as far as one GPU can show it: run with `pytest -m gpu`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gpu_device
import pytest
import torch
from gpu_device import DEVICE, NAME
from torch import nn

from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.jobs import setup
from acdc_cli.runs.run_dir import RunDir

pytestmark = gpu_device.marks


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["compile=true"],
        pytest.param(["sync_bn=true"], marks=pytest.mark.skipif(NAME == "cpu", reason="only on GPUs")),
        ["optim.accumulate=2"],
    ],
    ids=str,
)
def test_a_process_that_the_launcher_starts_trains_over_nccl(tmp_path: Path, more: list[str]) -> None:
    write_set("demo", WriteOptions(out=tmp_path / "demo", workers=1))
    short = "warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1"
    keys = [
        f"device={NAME}",
        "compile=false",
        f"data.path={tmp_path / 'demo'}",
        "epochs=4",
        f"sparsity={{{short}}}",
        *more,
    ]
    words = [word for key in keys for word in ("--set", key)]
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-m", "acdc_cli", "train", "demo", *words, "--out", str(run.path), "--gpus", "1"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert run.finished
    assert run.records()[-1]["top1"] > 0.8
    assert run.records()[-1]["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_batch_norm_is_synchronised_under_the_same_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(DEVICE)
    names = list(model.state_dict())
    weight = model[1].weight
    synchronised = setup._synchronised(model, torch.device("cuda"))
    assert isinstance(synchronised[1], nn.SyncBatchNorm)
    assert synchronised[1].weight is weight
    assert list(synchronised.state_dict()) == names
