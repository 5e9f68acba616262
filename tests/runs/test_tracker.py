from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from epoch import recorded

from acdc_cli.recipe.blocks.run import TrackBlock
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import Report, publish_report, trackers, wandb_mode

RECORDS: list[dict[str, Any]] = [
    recorded(0, step=5, phase="dense", train_loss=2.25, sparsity=0.0, layers={"conv1": 0.0, "fc": 0.5}),
    recorded(1, step=10, phase="sparse", train_loss=1.5, sparsity=0.9, layers={"conv1": 0.5, "fc": 1.0}),
]


def track(folder: Path, mode: str) -> RunDir:
    run = RunDir(folder)
    run.start("", "", {})
    log(run, mode, RECORDS)
    return run


def log(run: RunDir, mode: str, records: list[dict[str, Any]], failed: bool = False) -> None:
    """What one process does."""
    tracking = trackers(TrackBlock.model_validate({"wandb": mode}), run, "test", {"seed": 3})
    for record in records:
        for tracker in tracking:
            tracker.log(record)
    for tracker in tracking:
        tracker.alert("collapsing")
        if not failed:
            tracker.finish({"status": "finished"})
        tracker.close(failed)


def mirrored(run: RunDir) -> list[dict[str, Any]]:
    """The run's history as W&B itself reads it out of the offline file of each process."""
    return [row["history"]["item"] for row in offline_rows(run) if row["type"] == "history"]


def offline_rows(run: RunDir) -> list[dict[str, Any]]:
    rows = []
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return rows


def table(run: RunDir, item: dict[str, Any]) -> dict[str, float]:
    (file,) = run.path.glob(f"wandb/offline-run-*/files/{item['layers.path']}")
    return dict(json.loads(file.read_text())["data"])


def test_wandb_mirrors_the_file_exactly(tmp_path: Path) -> None:
    run = track(tmp_path / "run", "offline")
    assert run.records() == RECORDS
    rows = offline_rows(run)
    items = [row["history"]["item"] for row in rows if row["type"] == "history"]
    assert [item["_step"] for item in items] == [5, 10]
    own = [{key: value for key, value in item.items() if key[0] != "_" and "layers." not in key} for item in items]
    assert [plain | {"layers": table(run, item)} for plain, item in zip(own, items, strict=True)] == RECORDS
    assert [row["alert"]["text"] for row in rows if row["type"] == "alert"] == ["collapsing"]


@pytest.mark.slow
def test_a_resumed_run_is_the_same_in_wandb_and_logs_no_step_twice(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.start("", "", {})
    log(run, "offline", RECORDS[:1], failed=True)
    run.rewind_metrics(0)
    log(run, "offline", RECORDS)
    assert run.records() == RECORDS
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 2
    assert [item["_step"] for item in mirrored(run)] == [5, 10]
    identities = [row["run"]["run_id"] for row in offline_rows(run) if row["type"] == "run"]
    assert identities == [run.wandb_id.read_text()] * 2


def test_a_damaged_file_of_wandbs_ends_the_mirroring_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    run.start("", "", {})
    run.wandb_step.write_text("five")
    log(run, "offline", RECORDS)
    assert run.records() == RECORDS
    assert capsys.readouterr().err.count("W&B is not available") == 1


def test_disabled_writes_the_file_alone(tmp_path: Path) -> None:
    run = track(tmp_path / "run", "disabled")
    assert run.records() == RECORDS
    assert not (run.path / "wandb").exists()


def test_wandb_that_fails_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def broken(**_: object) -> None:
        raise wandb.errors.UsageError("its files cannot be written")

    monkeypatch.setattr(wandb, "init", broken)
    run = track(tmp_path / "run", "offline")
    assert run.records() == RECORDS
    assert capsys.readouterr().err.count("W&B is not available (its files cannot be written)") == 1


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_without_wandb_the_run_goes_on(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert track(tmp_path / "run", mode).records() == RECORDS
    assert capsys.readouterr().err.count("W&B is not available") == 1


def test_without_wandb_a_report_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    publish_report(TrackBlock(wandb="offline"), tmp_path, Report("small", tmp_path, {}))
    assert "; the report is complete" in capsys.readouterr().err


def test_a_server_out_of_reach_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    original = wandb.init

    def unreachable(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return original(**settings)

    monkeypatch.setattr(wandb, "init", unreachable)
    run = track(tmp_path / "run", "online")
    assert "W&B cannot be reached (no route to host)" in capsys.readouterr().err
    assert len(mirrored(run)) == 2


def test_auto_is_offline_without_a_login_and_follows_wandbs_own_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    assert wandb_mode("online") == "online"


def test_auto_is_online_with_a_key_or_a_netrc_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "0" * 40)
        assert wandb_mode("auto") == "online"
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode("auto") == "online"


@pytest.mark.parametrize("name", ["netrc", "."])
def test_a_login_that_cannot_be_read_is_none(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "netrc").write_text("machine wandb.example.org passwort secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / name))
    assert wandb_mode("auto") == "offline"
    assert "W&B's login cannot be read" in capsys.readouterr().err
