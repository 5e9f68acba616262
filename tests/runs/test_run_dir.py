from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from epoch import recorded

from acdc_cli import files
from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.training.checkpoint import load_state, save_state


def started(path: Path) -> RunDir:
    run = RunDir(path)
    run.start("name: a\n", "name: a\nseed: 0\n", {"command": ["acdc"]})
    return run


def lines(*epochs: int) -> str:
    return "".join(json.dumps(recorded(epoch)) + "\n" for epoch in epochs)


def test_a_run_keeps_the_recipe_as_given_and_as_resolved(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    assert (run.path / "recipe.yaml").read_text() == "name: a\n"
    assert run.resolved.read_text() == "name: a\nseed: 0\n"
    assert open_run(run.path).path == run.path


def test_a_finished_run_is_never_overwritten(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.finish({"status": "finished"})
    with pytest.raises(RunError, match=r"never overwritten.*--out"):
        RunDir(run.path).start("", "", {})


def test_an_unfinished_run_is_refused_with_the_way_to_resume(tmp_path: Path) -> None:
    started(tmp_path / "run").metrics.write_text(lines(0))
    with pytest.raises(RunError, match="--resume"):
        started(tmp_path / "run")


def test_a_run_that_ended_before_its_first_epoch_did_may_be_started_anew(tmp_path: Path) -> None:
    RunDir(tmp_path / "run").start("", "name: a\n", {}, {"model.py": b"of another recipe"})
    run = started(tmp_path / "run")
    assert len(run.provenance()) == 1
    assert run.records() == []
    assert not run.code.exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not a run of acdc"):
        started(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_with_checkpoints_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text("of somebody else")
    with pytest.raises(RunError, match="is not a run of acdc"):
        started(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "of somebody else"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert started(tmp_path).resolved.exists()


def test_rewinding_forgets_the_epochs_that_will_be_made_again(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.metrics.write_text(lines(0, 1, 2, 3))
    run.rewind_metrics(2)
    assert run.records() == [recorded(0), recorded(1)]


def test_rewinding_says_which_epochs_have_no_record_or_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path / "run")
    again = json.dumps(recorded(2, top1=0.5)) + "\n"
    run.metrics.write_text(lines(0, 4, 2) + again + lines(5, 5))
    run.rewind_metrics(5)
    said = " ".join(capsys.readouterr().err.split())
    assert "metrics.jsonl has no record of 2 epochs (1, 3): restore a copy, or tables and curves lack them" in said
    assert "metrics.jsonl had several records of epoch 2: the last one of each is kept" in said
    assert run.metrics.read_text() == lines(0) + again + lines(4)
    run.metrics.write_text(lines(0, 1, 2, 2))
    run.rewind_metrics(2)
    assert capsys.readouterr().err == ""


def test_a_record_cut_off_while_it_was_written_is_none(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.metrics.write_text(lines(0) + '{"epoch": 1, "sta')
    assert run.records() == [recorded(0)]
    run.rewind_metrics(1)
    assert run.metrics.read_text() == lines(0)


def test_only_one_process_trains_in_a_directory(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    with run.locked(), pytest.raises(RunError, match="another process is training in"), RunDir(run.path).locked():
        pass
    with run.locked():
        pass


@pytest.mark.parametrize("where", ["train.lock", "nowhere"])
def test_a_link_in_place_of_the_lock_is_refused_and_its_target_kept(tmp_path: Path, where: str) -> None:
    (tmp_path / "train.lock").write_text("of somebody else")
    run = started(tmp_path / "run")
    (run.checkpoints / ".lock").symlink_to(tmp_path / where)
    with pytest.raises(RunError, match=r"lock cannot be written: a symbolic link stands in its place"), run.locked():
        pass
    assert (tmp_path / "train.lock").read_text() == "of somebody else"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["checkpoints/.last.pt.partial", ".summary.json.partial"])
def test_no_write_follows_a_link_out_of_the_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("of somebody else")
    run = started(tmp_path / "run")
    with run.locked():
        (run.path / name).symlink_to(tmp_path / "precious")
        save_state(run.checkpoints, {})
        run.finish({})
    assert (tmp_path / "precious").read_text() == "of somebody else"
    assert load_state(run.checkpoints) is not None


def test_a_lock_leaves_what_its_file_holds(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (run.checkpoints / ".lock").write_text("of somebody else")
    with run.locked():
        assert run.in_use
    assert (run.checkpoints / ".lock").read_text() == "of somebody else"


@pytest.mark.parametrize("where", [".", "checkpoints"])
@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_written_where_a_run_was_once_it_is_moved(tmp_path: Path, where: str, replaced: bool) -> None:
    run = started(tmp_path / "run")
    folder, elsewhere = run.path / where, tmp_path / "elsewhere"
    writes = [lambda: run.finish({}), lambda: files.append_line(run.metrics, "{}")] if where == "." else []
    writes.append(lambda: save_state(run.checkpoints, {}))
    with run.locked():
        folder.rename(elsewhere)
        if replaced:
            folder.mkdir()
            (folder / "checkpoints").mkdir()
        for write in writes:
            with pytest.raises(RunError, match=f"{folder} was moved away or replaced"):
                write()
        if replaced:
            assert [path.name for path in folder.rglob("*")] == ["checkpoints"]
            shutil.rmtree(folder)
        # a link there leads to the same folder
        folder.symlink_to(elsewhere)
        save_state(run.checkpoints, {})
    # only the process that trains here is concerned
    folder.unlink()
    started(tmp_path / "run") if where == "." else folder.mkdir()


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from acdc_cli.runs.run_dir import RunDir

with RunDir(Path(sys.argv[1])).locked():
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free_at_once_though_its_children_live_on(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(RunError, match="another process is training in"), run.locked():
                pass
            holder.kill()
            holder.wait()
            with run.locked():
                os.kill(child, 0)
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)


def test_a_run_with_only_the_state_before_the_last_is_not_begun_anew(tmp_path: Path) -> None:
    (started(tmp_path / "run").checkpoints / "previous.pt").write_bytes(b"state")
    with pytest.raises(RunError, match="--resume"):
        started(tmp_path / "run")


def test_a_damaged_record_is_named_by_its_line(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.metrics.write_bytes(lines(0).encode() + b'{"epo\xff": 1}\n' + lines(2).encode())
    with pytest.raises(RunError, match=r"line 2 of .*metrics\.jsonl is damaged .*; restore a copy"):
        run.records()


def test_damaged_provenance_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (run.path / "provenance.json").write_text("[{")
    with pytest.raises(RunError, match=r"provenance\.json is damaged .*; restore a copy"):
        run.provenance()


def test_a_resolved_recipe_without_its_blocks_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"resolved\.yaml is no resolved recipe \(epochs: .*\); restore a copy"):
        started(tmp_path / "run").recipe()


def test_every_resumption_adds_to_the_provenance(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.record_provenance({"command": ["acdc", "--resume"]})
    assert (run.path / "provenance.json").read_text().count('"command"') == 2


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        open_run(tmp_path)


def test_what_dead_processes_left_half_written_goes_with_the_next_and_nothing_else_does(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    whole = set(run.path.rglob("*"))
    # all that a process leaves that dies between the two renames of its last checkpoint, and in a summary
    for name in ("checkpoints/.last.pt.older", ".summary.json.partial"):
        (run.path / name).write_text("half")
    with run.locked():
        assert set(run.path.rglob("*")) == whole | {run.checkpoints / ".lock"}


def test_a_full_disk_whose_folder_is_gone_is_told_as_full(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"summary\.json cannot be written: the disk is full"),
        files.explained(tmp_path / "gone" / "summary.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_sealed_file_takes_nothing_more_after_a_write_that_failed() -> None:
    class FailsOnce(io.BytesIO):
        def write(self, data: Any) -> int:
            self.write = super().write  # type: ignore[method-assign]
            raise OSError(errno.ENOSPC, "No space left on device")

    file = FailsOnce()
    sealing = files._Sealing(file)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            sealing.write(b"more")
    assert file.getvalue() == b""
