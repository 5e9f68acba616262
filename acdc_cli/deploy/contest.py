"""Engines timed against each other in alternating rounds, so that a busy machine slows all of them alike; each in a
process of its own, so that its peak memory is known."""

from __future__ import annotations

import multiprocessing
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from acdc_cli.deploy.engines import ENGINES, Array
from acdc_cli.errors import ModelError

_START_SECONDS = 600
"""Seconds that a process has to load its model and answer."""


@dataclass(frozen=True)
class Contestant:
    variant: str
    """`dense`, `sparse` or `shrunk`."""
    engine: str
    file: Path | None
    """What the engine reads; None: the model in memory."""


@dataclass(frozen=True)
class Turn:
    """A few forward passes in a row."""

    walls: tuple[float, ...]
    """Seconds of each pass."""
    cpu: float
    """CPU seconds of all threads of the process, per pass."""


@dataclass
class Record:
    """The measurements of a contestant at one batch size."""

    peak_bytes: int
    """Largest resident memory of its process up to this batch size."""
    turns: list[Turn] = field(default_factory=list)

    @property
    def walls(self) -> list[float]:
        """Seconds of every pass."""
        return [wall for turn in self.turns for wall in turn.walls]

    def ratio_to(self, other: Record) -> tuple[float, float]:
        """How many times faster this one is: the median over rounds of the ratio of wall times, and of CPU times."""
        pairs = list(zip(self.turns, other.turns, strict=True))
        walls = median(median(others.walls) / median(own.walls) for own, others in pairs)
        return walls, median(others.cpu / own.cpu for own, others in pairs)


@dataclass(frozen=True)
class Measurements:
    logits: Mapping[Contestant, Array]
    """Logits of the images."""
    records: Mapping[tuple[Contestant, int], Record]
    """Records by contestant and batch size."""


def run(
    contestants: Sequence[Contestant],
    images: Array,
    batches: Sequence[int],
    threads: int,
    rounds: Iterable[int],
    turn_seconds: float,
) -> Measurements:
    """images: as many as the largest batch, or more.  turn_seconds: a turn takes one pass, or as many as fit.

    Raises ModelError where an engine cannot run its file.
    """
    with ExitStack() as processes:
        runners = {each: processes.enter_context(_process(each, images, threads)) for each in contestants}
        logits = {each: runner("logits") for each, runner in runners.items()}
        # from small to large, because a process reports the peak of its whole life
        records = {
            (each, batch): Record(runner("warm_up", batch))
            for each, runner in runners.items()
            for batch in sorted(batches)
        }
        for _ in rounds:
            for batch in batches:
                for each, runner in runners.items():
                    records[each, batch].turns.append(runner("turn", batch, turn_seconds))
    return Measurements(logits, records)


@contextmanager
def _process(contestant: Contestant, images: Array, threads: int) -> Iterator[Callable[..., Any]]:
    """Yields a function that sends a request to the process and returns its answer."""
    assert contestant.file is not None
    name, context = contestant.file.name, multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, contestant.engine, contestant.file, threads, images)
    # a daemon ends with this process, however that ends
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()

    def ask(*message: Any) -> Any:
        try:
            ours.send(message)
            if not ours.poll(_START_SECONDS):
                raise ModelError(f"{contestant.engine} took more than {_START_SECONDS} s over {name}")
            answer = ours.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            process.join()
            raise ModelError(
                f"the process of {contestant.engine} ended with code {process.exitcode}; if memory ran out, name fewer "
                "--engines"
            ) from error
        if isinstance(answer, str):
            raise ModelError(f"{contestant.engine} cannot run {name}: {answer}")
        return answer

    try:
        yield ask
    finally:
        process.kill()
        process.join()
        ours.close()


def _serve(pipe: Connection, engine: str, file: Path, threads: int, images: Array) -> None:
    """The main loop of a process. Its answers are texts only for errors."""
    # Ctrl-C reaches it too, and the process that started it then ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runner = ENGINES[engine].open(file, threads)
    # whatever an engine raises over a file that it cannot run
    except Exception as error:
        pipe.recv()
        pipe.send(_first_line(error))
        return

    def logits() -> Array:
        return np.concatenate([runner(images[at : at + 1]) for at in range(len(images))])

    def warm_up(batch: int) -> int:
        for _ in range(2):
            runner(images[:batch])
        return _peak_bytes()

    def turn(batch: int, seconds: float) -> Turn:
        walls: list[float] = []
        given, cpu = images[:batch], time.process_time()
        while sum(walls) < seconds:
            began = time.perf_counter()
            runner(given)
            walls.append(time.perf_counter() - began)
        return Turn(tuple(walls), (time.process_time() - cpu) / len(walls))

    actions: dict[str, Callable[..., Any]] = {"logits": logits, "warm_up": warm_up, "turn": turn}
    while True:
        try:
            action, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = actions[action](*arguments)
        except Exception as error:
            answer = _first_line(error)
        pipe.send(answer)


def _peak_bytes() -> int:
    # the kernel's other number, getrusage's, counts the process that this one was started from
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(kibibytes)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
