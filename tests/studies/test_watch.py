from __future__ import annotations

import io
import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from command import Acdc
from epoch import recorded
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live

from acdc_cli.errors import RunError
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.watch import job
from acdc_cli.studies.watch.live_lines import blocks, lines
from acdc_cli.studies.watch.state import described, gpus, watched_runs


def begun(path: Path, *top1: float | None) -> RunDir:
    """A run of the demo, whose epochs took 30 seconds each."""
    run = RunDir(path)
    run.start("extends: demo\n", resolved_yaml(load("demo")), {"time": "2026-11-29T12:00:00+00:00"})
    records = [
        recorded(epoch, phase="sparse" if epoch % 2 else "dense", top1=each, train_loss=2.0 - epoch / 4)
        for epoch, each in enumerate(top1)
    ]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_blocks_run_from_the_smallest_value_to_the_largest() -> None:
    assert blocks([0, 1, 2, 3, 4, 5, 6, 7], 80) == "▁▂▃▄▅▆▇█"
    assert blocks([3, 3], 80) == "▁▁"
    assert blocks([1, None, 2], 80) == "▁ █"
    # the means of pairs: 0.5 and 6.5
    assert blocks([0, 1, 6, 7], 2) == "▁█"
    assert blocks([None, None, None], 2) == "  "


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1), st.integers(1, 200))
def test_blocks_are_never_wider_than_asked(values: list[float | None], width: int) -> None:
    assert len(blocks(values, width)) == min(len(values), width)


def test_a_running_run_shows_its_phase_its_curves_and_the_time_left(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 0.25, None, 0.5)
    ended = run.metrics.stat().st_mtime
    with run.locked():
        watched = watched_runs([run.path], now=ended + 10)
    # 13 epochs of 30 seconds, less the 10 since the last one ended
    assert watched[0].left == 380.0
    shown = "\n".join(lines(watched, ["GPU 0"], 80, ended + 10))
    assert "running · epoch 3 of 16 · dense phase" in shown
    assert "about 6 min left" in shown
    assert "train loss █▅▁  2 → 1.5" in shown
    assert "top-1 %    ▁▁█  25 → 50" in shown
    assert "phase      ·▓·  " in shown
    assert shown.endswith("GPU 0")
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert watched_runs([run.path])[0].left is None


def test_without_a_terminal_there_is_one_snapshot(tmp_path: Path, acdc: Acdc) -> None:
    run = begun(tmp_path / "run")
    with run.locked():
        shown = acdc("watch", run.path)
    assert "running · epoch 0 of 16" in shown.stdout
    with pytest.raises(RunError, match="is not a run directory"):
        job.watch([tmp_path])


@pytest.mark.slow
def test_the_page_loads_itself_again_until_nothing_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, html, pages = begun(tmp_path / "<run>", 0.5, 0.75), tmp_path / "watch.html", []
    lock = run.locked()
    lock.__enter__()

    def wait(seconds: int) -> None:
        pages.append((seconds, html.read_text()))
        lock.__exit__(None, None, None)

    monkeypatch.setattr(job.time, "sleep", wait)
    job.watch([run.path], html, every=7)
    ((seconds, first),) = pages
    assert seconds == 7
    assert '<meta http-equiv="refresh" content="7">' in first
    assert "<td>running</td>" in first
    last = html.read_text()
    assert 'http-equiv="refresh"' not in last
    assert "<td>failed</td>" in last
    for text in (first, last):
        assert text.count("<svg") == 1
        assert "<title>&lt;run&gt;</title>" in text
        assert not re.search(r"<run>|https?://(?!www\.w3\.org)", text)


def test_a_damaged_run_is_watched_without_its_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path / "run", 0.5)
    run.metrics.write_text("no JSON\n")
    job.watch([run.path], tmp_path / "watch.html")
    assert "damaged · epoch 0 of ?" in capsys.readouterr().out
    assert "is damaged" in (tmp_path / "watch.html").read_text()


def test_a_terminal_is_drawn_on_until_nothing_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, terminal = begun(tmp_path / "run", 0.5), Console(width=80, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("acdc_cli.console.is_terminal", lambda: True)
    monkeypatch.setattr("acdc_cli.console.screen", lambda: Live(console=terminal, auto_refresh=False))
    with ExitStack() as training:
        training.enter_context(run.locked())
        monkeypatch.setattr(job.time, "sleep", lambda seconds: training.close())
        job.watch([run.path])
    assert "running · epoch 1 of 16" in terminal.file.getvalue()  # type: ignore[attr-defined]


def test_gpus_are_those_that_the_driver_lists_and_none_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []
    smi = tmp_path / "nvidia-smi"
    for code, shown in ((0, ["GPU 0 A: 93 % busy, 70.0 of 140 GiB"]), (9, [])):
        smi.write_text(f"#!/bin/sh\necho '0, A, 93, 71680, 143771'; echo; exit {code}\n")
        smi.chmod(0o755)
        assert gpus() == shown


def test_a_gpu_is_a_line() -> None:
    assert described("0, NVIDIA H200, 93, 71680, 143771") == "GPU 0 NVIDIA H200: 93 % busy, 70.0 of 140 GiB"
    assert described("1, A, [N/A], [N/A], 1024") == "GPU 1 A: [N/A] % busy, [N/A] of 1024 GiB"
