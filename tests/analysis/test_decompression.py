"""Zeros in dense phases, from records written by hand and from a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Acdc
from epoch import recorded

from acdc_cli.analysis import decompression
from acdc_cli.analysis.base.workspace import UNSAVED
from acdc_cli.analysis.decompression import DensePhase, dense_phases, draw
from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir


def records(*epochs: tuple[str, float, float]) -> list[dict[str, Any]]:
    """Of phases, shares of zeros and shares that masks hold at zero."""
    return [
        recorded(epoch, phase=phase, sparsity=zeros, mask_sparsity=masked)
        for epoch, (phase, zeros, masked) in enumerate(epochs)
    ]


RUN = records(
    ("dense", 0.0, 0.0),
    ("sparse", 0.95, 0.95),
    ("sparse", 0.95, 0.95),
    ("dense", 0.3, 0.2),
    ("dense", 0.27, 0.2),
    ("dense", 0.25, 0.2),
    ("sparse", 0.95, 0.95),
)


def test_a_dense_phase_is_told_by_its_first_and_its_last_epoch() -> None:
    assert dense_phases(RUN) == [DensePhase(0, 0, 0, 0.0, 0.0, 0.0), DensePhase(1, 3, 5, 0.3, 0.25, 0.2)]


def test_without_a_warm_up_the_first_dense_phase_is_a_decompression() -> None:
    assert [phase.number for phase in dense_phases(RUN[1:])] == [1]


def test_the_figure_shows_dense_epochs_only_and_all_of_them() -> None:
    _, line = draw({"run": RUN}).axes[0].lines
    shown = [(x, y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y == y]
    assert shown == [(1, 0.0), (4, 30.0), (5, 27.0), (6, 25.0)]
    assert line.get_label() == "run"


def a_run(folder: Path, records: list[dict[str, Any]], *overrides: str) -> Any:
    folder.mkdir()
    run = RunDir(folder)
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SimpleNamespace(name=folder.name, run=run, kind=None, recipe=load("demo", overrides))


def legend(*subjects: Any) -> list[str]:
    (figure,) = decompression.analyze(subjects, Block(), UNSAVED).figures.values()
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_are_told_apart_by_their_weight_decay_where_they_differ_in_it(tmp_path: Path) -> None:
    first, same = a_run(tmp_path / "a", RUN), a_run(tmp_path / "b", RUN)
    stronger = a_run(tmp_path / "c", RUN, "optim.weight_decay=0.001")
    assert legend(first, same) == ["sparse phase", "a", "b"]
    assert legend(first, stronger) == ["sparse phase", "a, weight decay 0.0005", "c, weight decay 0.001"]


def test_sparse_phases_are_not_shaded_where_runs_have_other_ones(tmp_path: Path) -> None:
    assert legend(a_run(tmp_path / "a", RUN), a_run(tmp_path / "b", RUN[:5])) == ["a", "b"]


def test_a_run_that_never_decompressed_is_refused_by_name(tmp_path: Path) -> None:
    for name, records in (("dense", RUN[:1]), ("sparse", RUN[1:3]), ("early", RUN[:3])):
        with pytest.raises(RunError, match=f"{name}: no dense phase has followed a sparse one"):
            decompression.analyze([a_run(tmp_path / name, records)], Block(), UNSAVED)


def test_the_command(acdc: Acdc, trained: Path, other: Path, tmp_path: Path) -> None:
    result = acdc("analyze", "decompression", trained, other, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["results"]["runs"]
    assert list(runs) == [trained.name, other.name]
    by_epoch = {record["epoch"]: record["sparsity"] for record in RunDir(trained).records()}
    assert [
        (phase["number"], phase["first_epoch"], phase["last_epoch"], phase["last_sparsity"])
        for phase in runs[trained.name]["phases"]
    ] == [(0, 0, 0, by_epoch[0]), (1, 2, 2, by_epoch[2]), (2, 4, 4, by_epoch[4])]
    stem = f"decompression-{trained.name}-{other.name}"
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{stem}.{ending}" for ending in ("json", "csv", "png", "svg")
    }
    lines = (tmp_path / f"{stem}.csv").read_text().splitlines()
    assert lines[0] == "run,weight_decay,phase,first_epoch,last_epoch,first_sparsity,last_sparsity,imposed"
    assert len(lines) == 7


def test_files_and_single_models_are_refused(acdc: Acdc, trained: Path) -> None:
    for arguments, told in (
        ([trained / "dense.safetensors"], "this analysis reads a run"),
        ([trained, "--which", "dense"], "leave out --which"),
    ):
        result = acdc("analyze", "decompression", *arguments)
        assert (result.exit_code, told in result.output) == (2, True)
