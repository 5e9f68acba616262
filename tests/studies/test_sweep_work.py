"""A sweep and how its runs end: with small programs in the place of `acdc train`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from fake_runs import cells

from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import scheduler as sweeps
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.launcher import Launcher
from acdc_cli.studies.local import Local, LocalJob, workers
from acdc_cli.studies.owner import Owner
from acdc_cli.studies.run_queue import Row, RunQueue
from acdc_cli.studies.scheduler import Sweep

CORES = sorted(os.sched_getaffinity(0))
ELSEWHERE = Owner("elsewhere", 1, "another-boot", 1)
WELL = "import pathlib, sys; run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True, exist_ok=True); "
DONE = WELL + "(run / 'summary.json').write_text('{}')"
ONCE_75 = WELL + "saved = run / 'saved'; saved.exists() and (run / 'summary.json').write_text('{}'); "
ONCE_75 += "code = 0 if saved.exists() else 75; saved.touch(); sys.exit(code)"
SAVES = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True); "
SAVES += "time.sleep(60)"


class Said:
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def draw(self, rows: Sequence[Row], own: set[str]) -> None:
        pass


class Outliving(Local):
    """As a cluster: its runs go on when the sweep ends, and whoever starts one anew gets the one that is there."""

    outlives = True

    def __init__(self) -> None:
        super().__init__(workers(1, CORES, []))
        self.jobs: dict[str, LocalJob] = {}

    def under_way(self) -> tuple[str, ...]:
        return tuple(key for key, job in self.jobs.items() if job.poll() is None)

    def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> LocalJob:
        if cell.key not in self.under_way():
            self.jobs[cell.key] = super().start(cell, command, environment, log)
            self.jobs[cell.key].stop = lambda signal: None  # type: ignore[method-assign]
        return self.jobs[cell.key]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_PAUSE", 0.02)


@pytest.fixture
def queue(in_tmp: Path) -> RunQueue:
    """Of three runs."""
    queue = RunQueue(in_tmp / "ledger.sqlite")
    queue.add(cells(3))
    return queue


def swept(
    queue: RunQueue,
    programs: dict[str, str],
    stop: Callable[[], bool] = lambda: False,
    lengthen: Callable[[], Sequence[str]] = tuple,
    launcher: Launcher | None = None,
) -> list[str]:
    """What was said. programs: Python of a run, by key; the others do well."""
    said, logs = Said(), Path("logs")
    logs.mkdir(exist_ok=True)

    def command(row: Row) -> list[str]:
        return [sys.executable, "-c", programs.get(row.key, DONE), str(row.directory)]

    launcher = launcher or Local(workers(2, CORES, []))
    Sweep(queue, Owner.this_process(), launcher, command, logs, lengthen, said).work(stop)
    return said.lines


def by_key(queue: RunQueue) -> dict[str, Row]:
    return {row.key: row for row in queue.rows()}


def test_all_runs_come_to_their_end(queue: RunQueue) -> None:
    said = swept(queue, {})
    assert [(row.state, row.attempts) for row in queue.rows()] == 3 * [("done", 1)]
    assert sorted(said) == sorted(f"seed={seed}: {what}" for seed in range(3) for what in ("starts", "done"))


def test_a_run_that_fails_is_tried_twice_and_told_with_its_error_and_the_others_go_on(queue: RunQueue) -> None:
    program = "print('epoch 1'); print('error: no data set there\\nput it there'); raise SystemExit(2)"
    said = swept(queue, {"seed=0": program})
    rows = by_key(queue)
    assert [row.state for row in rows.values()] == ["failed", "done", "done"]
    assert rows["seed=0"].attempts == 2
    assert rows["seed=0"].error == "exit code 2: error: no data set there\nput it there"
    assert [line for line in said if "failed" in line] == [
        "seed=0: failed, tried again later: put it there",
        "seed=0: failed, given up: put it there",
    ]


def test_the_error_is_that_of_the_last_try(queue: RunQueue) -> None:
    program = (
        WELL + "again = run / 'again'; print('second' if again.exists() else 'error: first'); again.touch(); 1 / 0"
    )
    swept(queue, {"seed=1": program})
    error = by_key(queue)["seed=1"].error
    assert error is not None
    assert error.startswith("exit code 1: second\n")
    assert error.endswith("ZeroDivisionError: division by zero")


def test_a_run_that_is_killed_has_failed(queue: RunQueue) -> None:
    swept(queue, {"seed=2": "import os; os.kill(os.getpid(), 9)"})
    assert by_key(queue)["seed=2"].error == "ended by SIGKILL (out of memory?): no output"


def test_a_run_that_ends_well_without_a_summary_has_failed(queue: RunQueue) -> None:
    swept(queue, {"seed=2": "print('bye')"})
    assert by_key(queue)["seed=2"].error == "exit code 0: bye"


def test_a_run_that_saved_itself_goes_on_and_has_not_failed(queue: RunQueue) -> None:
    swept(queue, {"seed=1": ONCE_75})
    row = by_key(queue)["seed=1"]
    assert (row.state, row.attempts, row.failures) == ("done", 2, 0)


def test_a_run_that_another_process_trains_is_waited_for(queue: RunQueue) -> None:
    other = RunDir(by_key(queue)["seed=0"].directory)
    with other.locked():
        timer = threading.Timer(0.5, lambda: (other.path / "summary.json").write_text("{}"))
        timer.start()
        said = swept(queue, {})
        timer.join()
    assert [(row.state, row.attempts) for row in queue.rows()] == [("done", 0), ("done", 1), ("done", 1)]
    assert not any(line.startswith("seed=0") for line in said)


def test_a_run_that_finds_another_process_training_there_has_not_failed(queue: RunQueue) -> None:
    run = RunDir(by_key(queue)["seed=0"].directory)
    finds_it = WELL + "(run / 'found').touch(); sys.exit(2)"

    def other() -> None:
        """Comes between the claim and the run."""
        while not (run.path / "found").parent.exists():
            time.sleep(0.001)
        with run.locked():
            time.sleep(0.5)
            (run.path / "summary.json").write_text("{}")

    thread = threading.Thread(target=other)
    thread.start()
    said = swept(queue, {"seed=0": finds_it.replace("(run", "import time; time.sleep(0.2); (run")})
    thread.join()
    row = by_key(queue)["seed=0"]
    assert (row.state, row.attempts, row.failures) == ("done", 1, 0)
    assert "seed=0: another process still trains it" in said


def test_runs_that_are_stopped_save_and_wait(queue: RunQueue) -> None:
    logs = [Path("logs") / f"seed={seed}.log" for seed in range(2)]
    ready = lambda: all(log.exists() and "ready" in log.read_text() for log in logs)  # noqa: E731
    said = swept(queue, {f"seed={seed}": SAVES for seed in range(3)}, stop=ready)
    assert [(row.state, row.attempts) for row in queue.rows()] == [("waiting", 1), ("waiting", 1), ("waiting", 0)]
    # the two end in any order
    assert [said[-3], *sorted(said[-2:])] == [
        "stopping: 2 runs are saving",
        "seed=0: saved, to resume later",
        "seed=1: saved, to resume later",
    ]


def test_runs_do_not_stay_behind_when_the_sweep_breaks_off(queue: RunQueue) -> None:
    def breaks() -> bool:
        if Path("logs/seed=1.log").exists() and "ready" in Path("logs/seed=1.log").read_text():
            raise KeyboardInterrupt
        return False

    local = Local(workers(2, CORES, []))
    with pytest.raises(KeyboardInterrupt):
        swept(queue, {f"seed={seed}": SAVES for seed in range(3)}, breaks, launcher=local)
    end = time.monotonic() + 30
    while None in (codes := [job.poll() for job in local._jobs]):
        assert time.monotonic() < end, "a run goes on"
        time.sleep(0.01)
    assert set(codes) <= {75, -15}


def test_runs_that_outlive_the_sweep_are_left_to_go_on_and_looked_after_by_the_next(queue: RunQueue) -> None:
    cluster = Outliving()
    swept(queue, {"seed=0": SAVES}, stop=lambda: bool(cluster.jobs), launcher=cluster)
    job = cluster.jobs["seed=0"]
    assert [row.state for row in queue.rows()] == ["waiting", "waiting", "waiting"]
    assert job.poll() is None
    with ExitStack() as training:
        training.enter_context(RunDir(by_key(queue)["seed=0"].directory).locked())

        def end_it() -> bool:
            if by_key(queue)["seed=0"].attempts == 2 and job.poll() is None:
                job._process.terminate()
                training.close()
            return False

        swept(queue, {}, end_it, launcher=cluster)
    assert [(row.state, row.attempts) for row in queue.rows()] == [("done", 3), ("done", 1), ("done", 1)]


def test_who_was_silent_for_so_long_that_the_run_is_anothers_kills_its_own(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "BEAT_EVERY", 0.0)
    log, polls = Path("logs/seed=0.log"), count()

    def taken_over() -> bool:
        ready = log.exists() and "ready" in log.read_text()
        poll = next(polls) if ready else -1
        if poll == 0:
            queue.release("seed=0", Owner.this_process())
            row = queue.claim(ELSEWHERE)
            assert row is not None
            assert row.key == "seed=0"
        elif poll == 5:
            row = by_key(queue)["seed=0"]
            row.directory.mkdir(parents=True)
            (row.directory / "summary.json").write_text("{}")
            queue.finish("seed=0", ELSEWHERE)
        return False

    began = time.monotonic()
    said = swept(queue, {"seed=0": SAVES}, taken_over)
    assert time.monotonic() - began < 30, "the run was not killed"
    assert [line for line in said if line.startswith("seed=0")] == [
        "seed=0: starts",
        "seed=0: this sweep sent no heartbeat for so long that another sweep took the run over",
    ]
    row = by_key(queue)["seed=0"]
    assert (row.state, row.failures, row.host) == ("done", 0, "elsewhere")


def test_what_follows_from_the_runs_that_are_done_is_run_too(queue: RunQueue) -> None:
    def lengthen() -> list[str]:
        if all(row.state == "done" for row in queue.rows()):
            return [f"{key} is added" for key in queue.grow(lambda rows: cells(4))]
        return []

    said = swept(queue, {}, lengthen=lengthen)
    assert "seed=3 is added" in said
    assert [row.state for row in queue.rows()] == 4 * ["done"]


def test_a_run_that_cannot_be_started_is_free_for_others(queue: RunQueue) -> None:
    class Full(Local):
        def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> LocalJob:
            raise RunError("no process can be started")

    with pytest.raises(RunError, match="no process can be started"):
        swept(queue, {}, launcher=Full(workers(1, CORES, [])))
    assert [(row.state, row.owner) for row in queue.rows()] == 3 * [("waiting", None)]
