from __future__ import annotations

import json
from pathlib import Path

from command import Acdc, Finished, run_acdc
from typer.testing import CliRunner


def test_runs_lists_shows_and_removes(finished: Finished, acdc: Acdc) -> None:
    finished()
    finished("runs/twice")
    # as a process that died at its end leaves it
    Path("runs/twice/summary.json").unlink()
    listed = acdc("runs", "list", "--sort", "name")
    assert [line.split()[:3] for line in listed.stdout.splitlines()] == [
        ["run", "status", "epochs"],
        ["runs/small-0", "finished", "6/6"],
        ["runs/twice", "failed", "6/6"],
    ]
    assert [line.split()[:3] for line in acdc("runs", "list").stdout.splitlines()] == [
        line.split()[:3] for line in acdc("runs").stdout.splitlines()
    ]
    assert max(map(len, listed.stdout.splitlines())) <= 80
    assert "runs/twice: failed: killed, or its machine went down" in listed.stderr
    (only,) = json.loads(acdc("runs", "list", "--json", "--status", "finished").stdout)
    summary = json.loads(Path("runs/small-0/summary.json").read_text())
    assert (only["path"], only["accuracy"], only["note"]) == ("runs/small-0", summary["sparse"]["top1"], None)
    shown = acdc("runs", "show", "runs/small-0").stdout
    assert "resnet8 on folder, acdc to 0.9, seed 0" in shown
    assert "sparse.safetensors" in shown
    assert json.loads(acdc("runs", "show", "runs/small-0", "--json").stdout) == only
    compared = json.loads(acdc("runs", "compare", "runs/small-0", "runs/twice", "--json").stdout)
    assert "runs/twice" in json.dumps(compared)


def test_removing_asks_and_refuses_what_is_no_run(finished: Finished) -> None:
    from acdc_cli.cli.app import app

    finished()
    refused = run_acdc("runs", "rm", "--yes", "runs/small-0", "runs")
    assert (refused.exit_code, Path("runs/small-0").exists()) == (2, True)
    assert "error: runs is not a run directory" in refused.stderr
    CliRunner().invoke(app, ["runs", "rm", "runs/small-0"], input="n\n")
    assert Path("runs/small-0").exists()
    CliRunner().invoke(app, ["runs", "rm", "runs/small-0"], input="y\n")
    assert not Path("runs/small-0").exists()
    empty = run_acdc("runs", "list", "elsewhere")
    assert (empty.exit_code, empty.stderr.strip()) == (
        2,
        "error: elsewhere is not a folder; name one that holds run directories, such as runs",
    )
