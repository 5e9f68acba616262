"""The queue: what a claim is, when one is taken over, and that no run is run twice whoever is killed when."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fake_runs
import pytest
from fake_runs import cells

from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import owner as owners
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.owner import Owner, is_gone
from acdc_cli.studies.run_queue import TRIES, Row, RunQueue

ME = Owner.this_process()
ELSEWHERE = Owner("elsewhere", 1, "another-boot", 1)


@pytest.fixture
def queue(tmp_path: Path) -> RunQueue:
    """Of three runs."""
    made = RunQueue(tmp_path / "ledger.sqlite", stale_after=60)
    made.add(cells(3))
    return made


def claimed(queue: RunQueue, owner: Owner = ME) -> Row:
    row = queue.claim(owner)
    assert row is not None
    return row


def summarise(row: Row) -> None:
    row.directory.mkdir(parents=True, exist_ok=True)
    (row.directory / "summary.json").write_text(json.dumps({}))


def states(queue: RunQueue) -> list[str]:
    return [row.state for row in queue.rows()]


@contextmanager
def dead_owner() -> Iterator[Owner]:
    """A process that was killed, and that its parent has not asked after: a zombie."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        alive = replace(ME, pid=process.pid, began=int(fields[19]))
        assert not is_gone(alive.id)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield alive


def test_runs_are_claimed_in_their_order_and_each_once(queue: RunQueue) -> None:
    assert [claimed(queue).key for _ in range(3)] == ["seed=0", "seed=1", "seed=2"]
    assert queue.claim(ME) is None
    row = queue.rows()[0]
    assert (row.state, row.attempts, row.host, row.pid, row.owner) == ("running", 1, ME.host, os.getpid(), ME.id)
    assert row.cell == cells(1)[0]


def test_cells_that_are_there_are_not_added_again(queue: RunQueue) -> None:
    claimed(queue)
    queue.add(cells(5))
    assert states(queue) == ["running"] + 4 * ["waiting"]


def test_a_cell_that_is_asked_for_with_other_settings_has_these_from_now_on(queue: RunQueue) -> None:
    claimed(queue)
    changed = [replace(cell, overrides=("optim.lr=0.5",)) for cell in cells(2)]
    queue.add(changed)
    assert [row.cell for row in queue.rows()] == [*changed, cells(3)[2]]
    assert states(queue) == ["running", "waiting", "waiting"]


def test_who_only_reads_does_not_write(queue: RunQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc_cli.studies.run_queue._PATIENCE", 0.01)
    # else another could not read meanwhile, and nobody could in a folder of somebody else's
    with queue.alone():
        assert len(RunQueue(queue._path).rows()) == 3


def test_a_run_whose_process_is_gone_is_taken_over_at_once_and_first(queue: RunQueue) -> None:
    with dead_owner() as dead:
        assert claimed(queue, dead).key == "seed=0"
        again = claimed(queue)
    assert (again.key, again.attempts, again.owner) == ("seed=0", 2, ME.id)


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(queue: RunQueue) -> None:
    claimed(queue, replace(ME, began=ME.began - 1))
    assert claimed(queue).key == "seed=0"


def test_a_process_without_a_trace_is_gone() -> None:
    # Linux gives no such number
    assert is_gone(replace(ME, pid=2**22 + 1).id)


def test_the_ledger_of_another_version_is_left_alone(queue: RunQueue) -> None:
    with sqlite3.connect(queue._path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RunError, match=r"ledger\.sqlite was written by another version of acdc \(99, not "):
        RunQueue(queue._path)


def test_a_process_of_another_machine_is_dead_when_it_has_been_silent_for_long(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    claimed(queue, ELSEWHERE)
    assert claimed(queue).key == "seed=1"
    now = 50
    assert queue.beat(ELSEWHERE) == {"seed=0"}
    assert claimed(queue).key == "seed=2"
    now = 109
    assert queue.claim(ME) is None
    now = 111
    assert claimed(queue).key == "seed=0"
    assert queue.beat(ELSEWHERE) == set()


@pytest.mark.parametrize("ahead", [-86400, 86400])
def test_a_clock_that_is_wrong_makes_nobody_dead_or_alive(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    now, theirs = 0.0, time.time() + ahead
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: theirs)
    claimed(queue, ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: theirs - ahead)
    assert [claimed(queue).key for _ in range(2)] == ["seed=1", "seed=2"]
    assert queue.claim(ME) is None
    now = 61
    assert claimed(queue).key == "seed=0"


def test_another_container_of_this_machine_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(ME, began=ME.began - 1)
    assert is_gone(gone.id)
    monkeypatch.setattr(owners, "_space", lambda: "this-boot.another-container")
    assert not is_gone(gone.id)


def test_who_has_lost_a_run_changes_nothing_of_it_any_more(queue: RunQueue) -> None:
    with dead_owner() as dead:
        row = claimed(queue, dead)
        claimed(queue)
        summarise(row)
        assert not queue.finish(row.key, dead)
        assert not queue.fail(row.key, dead, "too late")
        assert not queue.release(row.key, dead)
    assert queue.rows()[0].owner == ME.id


def test_a_run_that_somebody_still_trains_is_left_alone(queue: RunQueue) -> None:
    with dead_owner() as dead:
        orphan = RunDir(claimed(queue, dead).directory)
        with orphan.locked():
            assert claimed(queue).key == "seed=1"
        assert claimed(queue).key == "seed=0"


def test_a_run_that_is_trained_for_its_owner_is_looked_after_by_the_next(queue: RunQueue) -> None:
    with dead_owner() as dead:
        run = RunDir(claimed(queue, dead).directory)
        with run.locked():
            row = queue.claim(ME, under_way={"seed=0"})
    assert row is not None
    assert row.key == "seed=0"


def test_a_job_is_remembered_after_its_end(queue: RunQueue) -> None:
    claimed(queue)
    queue.record_jobs({"seed=0": "12_3 PENDING"})
    queue.release("seed=0", ME)
    assert [row.job for row in queue.rows()] == ["12_3 PENDING", None, None]


def test_a_run_that_came_to_its_end_without_its_sweep_is_done(queue: RunQueue) -> None:
    with dead_owner() as dead:
        summarise(claimed(queue, dead))
        assert claimed(queue).key == "seed=1"
    assert states(queue) == ["done", "running", "waiting"]


def test_done_needs_a_summary(queue: RunQueue) -> None:
    row = claimed(queue)
    with pytest.raises(AssertionError):
        queue.finish(row.key, ME)
    summarise(row)
    assert queue.finish(row.key, ME)
    queue.add(cells(3))
    assert states(queue) == ["done", "waiting", "waiting"]
    (row.directory / "summary.json").unlink()
    queue.add(cells(3))
    assert states(queue) == 3 * ["waiting"]


def test_a_run_that_fails_is_tried_once_more_after_the_others(queue: RunQueue) -> None:
    for key in ("seed=0", "seed=1", "seed=2", "seed=0"):
        assert claimed(queue).key == key
        assert queue.fail(key, ME, f"{key} is no good")
    row = queue.rows()[0]
    assert (row.state, row.attempts, row.failures, row.error) == ("failed", 2, 2, "seed=0 is no good")
    assert states(queue)[1:] == ["waiting", "waiting"]
    queue.retry_failed()
    assert [claimed(queue).key for _ in range(3)] == ["seed=0", "seed=1", "seed=2"]


def test_a_run_that_was_saved_goes_on_before_another_begins(queue: RunQueue) -> None:
    claimed(queue)
    claimed(queue)
    assert queue.release("seed=1", ME)
    row = claimed(queue)
    assert (row.key, row.attempts, row.failures) == ("seed=1", 2, 0)


def test_what_the_study_no_longer_has_is_forgotten_unless_it_runs(queue: RunQueue) -> None:
    summarise(claimed(queue))
    queue.finish("seed=0", ME)
    claimed(queue)
    assert queue.forget(lambda cell: False) == ["seed=0", "seed=2"]
    assert states(queue) == ["running"]
    queue.add(cells(2))
    # its summary is still there
    assert sorted(states(queue)) == ["done", "running"]


def test_rows_do_not_change_while_it_is_worked_out_what_follows_from_them(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acdc_cli.studies.run_queue._PATIENCE", 0.01)

    def four(rows: Sequence[Row]) -> list[Cell]:
        with pytest.raises(RunError, match="database is locked"):
            queue.claim(ME)
        return cells(4)

    assert queue.grow(four) == ["seed=3"]
    assert queue.grow(lambda rows: cells(len(rows))) == []


def test_who_is_alone_with_the_ledger_is(queue: RunQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc_cli.studies.run_queue._PATIENCE", 0.01)
    with queue.alone(), pytest.raises(RunError, match="database is locked"), RunQueue(queue._path).alone():
        pass


def test_a_fork_waits_for_the_state_of_its_source(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "ledger.sqlite")
    queue.add([Cell("fork", {}, ("fork=source@5",)), Cell("source", {}, ())])
    source = claimed(queue)
    assert source.key == "source"
    assert queue.claim(ME) is None
    state = RunDir(source.directory).kept_state(5)
    state.mkdir(parents=True)
    assert queue.claim(ME) is None, "the folder is there before the state"
    (state / "last.pt").touch()
    assert claimed(queue).key == "fork"


@pytest.mark.parametrize(
    ("finished", "said"), [(True, "source, which it forks, kept no state after 5 epochs"), (False, "has failed")]
)
def test_a_fork_of_a_run_that_will_never_keep_the_state_fails(tmp_path: Path, finished: bool, said: str) -> None:
    queue = RunQueue(tmp_path / "ledger.sqlite")
    queue.add([Cell("fork", {}, ("fork=source@5",)), Cell("source", {}, ())])
    for _ in range(1 if finished else TRIES):
        source = claimed(queue)
        if finished:
            summarise(source)
            queue.finish(source.key, ME)
        else:
            queue.fail(source.key, ME, "it broke")
    assert queue.claim(ME) is None
    fork = queue.rows()[0]
    assert fork.state == "failed"
    assert said in str(fork.error)


def test_a_damaged_ledger_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database, but long enough to look at" * 10)
    with pytest.raises(RunError, match=r"not a database.*move it away"):
        RunQueue(tmp_path / "ledger.sqlite")


def taken_over(folder: Path, rounds: int) -> int:
    """Studies of short runs, each by processes that are killed, and replaced, at random moments; each run is finished
    once. Returns how often a run was taken over."""
    subprocess.run([sys.executable, fake_runs.__file__, folder, str(rounds)], check=True)
    times = 0
    for number in range(rounds):
        place = folder / str(number)
        rows = RunQueue(place / "ledger.sqlite").rows()
        assert [row.state for row in rows] == fake_runs.RUNS * ["done"]
        assert all(RunDir(row.directory).finished for row in rows)
        assert not (place / "violations").exists(), (place / "violations").read_text()
        times += sum(row.attempts - 1 for row in rows)
    return times


def test_every_run_is_finished_once_whoever_is_killed(tmp_path: Path) -> None:
    assert taken_over(tmp_path, 3) > 0, "nothing was put to the test"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_run_is_finished_once_whoever_is_killed_in_200_rounds(tmp_path: Path) -> None:
    assert taken_over(tmp_path, 200) > 0, "nothing was put to the test"
