"""Processes that work off a queue with runs that take milliseconds, are killed at random, and note what must not be.

    python fake_runs.py FOLDER ROUNDS

A program of its own, which has no threads: so it may fork, and a process starts within a millisecond.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sys
import time
from pathlib import Path

from acdc_cli.studies.grid import Cell
from acdc_cli.studies.owner import Owner
from acdc_cli.studies.run_queue import Row, RunQueue

PROCESSES = 8
RUNS = 24
KILLS = 12


def cells(count: int) -> list[Cell]:
    return [Cell(key=f"seed={seed}", axes={"seed": seed}, overrides=(f"seed={seed}",)) for seed in range(count)]


def one_round(folder: Path, draw: random.Random) -> None:
    """A queue of its own. A process that is killed is replaced."""
    folder.mkdir()
    RunQueue(folder / "ledger.sqlite").add(cells(RUNS))
    alive = [_start(folder) for _ in range(PROCESSES)]
    for _ in range(KILLS):
        time.sleep(draw.uniform(0, 0.02))
        killed = alive.pop(draw.randrange(PROCESSES))
        os.kill(killed, signal.SIGKILL)
        alive.append(_start(folder))
        os.waitpid(killed, 0)
    for process in alive:
        _, status = os.waitpid(process, 0)
        if status != 0:
            _note(folder, f"a process that was not killed ended with {status}")


def _start(folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _work_off(folder)
            os._exit(0)
        finally:
            # whatever was raised is no business of the program that this is a copy of
            os._exit(1)
    return pid


def _work_off(folder: Path) -> None:
    """Claim runs and finish them until none waits or runs."""
    queue, owner = RunQueue(folder / "ledger.sqlite"), Owner.this_process()
    while any(row.state in ("waiting", "running") for row in queue.rows()):
        row = queue.claim(owner)
        if row is None:
            time.sleep(0.01)
        else:
            _run(row, folder)
            queue.finish(row.key, owner)


def _run(row: Row, folder: Path) -> None:
    """Notes it when it runs twice at once, or ends twice."""
    row.directory.mkdir(parents=True, exist_ok=True)
    with (row.directory / "running").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _note(folder, f"{row.key} runs twice at once")
        time.sleep(random.uniform(0.01, 0.05))
        summary = row.directory / f"summary.{os.getpid()}"
        summary.write_text("{}")
        try:
            os.link(summary, row.directory / "summary.json")
        except FileExistsError:
            _note(folder, f"{row.key} ends twice")


def _note(folder: Path, text: str) -> None:
    with (folder / "violations").open("a") as notes:
        notes.write(f"{text}\n")


if __name__ == "__main__":
    for number in range(int(sys.argv[2])):
        one_round(Path(sys.argv[1]) / str(number), random.Random(number))
