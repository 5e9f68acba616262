"""A run whose directory is moved away, or replaced by another, while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import Acdc

from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines


@pytest.mark.parametrize("replaced", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_run_stops_at_the_next_write_and_resumes_where_it_now_is(
    acdc: Acdc, recipe: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    run, log = Path("runs/small-0"), JsonLines.log

    def log_after_a_move(tracker: JsonLines, record: dict[str, Any]) -> None:
        if record["epoch"] == 2 and run.exists():
            run.rename("moved")
            if replaced:
                (run / "checkpoints").mkdir(parents=True)
        log(tracker, record)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "log", log_after_a_move)
        stopped = acdc("train", recipe)
    assert stopped.exit_code == 2, stopped.output
    assert "small-0 was moved away or replaced" in " ".join(stopped.stderr.split())
    assert [path.name for path in run.rglob("*")] == (["checkpoints"] if replaced else [])
    assert len(RunDir(Path("moved")).records()) == 2

    resumed = acdc("train", "moved", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert len(RunDir(Path("moved")).records()) == 6
