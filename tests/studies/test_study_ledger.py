"""The ledger: what a claim is, when one is taken over, and that no run is run twice whoever is killed when."""

from __future__ import annotations

import json
import os
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
from acdc_cli.studies.ledger import Ledger, Row
from acdc_cli.studies.owner import Owner, is_gone

ME = Owner.this_process()
ELSEWHERE = Owner("elsewhere", 1, "another-boot", 1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Of three runs."""
    made = Ledger(tmp_path / "ledger.sqlite", stale_after=60)
    made.add(cells(3))
    return made


def claimed(ledger: Ledger, owner: Owner = ME) -> Row:
    row = ledger.claim(owner)
    assert row is not None
    return row


def summarise(row: Row) -> None:
    row.directory.mkdir(parents=True, exist_ok=True)
    (row.directory / "summary.json").write_text(json.dumps({}))


def states(ledger: Ledger) -> list[str]:
    return [row.state for row in ledger.rows()]


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


def test_runs_are_claimed_in_their_order_and_each_once(ledger: Ledger) -> None:
    assert [claimed(ledger).key for _ in range(3)] == ["seed=0", "seed=1", "seed=2"]
    assert ledger.claim(ME) is None
    row = ledger.rows()[0]
    assert (row.state, row.attempts, row.host, row.pid, row.owner) == ("running", 1, ME.host, os.getpid(), ME.id)
    assert row.cell == cells(1)[0]


def test_cells_that_are_there_are_not_added_again(ledger: Ledger) -> None:
    claimed(ledger)
    ledger.add(cells(5))
    assert states(ledger) == ["running"] + 4 * ["waiting"]


def test_a_cell_that_is_asked_for_with_other_settings_has_these_from_now_on(ledger: Ledger) -> None:
    claimed(ledger)
    changed = [replace(cell, overrides=("optim.lr=0.5",)) for cell in cells(2)]
    ledger.add(changed)
    assert [row.cell for row in ledger.rows()] == [*changed, cells(3)[2]]
    assert states(ledger) == ["running", "waiting", "waiting"]


def test_who_only_reads_does_not_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc_cli.studies.ledger._PATIENCE", 0.01)
    # else another could not read meanwhile, and nobody could in a folder of somebody else's
    with ledger.alone():
        assert len(Ledger(ledger._path).rows()) == 3


def test_a_run_whose_process_is_gone_is_taken_over_at_once_and_first(ledger: Ledger) -> None:
    with dead_owner() as dead:
        assert claimed(ledger, dead).key == "seed=0"
        again = claimed(ledger)
    assert (again.key, again.attempts, again.owner) == ("seed=0", 2, ME.id)


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(ledger: Ledger) -> None:
    claimed(ledger, replace(ME, began=ME.began - 1))
    assert claimed(ledger).key == "seed=0"


def test_a_process_of_another_machine_is_dead_when_it_has_been_silent_for_long(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    claimed(ledger, ELSEWHERE)
    assert claimed(ledger).key == "seed=1"
    now = 50
    assert ledger.beat(ELSEWHERE) == {"seed=0"}
    assert claimed(ledger).key == "seed=2"
    now = 109
    assert ledger.claim(ME) is None
    now = 111
    assert claimed(ledger).key == "seed=0"
    assert ledger.beat(ELSEWHERE) == set()


@pytest.mark.parametrize("ahead", [-86400, 86400])
def test_a_clock_that_is_wrong_makes_nobody_dead_or_alive(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    now, theirs = 0.0, time.time() + ahead
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: theirs)
    claimed(ledger, ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: theirs - ahead)
    assert [claimed(ledger).key for _ in range(2)] == ["seed=1", "seed=2"]
    assert ledger.claim(ME) is None
    now = 61
    assert claimed(ledger).key == "seed=0"


def test_another_container_of_this_machine_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(ME, began=ME.began - 1)
    assert is_gone(gone.id)
    monkeypatch.setattr(owners, "_space", lambda: "this-boot.another-container")
    assert not is_gone(gone.id)


def test_who_has_lost_a_run_changes_nothing_of_it_any_more(ledger: Ledger) -> None:
    with dead_owner() as dead:
        row = claimed(ledger, dead)
        claimed(ledger)
        summarise(row)
        assert not ledger.finish(row.key, dead)
        assert not ledger.fail(row.key, dead, "too late")
        assert not ledger.release(row.key, dead)
    assert ledger.rows()[0].owner == ME.id


def test_a_run_that_somebody_still_trains_is_left_alone(ledger: Ledger) -> None:
    with dead_owner() as dead:
        orphan = RunDir(claimed(ledger, dead).directory)
        with orphan.locked():
            assert claimed(ledger).key == "seed=1"
        assert claimed(ledger).key == "seed=0"


def test_a_run_that_is_trained_for_its_owner_is_looked_after_by_the_next(ledger: Ledger) -> None:
    with dead_owner() as dead:
        run = RunDir(claimed(ledger, dead).directory)
        with run.locked():
            row = ledger.claim(ME, under_way={"seed=0"})
    assert row is not None
    assert row.key == "seed=0"


def test_a_job_is_remembered_after_its_end(ledger: Ledger) -> None:
    claimed(ledger)
    ledger.record_jobs({"seed=0": "12_3 PENDING"})
    ledger.release("seed=0", ME)
    assert [row.job for row in ledger.rows()] == ["12_3 PENDING", None, None]


def test_a_run_that_came_to_its_end_without_its_sweep_is_done(ledger: Ledger) -> None:
    with dead_owner() as dead:
        summarise(claimed(ledger, dead))
        assert claimed(ledger).key == "seed=1"
    assert states(ledger) == ["done", "running", "waiting"]


def test_done_needs_a_summary(ledger: Ledger) -> None:
    row = claimed(ledger)
    with pytest.raises(AssertionError):
        ledger.finish(row.key, ME)
    summarise(row)
    assert ledger.finish(row.key, ME)
    ledger.add(cells(3))
    assert states(ledger) == ["done", "waiting", "waiting"]
    (row.directory / "summary.json").unlink()
    ledger.add(cells(3))
    assert states(ledger) == 3 * ["waiting"]


def test_a_run_that_fails_is_tried_once_more_after_the_others(ledger: Ledger) -> None:
    for key in ("seed=0", "seed=1", "seed=2", "seed=0"):
        assert claimed(ledger).key == key
        assert ledger.fail(key, ME, f"{key} is no good")
    row = ledger.rows()[0]
    assert (row.state, row.attempts, row.failures, row.error) == ("failed", 2, 2, "seed=0 is no good")
    assert states(ledger)[1:] == ["waiting", "waiting"]
    ledger.retry_failed()
    assert [claimed(ledger).key for _ in range(3)] == ["seed=0", "seed=1", "seed=2"]


def test_a_run_that_was_saved_goes_on_before_another_begins(ledger: Ledger) -> None:
    claimed(ledger)
    claimed(ledger)
    assert ledger.release("seed=1", ME)
    row = claimed(ledger)
    assert (row.key, row.attempts, row.failures) == ("seed=1", 2, 0)


def test_what_the_study_no_longer_has_is_forgotten_unless_it_runs(ledger: Ledger) -> None:
    summarise(claimed(ledger))
    ledger.finish("seed=0", ME)
    claimed(ledger)
    assert ledger.forget(lambda cell: False) == ["seed=0", "seed=2"]
    assert states(ledger) == ["running"]
    ledger.add(cells(2))
    # its summary is still there
    assert sorted(states(ledger)) == ["done", "running"]


def test_rows_do_not_change_while_it_is_worked_out_what_follows_from_them(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acdc_cli.studies.ledger._PATIENCE", 0.01)

    def four(rows: Sequence[Row]) -> list[Cell]:
        with pytest.raises(RunError, match="database is locked"):
            ledger.claim(ME)
        return cells(4)

    assert ledger.grow(four) == ["seed=3"]
    assert ledger.grow(lambda rows: cells(len(rows))) == []


def test_who_is_alone_with_the_ledger_is(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc_cli.studies.ledger._PATIENCE", 0.01)
    with ledger.alone(), pytest.raises(RunError, match="database is locked"), Ledger(ledger._path).alone():
        pass


def test_a_damaged_ledger_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database, but long enough to look at" * 10)
    with pytest.raises(RunError, match=r"not a database.*move it away"):
        Ledger(tmp_path / "ledger.sqlite")


def finished_once_each(folder: Path, rounds: int) -> None:
    """Studies of short runs, each by processes that are killed, and replaced, at random moments."""
    subprocess.run([sys.executable, fake_runs.__file__, folder, str(rounds)], check=True)
    taken_over = 0
    for number in range(rounds):
        place = folder / str(number)
        rows = Ledger(place / "ledger.sqlite").rows()
        assert [row.state for row in rows] == fake_runs.RUNS * ["done"]
        assert all(RunDir(row.directory).finished for row in rows)
        assert not (place / "violations").exists(), (place / "violations").read_text()
        taken_over += sum(row.attempts - 1 for row in rows)
    # else nothing was put to the test
    assert taken_over > 0


def test_every_run_is_finished_once_whoever_is_killed(tmp_path: Path) -> None:
    finished_once_each(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_run_is_finished_once_whoever_is_killed_in_200_rounds(tmp_path: Path) -> None:
    finished_once_each(tmp_path, 200)
