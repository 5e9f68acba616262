"""Small runs that something befalls again and again until they end: `python -m soak --help`.

Each run is trained in one life after another, by one process or by two, and each life is disturbed. What is drawn
follows from the seed; where it strikes depends on the machine, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from campaign import CASES, Campaign, Case, compile_ffcv, require_twins, survey, watch_training
from faults import FAULTS
from killing import NEVER, Moment, Process, Watch, after, once, while_saving
from processes import RANKS, environment
from torch.distributed import TCPStore

from acdc_cli import console
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import watchdog
from benchmarks.report import header

HANG, START = 4.0, 10.0
"""Seconds that one of two processes waits for the other: between steps, and before the first."""
ENDS_WITHIN = 90.0
"""Seconds within which every process has ended after a disturbance, on a busy machine."""
HALVED = {"resolution": 14, "val_resize": 14, "val_crop": 14}
"""Digits of half the side, for which a step takes a quarter of the time."""
LIVES = 12
"""About so many are spread over a run."""


@dataclass(frozen=True)
class Disturbance:
    """What befalls one process, or all of them, and how they may then end."""

    name: str
    weight: int
    """How often it is drawn."""
    signals: tuple[signal.Signals, ...] = ()
    """Empty for a disk fault."""
    codes: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()
    """Exit codes of those that were spared."""
    while_saving: bool = False
    everyone: bool = False

    @property
    def needs_two(self) -> bool:
        return self.everyone or signal.SIGSTOP in self.signals


KILLED, LOST, SAVED = frozenset({-signal.SIGKILL}), frozenset({1, 75}), frozenset({75})
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DISTURBANCES = (
    Disturbance("SIGKILL", 5, (signal.SIGKILL,), KILLED, LOST),
    Disturbance("SIGKILL while saving", 5, (signal.SIGKILL,), KILLED, LOST, while_saving=True),
    *(Disturbance(each.name, 2, (each,), SAVED, SAVED) for each in ASKING),
    *(Disturbance(f"{each.name} to all", 1, (each,), SAVED, SAVED, everyone=True) for each in ASKING),
    Disturbance("SIGINT twice", 2, (signal.SIGINT, signal.SIGINT), frozenset({75, 130}), LOST | {130}),
    Disturbance("hang (SIGSTOP)", 2, (signal.SIGSTOP,), KILLED, frozenset({1})),
    # a fault may kill, stop the run, or be survived
    Disturbance("disk fault", 8, (), frozenset({-signal.SIGKILL, 2, 0}), frozenset({1, 2, 0})),
)


@dataclass(frozen=True)
class Try:
    """A disturbance that struck."""

    name: str
    processes: int
    code: int
    others: tuple[int, ...]
    lost: int
    """Steps that have to be done again."""
    writing: bool
    """Whether a checkpoint was being written."""
    fault: str


@dataclass
class Life:
    """One life of a run, in one process or two."""

    processes: list[Process]
    disturbance: Disturbance
    target: int
    moment: Moment
    gap: float
    """Seconds between two signals."""
    struck: bool = False
    writing: bool = False
    stepping: bool = False
    """Whether a step had been taken when it was struck."""
    codes: list[int] = field(default_factory=list)

    def run(self, draw: random.Random) -> None:
        self.processes[0].log.unlink(missing_ok=True)
        for rank, process in enumerate(self.processes):
            process.begin(self.moment if rank == self.target else NEVER, draw)
        first, until = self.processes[0].watch, time.monotonic() + 5 * ENDS_WITHIN
        try:
            while None in (codes := [process.code() for process in self.processes]):
                assert time.monotonic() < until, f"hangs; exit codes so far: {codes}"
                if not self.struck and self.moment.due(first) and codes[self.target] is None:
                    self._strike()
                    until = time.monotonic() + ENDS_WITHIN
                if self._has_stopped_one and codes.count(None) == 1:
                    self.processes[self.target].send(signal.SIGKILL)
                time.sleep(0.002)
        finally:
            for process in self.processes:
                process.send(signal.SIGKILL)
        self.codes = [code for code in codes if code is not None]
        if self.moment.fault:
            self.struck, self.writing = first.struck, first.writing

    @property
    def _has_stopped_one(self) -> bool:
        return self.struck and signal.SIGSTOP in self.disturbance.signals

    def _strike(self) -> None:
        first = self.processes[0].watch
        self.struck, self.writing, self.stepping = True, first.writing, first.first >= 0
        first.armed = True
        for number in self.disturbance.signals:
            for process in self.processes if self.disturbance.everyone else [self.processes[self.target]]:
                process.send(number)
            time.sleep(self.gap)

    def require(self, finished: bool, lost: int) -> Try | None:
        """None if nothing struck. lost: steps."""
        what, said = self.disturbance, self.processes[0].log.read_text()
        code, others = self.codes[self.target], self.codes[: self.target] + self.codes[self.target + 1 :]
        assert "Traceback" not in said, said[-3000:]
        if not self.struck:
            assert finished, f"{self.codes} without a disturbance:\n{said[-3000:]}"
            assert set(self.codes) == {0}, self.codes
            return None
        # whoever is struck after the end may end as if nothing had been, or is interrupted where nothing is to be saved
        after_end = ({0, 130} if what.signals else {0}) if finished else set()
        told = f"{code} of process {self.target}, {others} of the others after {what.name}:\n{said[-3000:]}"
        assert code in what.codes | after_end, told
        assert set(others) <= what.others | after_end, told
        assert finished or 0 not in self.codes, told
        assert lost == 0 or code != 75, f"{lost} steps lost with code 75"
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 or 2 not in self.codes, f"{errors} with code 2:\n{said[-3000:]}"
        if self._has_stopped_one and self.stepping and not finished:
            assert f"waiting for rank {self.target} of {RANKS}" in said, said[-3000:]
        fault = self.moment.fault.name if self.moment.fault else ""
        return Try(what.name, len(self.codes), code, tuple(others), lost, self.writing, fault)


class Soak:
    def __init__(self, folder: Path, seed: int, disturbances: int) -> None:
        self._campaign = Campaign(folder, seed)
        compile_ffcv(self._campaign.digits)
        # or a fork could inherit a lock that nobody will give back
        assert threading.active_count() == 1
        self._folder, self._seed, self._disturbances = folder, seed, disturbances
        self._alone: dict[tuple[str, int], Process] = {}
        self.tries: list[Try] = []
        self.counts = Counter[str]()
        self.failures: list[str] = []

    def runs(self) -> Iterator[None]:
        """One run after another, until enough disturbances have struck."""
        for number in itertools.count():
            if len(self.tries) >= self._disturbances:
                return
            folder = self._folder / f"run-{number}"
            folder.mkdir()
            try:
                self._run(folder, random.Random(f"{self._seed} {number}"))
            except AssertionError as error:
                self.failures.append(f"{folder.name}: {error}")
                console.say(f"FAILED: {self.failures[-1]}")
            else:
                shutil.rmtree(folder)
            console.say(f"{folder.name}: {len(self.tries)} disturbances so far, {len(self.failures)} failures")
            yield

    def _run(self, folder: Path, draw: random.Random) -> None:
        """One run, to its end and its proof."""
        drawn = draw.choice(CASES)
        blocks = {"data": {**drawn.blocks.get("data", {}), **HALVED}, "distributed": {"timeout_minutes": HANG / 60}}
        case = replace(drawn, blocks={**drawn.blocks, **blocks})
        sizes = draw.choice([(1,), (RANKS,), (1, RANKS)])
        run = RunDir(folder / "disturbed")
        counts, going_on, lives, before = Counter[str](), 0, 0, 0
        while not run.finished:
            size = draw.choice(sizes)
            counts["changes of the number of processes"] += before not in (0, size)
            disturbed = len(self.tries) < self._disturbances
            alone = self._run_alone(case, size)
            with self._training(case, run.path, size) as processes:
                life = self._draw_life(processes, alone, lives, draw) if disturbed else _undisturbed(processes)
                life.run(draw)
            going_on, lost = survey(run, processes[0].watch, going_on)
            if tried := life.require(run.finished, lost):
                self.tries.append(tried)
            assert run.finished or 75 not in life.codes or any(run.checkpoints.glob("*.pt")), "nothing saved"
            lives, before = lives + 1, size
        Process(["verify-run", str(run.path)], folder / "verified", lambda watch: None).run(NEVER, draw)
        counts["runs finished and verified"] += 1
        if len(sizes) == 1:
            require_twins(RunDir(self._run_alone(case, size).folder), run)
            counts["of these compared and bit-identical"] += 1
        self.counts.update(counts)

    def _run_alone(self, case: Case, size: int) -> Process:
        """The same run, undisturbed; once for all."""
        key = (case.name, size)
        if key not in self._alone:
            folder = self._folder / f"alone-{len(self._alone)}"
            folder.mkdir(exist_ok=True)
            with self._training(case, folder / "alone", size) as processes:
                life = _undisturbed(processes)
                life.run(random.Random(0))
            life.require(RunDir(processes[0].folder).finished, 0)
            self._alone[key] = processes[0]
        return self._alone[key]

    @contextmanager
    def _training(self, case: Case, folder: Path, size: int) -> Iterator[list[Process]]:
        processes = [self._campaign.training(case, folder) for _ in range(size)]
        with _served_store() as port:
            for rank, process in enumerate(processes):
                process.instrument = _instrument
                process.environment = environment(rank, port) if size > 1 else {}
            yield processes

    def _draw_life(self, processes: list[Process], alone: Process, lives: int, draw: random.Random) -> Life:
        possible = [each for each in DISTURBANCES if len(processes) > 1 or not each.needs_two]
        what = draw.choices(possible, [each.weight for each in possible])[0]
        # only the first process writes
        target = draw.randrange(len(processes)) if what.signals else 0
        watch, length = alone.watch, alone.seconds - alone.start
        early = what.name in ("SIGKILL", "hang (SIGSTOP)", "disk fault") and draw.random() < 0.15
        if early:
            moment = after(alone.start * draw.random())
        elif what.while_saving or draw.random() < 0.3:
            number, each = max(1, 2 * watch.begun // LIVES), watch.saving / watch.begun
            moment = while_saving(draw.randint(1, number), draw.uniform(0, 1.2 * each))
        else:
            # longer each time, because a run that dies before each of its checkpoints never ends
            pace = length / LIVES * (1 + lives / LIVES)
            moment = once(lambda watch: watch.first >= 0, draw.uniform(0, 2 * pace))
        if not what.signals:
            moment = replace(moment, fault=draw.choice(FAULTS), later=draw.randrange(30))
        return Life(processes, what, target, moment, draw.uniform(0, 0.1) if len(what.signals) > 1 else 0.0)


def _undisturbed(processes: list[Process]) -> Life:
    return Life(processes, DISTURBANCES[0], 0, NEVER, 0.0)


def _instrument(watch: Watch) -> None:
    watch_training(watch)
    watchdog.FIRST_WORD, watchdog.START, watchdog.BEAT, watchdog.SILENT = 1.0, START, 0.1, 2.0


@contextmanager
def _served_store() -> Iterator[int]:
    """The port of a store, which a process of its own serves, because serving takes threads."""
    reading, writing = os.pipe()
    parent = os.getpid()
    if not (server := os.fork()):
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        os.write(writing, store.port.to_bytes(2, "big"))
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(0)
    try:
        yield int.from_bytes(os.read(reading, 2), "big")
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        os.close(reading)
        os.close(writing)


def rows(tries: Sequence[Try]) -> Iterator[dict[str, Any]]:
    for name in (each.name for each in DISTURBANCES):
        for size in range(1, RANKS + 1):
            alike = [each for each in tries if (each.name, each.processes) == (name, size)]
            if alike:
                lost = [each.lost for each in alike]
                yield {
                    "disturbance": name,
                    "processes": size,
                    "tries": len(alike),
                    "while a checkpoint was written": sum(each.writing for each in alike),
                    "exit codes": dict(sorted(Counter(each.code for each in alike).items())),
                    "of the others": dict(sorted(Counter(code for each in alike for code in each.others).items())),
                    "steps lost, median": statistics.median(lost),
                    "most": max(lost),
                }


def result(soak: Soak, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "disturbances": len(soak.tries),
        **soak.counts,
        "failures": soak.failures,
        "table": list(rows(soak.tries)),
        "disk faults": Counter(each.fault for each in soak.tries if each.fault),
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{code} × {count}" for code, count in value.items())
        return f"{value:g}" if isinstance(value, float) else str(value)

    head = [f"| {' | '.join(lines[0])} |", f"|---|{'--:|' * (len(lines[0]) - 1)}"]
    return "\n".join([*head, *(f"| {' | '.join(map(cell, line.values()))} |" for line in lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disturbances", type=int, default=500, help="that strike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file, for the result as JSON")
    parser.add_argument("folder", type=Path, help="a new one, for the runs; those that failed stay there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # what a shell starts in the background is deaf to Ctrl-C otherwise
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = f"python -m soak --disturbances {asked.disturbances} --seed {asked.seed}"
    head = header("soak", False, None) | {"command": command, "seed": asked.seed}
    began = time.monotonic()
    soak = Soak(asked.folder, asked.seed, asked.disturbances)
    for _ in soak.runs():
        # what a long soak has shown so far outlives it
        if asked.out:
            asked.out.write_text(json.dumps(head | result(soak, time.monotonic() - began), indent=1) + "\n")
    told = "; ".join(f"{what}: {count}" for what, count in soak.counts.items())
    sys.stdout.write(f"{table(list(rows(soak.tries)))}\n\n{len(soak.tries)} disturbances; {told}; ")
    sys.stdout.write(f"failures: {len(soak.failures)}\n")
    sys.exit(bool(soak.failures))


if __name__ == "__main__":
    main()
