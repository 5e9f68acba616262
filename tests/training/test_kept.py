"""Models and masks that are kept along the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_trainer import MiniRun

from acdc_cli.models.tensors import load_tensors
from acdc_cli.schedule.time import Moment
from acdc_cli.training.checkpoint import load_masks, read_metadata

# dense 0-1, sparse 2-3, dense 4, sparse 5-6
ACDC = {
    "method": "acdc",
    "target": 0.9,
    "warmup_epochs": 2,
    "sparse_epochs": 2,
    "dense_epochs": 1,
    "last_dense_epochs": 1,
    "last_sparse_epochs": 2,
}


def test_every_second_epoch_leaves_its_model_and_the_masks_of_sparse_ones(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 7, ACDC, checkpoint={"keep_every": 2})
    run.fit()
    models = [(kept.epoch, kept.kind) for kept in run.directory.kept_models()]
    assert models == [(1, "dense"), (3, "sparse"), (5, "sparse")]
    # 3 and 6 end a phase
    assert [(kept.epoch, kept.kind) for kept in run.directory.kept_masks()] == [
        (3, "sparse"),
        (5, "sparse"),
        (6, "sparse"),
    ]


def test_what_is_kept_is_of_its_epoch(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 7, ACDC, checkpoint={"keep_every": 3})
    run.fit()
    _, sparse = run.directory.kept_models()
    (before, last) = run.directory.kept_masks()[-2:]
    assert (sparse.epoch, before.epoch, last.epoch) == (5, 5, 6)
    weights, _ = load_tensors(sparse.file)
    for name, mask in load_masks(before.file).items():
        assert torch.equal(weights[name] != 0, mask)
    metadata = read_metadata(sparse.file)
    assert metadata is not None
    assert metadata["metrics"]["epoch"] == 5


def test_by_default_phases_leave_masks_only(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 7, ACDC)
    run.fit()
    assert run.directory.kept_models() == []
    assert [kept.epoch for kept in run.directory.kept_masks()] == [3, 6]


RIGL = {"method": "rigl", "target": 0.9, "distribution": "erk", "every": 2}


@pytest.mark.parametrize(("method", "epochs"), [(ACDC, [2, 3, 5, 6]), (RIGL, [2, 5, 6])], ids=["acdc", "rigl"])
def test_masks_alone_are_kept_every_third_epoch(method: dict[str, Any], epochs: list[int], tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 7, method, checkpoint={"keep_masks_every": 3})
    masks: dict[int, dict[str, torch.Tensor]] = {}
    on_epoch_end = run.sparsifier.on_epoch_end

    def remember(moment: Moment, metrics: Mapping[str, float]) -> None:
        on_epoch_end(moment, metrics)
        masks[moment.epoch] = {name: mask.clone() for name, mask in run.sparsifier.masked.masks.items()}

    run.sparsifier.on_epoch_end = remember  # type: ignore[method-assign]
    run.fit()
    kept = run.directory.kept_masks()
    assert [each.epoch for each in kept] == epochs
    for each in kept:
        saved = load_masks(each.file)
        assert all(torch.equal(saved[name], mask) for name, mask in masks[each.epoch].items())
        # 810 weights, a bit each, and names and shapes
        assert each.file.stat().st_size < 1000
    assert run.directory.kept_models() == []
