"""Transfers side by side, from the results in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acdc_cli.errors import RunError
from acdc_cli.transfer.cells import Cell, Cells, Mode
from acdc_cli.transfer.comparison import report


def add(cells: Cells, model: str, wrong: int, to: str = "pets", mode: Mode = "linear") -> Cell:
    """Ten samples, of which this many are taken for another class."""
    truth = np.arange(10) % 2
    answers = np.where(np.arange(10) < wrong, 1 - truth, truth)
    cell = Cell(
        key=f"{model}-{to}-{mode}", model=f"{model}-0", group=model, experiment=model, upstream_seed=0, to=to,
        fingerprint={}, metric="top1", mode=mode, seed=0, scores={"top1": 1 - wrong / 10}, logistic=None, sparsity=0.5,
        classes=2, train_samples=10, val_samples=10, protocol={}, source=model, sha256=model, acdc="0",
    )  # fmt: skip
    cells.add(cell, np.stack([truth, answers]))
    return cell


def test_a_baseline_without_an_error_has_no_increase_over_it(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    for to, perfect in (("pets", 0), ("cars", 5)):
        add(cells, "dense", perfect, to)
        add(cells, "sparse", 2, to)
    findings, increases = report(cells, "dense")
    (row,) = findings.numbers["aie"]
    assert (row["sets"], row["aie"], row["std"], row["low"]) == (["cars", "pets"], None, None, None)
    assert increases.rows == [("linear", "sparse", "2", "undefined: the baseline makes no error on a set", "", "")]


def test_a_model_is_drawn_where_it_was_transferred(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    for model, wrong, mode in (("dense", 4, "linear"), ("sparse", 2, "linear"), ("dense", 1, "full")):
        add(cells, model, wrong, mode=mode)  # type: ignore[arg-type]
    findings, increases = report(cells, "dense")
    # (0.2 - 0.4) / 0.4
    assert [row[:4] for row in increases.rows] == [("linear", "sparse", "1", "-0.500")]
    linear, full = findings.figures[""].axes
    assert [[bar.get_height() for bar in bars] for bars in linear.containers if len(bars) == 1] == [[60], [80]]
    assert [bar.get_height() for bar in full.patches] == [90]


def test_answers_that_are_damaged_are_named_with_what_to_delete(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    cell = add(cells, "dense", 4)
    assert cells.answers(cell).shape == (2, 10)
    (tmp_path / f"{cell.key}.npy").write_bytes(b"no array")
    with pytest.raises(RunError, match=rf"cannot be read \(.*; delete {cell.key}\.json, and run the command again"):
        cells.answers(cell)
