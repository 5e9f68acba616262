from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from epoch import recorded

from acdc_cli.errors import RunError, Stopped
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.runs import run_table
from acdc_cli.runs.outcome import outcome
from acdc_cli.runs.overview import find_runs, overview
from acdc_cli.runs.removal import removable, remove
from acdc_cli.runs.run_dir import RunDir

RESOLVED = resolved_yaml(load("demo"))
LAYERS = {"conv1": 0.0, "fc": 0.9}


def begun(path: Path, epochs: int = 0) -> RunDir:
    """A run of the demo that has trained so many epochs; no process is training there."""
    run = RunDir(path)
    run.start("extends: demo\n", RESOLVED, {"time": "2026-11-29T12:00:00+00:00"})
    lines = [recorded(epoch, top1=epoch / 10, layers=LAYERS) for epoch in range(epochs)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def finished(path: Path) -> RunDir:
    run = begun(path, 16)
    run.finish({"sparse": {"top1": 0.5, "sparsity": 0.75, "layers": LAYERS}, "dense": {"top1": 0.9, "layers": LAYERS}})
    return run


def test_each_status_is_what_the_files_and_the_lock_show(tmp_path: Path) -> None:
    finished(tmp_path / "finished")
    begun(tmp_path / "killed", 2)
    for name, error in (("stopped", Stopped("saved")), ("broken", RunError("the loss was NaN\nfor long"))):
        run = begun(tmp_path / name, 2)
        with pytest.raises(type(error)), run.recording_end():
            raise error
    running = begun(tmp_path / "running", 3)
    with running.locked():
        seen = {path.name: overview(path) for path in find_runs([tmp_path])}
    assert {name: (run.status, run.epoch, run.accuracy) for name, run in seen.items()} == {
        "finished": ("finished", 16, 0.5),
        "killed": ("failed", 2, 0.1),
        "stopped": ("stopped", 2, 0.1),
        "broken": ("failed", 2, 0.1),
        "running": ("running", 3, 0.2),
    }
    assert seen["broken"].note == "the loss was NaN for long"
    assert (seen["finished"].sparsity, seen["finished"].method, seen["finished"].epochs) == (0.75, "acdc", 16)
    assert seen["finished"].begun == datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()


def test_a_resumed_run_that_dies_is_not_called_stopped(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    with pytest.raises(Stopped), run.recording_end():
        raise Stopped("saved")
    run.record_provenance({"time": "2026-11-29T13:00:00+00:00"})
    assert (overview(run.path).status, overview(run.path).note) == ("failed", "killed, or its machine went down")


@pytest.mark.parametrize("name", ["resolved.yaml", "metrics.jsonl", "provenance.json", "summary.json"])
@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[1, 2", b'"text"\n'])
def test_a_damaged_run_is_a_row_that_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    run = finished(tmp_path / "run")
    (run.path / name).write_bytes(content)
    (seen,) = run_table.listed([tmp_path])
    if name == "metrics.jsonl" and content[-1:] != b"\n":
        # half a line is ignored: a process may have died there
        assert (seen.status, seen.epoch) == ("finished", 0)
        return
    assert seen.status == "damaged"
    assert seen.note is not None
    assert name in seen.note
    assert run_table.rows([seen])[0][1] == "damaged"
    assert run_table.facts(seen)[1][1].startswith("damaged: ")


def test_a_run_whose_start_is_no_date_has_none(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run.path / "provenance.json").write_text(json.dumps([{"time": "yesterday"}]))
    assert overview(run.path).begun is None


def test_damaged_weights_are_named_with_the_way_out(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    run.model_file("sparse").write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"sparse\.safetensors is damaged .*; restore a copy"):
        outcome(run, measures_of("multiclass"))


def test_runs_are_looked_for_in_the_usual_folders_and_missed_there(in_tmp: Path) -> None:
    with pytest.raises(RunError, match="neither a folder runs nor studies here"):
        run_table.listed(None)
    begun(in_tmp / "studies/s/runs/a")
    assert [run.path for run in run_table.listed(None)] == [Path("studies/s/runs/a")]


def test_runs_are_filtered_and_sorted(tmp_path: Path) -> None:
    for name, epochs in (("a", 3), ("b", 5), ("c", 4)):
        begun(tmp_path / "deep" / name, epochs)
    finished(tmp_path / "done")
    (tmp_path / "link").symlink_to(tmp_path / "deep")

    def names(*arguments: object) -> str:
        return "".join(run.path.name[0] for run in run_table.listed([tmp_path], *arguments))  # type: ignore[arg-type]

    assert names((), None, "epoch") == "dbca"
    assert names((), None, "epoch", True) == "acbd"
    assert names({"finished"}) == "d"
    assert names((), "/deep/", "name") == "abc"
    assert names((), "acdc", "accuracy") == "dbca"
    assert names((), "no such text") == ""


def test_spans_are_short() -> None:
    spans = [run_table.span(seconds) for seconds in (-5, 0, 59, 60, 3599, 3600, 86399, 86400 * 400)]
    assert spans == ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "400 d"]


def test_only_run_directories_in_which_nothing_trains_can_be_removed(tmp_path: Path) -> None:
    run = begun(tmp_path / "runs/a")
    (tmp_path / "runs/resolved.yaml").touch()
    for wrong, why in ((tmp_path / "runs", "is not a run"), (tmp_path / "none", "is not a run")):
        with pytest.raises(RunError, match=why):
            removable([run.path, wrong])
    (tmp_path / "runs/recipe.yaml").touch()
    with pytest.raises(RunError, match="holds other runs"):
        removable([tmp_path / "runs"])
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(RunError, match="is a link"):
        removable([tmp_path / "link"])
    with run.locked():
        with pytest.raises(RunError, match="a process is training"):
            removable([run.path])
        with pytest.raises(RunError, match="another process is training"):
            remove(run.path)
    assert run.resolved.exists()
    (one,) = removable([run.path])
    assert one.description.startswith("failed, 0 of 16 epochs, 0.0 MB")
    remove(run.path)
    assert list((tmp_path / "runs").iterdir()) != []
    assert not run.path.exists()


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run")

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "masks"))

    monkeypatch.setattr("shutil.rmtree", refused)
    with pytest.raises(RunError, match=r"run/masks cannot be removed: Permission denied; remove it by hand"):
        remove(run.path)
