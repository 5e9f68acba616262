"""The launcher for one machine: what each of its runs gets, and that none outlives the sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import cells

from acdc_cli.studies import tether
from acdc_cli.studies.local import Local, LocalJob, Worker, workers

CELL = cells(1)[0]
CORES = sorted(os.sched_getaffinity(0))
TELL = (
    "import json, os; names = ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'GIVEN'); "
    "print(json.dumps([sorted(os.sched_getaffinity(0)), *map(os.environ.get, names)]))"
)
ASKED_TO_END = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path('asked').touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
pathlib.Path('ready').touch()
time.sleep(60)
"""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def code(job: LocalJob) -> int:
    until(lambda: job.poll() is not None)
    ended = job.poll()
    assert ended is not None
    return ended


def test_cores_and_gpus_are_dealt_out() -> None:
    assert workers(3, range(8), ["0", "1", "2"]) == [
        Worker((0, 1), "0"),
        Worker((2, 3, 4), "1"),
        Worker((5, 6, 7), "2"),
    ]
    assert workers(1, [2, 5], []) == [Worker((2, 5), None)]


def test_more_workers_than_cores_or_gpus_share_them() -> None:
    assert [worker.cores for worker in workers(4, [6, 7], [])] == [(6,), (6,), (7,), (7,)]
    assert [worker.gpu for worker in workers(4, range(4), ["GPU-a", "GPU-b"])] == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]


def test_a_run_gets_its_cores_its_gpu_and_a_log(in_tmp: Path) -> None:
    local = Local([Worker((CORES[-1],), "7")])
    log = Path("run.log")
    log.write_text("before\n")
    job = local.start(CELL, [sys.executable, "-c", TELL], {"GIVEN": "too"}, log)
    assert code(job) == 0
    before, told = log.read_text().splitlines()
    assert before == "before"
    assert json.loads(told) == [[CORES[-1]], "1", "7", "too"]


def test_runs_that_go_on_at_once_have_different_workers(in_tmp: Path) -> None:
    local = Local(workers(2, [CORES[0]], ["0", "1"]))
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    one, other = (local.start(CELL, sleep, {}, Path("log")) for _ in range(2))
    assert {one.worker.gpu, other.worker.gpu} == {"0", "1"}
    other.stop(signal.SIGKILL)
    assert code(other) == -signal.SIGKILL
    other.stop(signal.SIGKILL)
    third = local.start(CELL, sleep, {}, Path("log"))
    assert third.worker is other.worker
    for job in (one, third):
        job.stop(signal.SIGKILL)
        code(job)


def test_a_run_is_asked_to_end_when_its_sweep_is_killed(in_tmp: Path) -> None:
    sweep = f"""
import sys, time
from pathlib import Path
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.local import Local, workers
command = [sys.executable, '-c', {ASKED_TO_END!r}]
job = Local(workers(1, [{CORES[0]}], [])).start(Cell('key', {{}}, ()), command, {{}}, Path('log'))
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", sweep]) as process:
        until(Path("ready").exists)
        process.kill()
    until(Path("asked").exists)
    assert process.returncode == -signal.SIGKILL


def test_a_run_whose_sweep_is_gone_before_it_begins_does_not_begin(in_tmp: Path) -> None:
    nobody = subprocess.run([sys.executable, tether.__file__, "1", "0", "touch", "begun"], check=False)
    assert nobody.returncode == 128 + signal.SIGTERM
    assert not Path("begun").exists()


@pytest.mark.parametrize("ended", [0, 2, 75])
def test_its_exit_code_is_the_runs(in_tmp: Path, ended: int) -> None:
    local = Local(workers(1, CORES, []))
    assert code(local.start(CELL, [sys.executable, "-c", f"raise SystemExit({ended})"], {}, Path("log"))) == ended
