"""The screen of a sweep, on a terminal of 80 columns."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from epoch import recorded
from rich.console import Console
from rich.live import Live

from acdc_cli.recipe.kinds import measures_of
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.run_queue import Row, State
from acdc_cli.studies.screen import Screen

TOP1 = measures_of("multiclass").headline


def row(folder: Path, sparsity: float, state: State) -> Row:
    key = f"sparsity={sparsity},epochs=8,seed=0"
    return Row(
        cell=Cell(key=key, axes={}, overrides=()),
        state=state,
        directory=folder / key,
        attempts=1,
        failures=0,
        host=None,
        pid=None,
        owner=None,
        heartbeat=None,
        job=None,
        error=None,
    )


def record(of: Row, epochs: int, at: float) -> None:
    """Epochs of 30 seconds, the last of which ended at `at`."""
    of.directory.mkdir(exist_ok=True)
    metrics = of.directory / "metrics.jsonl"
    one = {"train_loss": 0.5, "top1": 0.98765, "seconds": 30.0}
    metrics.write_text("".join(json.dumps(recorded(epoch) | one) + "\n" for epoch in range(epochs)))
    os.utime(metrics, (at, at))


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """One that is done, one elsewhere without an epoch, one here after 4 of its 8, one failed, one that waits."""
    states: list[State] = ["done", "running", "running", "failed", "waiting"]
    made = [row(tmp_path, 0.5 + number / 10, state) for number, state in enumerate(states)]
    record(made[2], 4, at=1000)
    return made


def drawn(screen: Screen, rows: list[Row]) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(screen.render(rows, {rows[2].key}))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_totals_and_a_bar_for_each_run_fit_80_columns(rows: list[Row]) -> None:
    now = [1010.0]
    screen = Screen("epoch_length_demo", lambda row: 8, lambda row: TOP1, clock=lambda: now[0])
    first, totals, empty, header, here, elsewhere = drawn(screen, rows)
    assert first.startswith("epoch_length_demo ━")
    assert first.endswith(" 0:00:00")
    # of the failed run no epoch is to come
    assert totals == "12/32 epochs · 1/5 runs · 2 running (1 elsewhere) · 1 failed"
    assert empty == ""
    assert header.split() == ["run", "epochs", "loss", "accuracy", "left"]
    # 4 epochs of 30 s, of which 10 s have passed
    assert here.split() == ["sparsity=0.7,epochs=8,seed=0", "━━━━━", "4/8", "0.500", "98.77", "0:01:50"]
    assert elsewhere.split() == ["sparsity=0.6,epochs=8,seed=0", "0/8"]


def test_the_time_that_is_left_is_told_by_the_epochs_since_the_sweep_began(rows: list[Row]) -> None:
    now = [1000.0]
    screen = Screen("study", lambda row: 8, lambda row: TOP1, clock=lambda: now[0])
    assert "left" not in drawn(screen, rows)[0]
    now[0] = 1060.0
    record(rows[2], 6, at=1060)
    # 2 epochs in 60 s, and 18 to come
    assert drawn(screen, rows)[0].endswith("0:01:00, about 0:09:00 left")


def test_a_run_whose_records_cannot_be_read_does_not_end_the_sweep(rows: list[Row]) -> None:
    (rows[2].directory / "metrics.jsonl").write_text("no json\n")
    assert drawn(Screen("study", lambda row: 8, lambda row: TOP1), rows)[4].split()[-1] == "0/8"


def test_a_terminal_is_drawn_on_while_the_sweep_goes_on_and_unchanged_records_are_not_read_again(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(width=80, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("acdc_cli.console.screen", lambda: Live(console=terminal, auto_refresh=False))
    screen = Screen("study", lambda row: 8, lambda row: TOP1)

    def drawn_on() -> str:
        terminal.file = io.StringIO()
        screen.draw(rows, {rows[2].key})
        return terminal.file.getvalue()

    assert drawn_on() == ""
    with screen.shown():
        assert "12/32 epochs" in drawn_on()
        metrics = rows[2].directory / "metrics.jsonl"
        metrics.write_text("")
        os.utime(metrics, (1000, 1000))
        assert "12/32 epochs" in drawn_on()
        os.utime(metrics, (1001, 1001))
        assert "8/32 epochs" in drawn_on()
    assert drawn_on() == ""
