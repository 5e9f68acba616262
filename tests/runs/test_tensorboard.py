from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from epoch import recorded

from acdc_cli.recipe.blocks.run import TrackBlock
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import trackers

BLOCK = TrackBlock(wandb="disabled", tensorboard=True)
RECORDS = [
    recorded(epoch, step=5 * (epoch + 1), train_loss=None if epoch == 1 else 2.0, lr=0.5 / (epoch + 1), top1=epoch / 4)
    | {"layers": {"conv1": epoch / 8}}
    for epoch in range(4)
]


def log(run: RunDir, records: list[dict[str, Any]]) -> None:
    """What one process does."""
    tracking = trackers(BLOCK, run, "test", {})
    for record in records:
        for tracker in tracking:
            tracker.log(record)
    for tracker in tracking:
        tracker.alert("collapsing")
        tracker.close()


def points(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard itself reads them, of all event files together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((run.path / "tensorboard").glob("events*")):
        events = EventAccumulator(str(file), purge_orphaned_data=False).Reload()
        for tag in events.Tags()["scalars"]:
            read.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return read


def test_a_resumed_run_has_every_point_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDir(tmp_path / "run")
    run.start("", "", {})
    log(run, RECORDS[:3])
    assert points(run)["top1"] == [(5, 0.0), (10, 0.25), (15, 0.5)]
    # it resumes from a checkpoint before its last record
    run.rewind_metrics(2)
    log(run, RECORDS[2:])
    drawn = points(run)
    assert drawn["top1"] == [(5, 0.0), (10, 0.25), (15, 0.5), (20, 0.75)]
    assert drawn["layers/conv1"] == [(5, 0.0), (10, 0.125), (15, 0.25), (20, 0.375)]
    assert drawn["train_loss"] == [(5, 2.0), (15, 2.0), (20, 2.0)]
    assert not {"epoch", "step", "phase"} & drawn.keys()


def test_without_tensorboard_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in sys.modules if each.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = RunDir(tmp_path / "run")
    run.start("", "", {})
    log(run, RECORDS)
    assert run.records() == RECORDS
    warned = " ".join(capsys.readouterr().err.split())
    assert warned.count("TensorBoard is not available") == 1
    assert "pip install 'acdc-cli[tensorboard]'" in warned


def test_events_that_cannot_be_written_do_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    run = RunDir(tmp_path / "run")
    run.start("", "", {})
    (run.path / "tensorboard").write_text("no folder")
    log(run, RECORDS)
    assert run.records() == RECORDS
    assert capsys.readouterr().err.count("TensorBoard's events cannot be written") == 1
