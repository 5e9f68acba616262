"""Processes that are really killed: forks that run one `acdc` command, and the moment of their SIGKILL.

A fork of a process that has imported everything, but has started no threads, costs no start.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

# which every process of several imports
import torch._inductor  # noqa: F401
from faults import Fault, FaultySystem, Killed

from acdc_cli.cli import app

WORKERS_END_WITHIN = 10.0
"""Seconds after the death of the process that started them."""
_CHANCE = 0.02
"""Of a call that is not among those whose chance is known, such as one that only a run makes that goes on."""


class Watch(ctypes.Structure):
    """What a process last said of itself, in memory that it shares with the one that kills it."""

    _fields_ = [
        ("first", ctypes.c_int64),
        ("done", ctypes.c_int64),
        ("begun", ctypes.c_int64),
        ("saved", ctypes.c_int64),
        ("saving", ctypes.c_double),
        ("written", ctypes.c_int64),
        ("armed", ctypes.c_bool),
        ("struck", ctypes.c_bool),
        ("place", ctypes.c_char * 96),
    ]
    first: int
    """The run's step that it began with; -1 before it."""
    done: int
    """Steps of the run that were done."""
    begun: int
    """Checkpoints that it began to write."""
    saved: int
    """Step of the run in the last checkpoint whose writing has returned; -1 before."""
    saving: float
    """Seconds it took to write checkpoints."""
    written: int
    """Checkpoints whose writing has returned."""
    armed: bool
    """Whether the moment of its fault has come."""
    struck: bool
    """Whether a call had the fault."""
    place: bytes

    @classmethod
    def new(cls) -> Self:
        return cls.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))

    def clear(self) -> None:
        ctypes.memset(ctypes.byref(self), 0, ctypes.sizeof(self))
        self.first, self.saved, self.place = -1, -1, b"start"

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.begun > self.written

    def mark(self, owner: Any, name: str, place: str, then: str = "") -> None:
        """While that function runs the process is at `place`, afterwards at `then`, or else where it was."""
        original = getattr(owner, name)

        def marked(*arguments: Any, **named: Any) -> Any:
            before, self.place = self.place, place.encode()
            result = original(*arguments, **named)
            self.place = then.encode() or before
            return result

        setattr(owner, name, marked)

    def mark_call(self, name: str) -> None:
        """The same for a function of `os`, which belongs to where the process is."""
        original = getattr(os, name)

        def marked(*arguments: Any, **named: Any) -> Any:
            before = self.place
            self.place = before + f": {name}".encode()
            result = original(*arguments, **named)
            self.place = before
            return result

        setattr(os, name, marked)


class KillingSystem(FaultySystem):
    """Its process dies at one of the calls that write below a folder, each of which has a chance of its own."""

    def __init__(self, folder: Path, watch: Watch, chances: Mapping[str, float], draw: random.Random) -> None:
        super().__init__(folder)
        self._watch = watch
        self._chances = chances
        self._draw = draw
        self.seen: Counter[str] = Counter()

    def call(self, name: str, half: Callable[[], int] | None = None) -> int | None:
        place = f"{self._watch.place.decode()}: {name}"
        self.seen[place] += 1
        if self._draw.random() < (self._chances.get(place, _CHANCE) if self._chances else 0.0):
            if half and self._draw.random() < 0.5:
                half()
            self._watch.place = place.encode()
            os.kill(os.getpid(), signal.SIGKILL)
        return None


class FailingSystem(FaultySystem):
    """Once its process is armed, and has then made `later` calls that write, the next one has the fault."""

    def __init__(self, folder: Path, watch: Watch, fault: Fault, later: int) -> None:
        super().__init__(folder, fault, sys.maxsize)
        self._watch = watch
        self._later = later

    def call(self, name: str, half: Callable[[], int] | None = None) -> int | None:
        if self._watch.armed and self._at == sys.maxsize:
            self._at = len(self.calls) + self._later
        self._watch.struck |= len(self.calls) >= self._at
        try:
            return super().call(name, half)
        except Killed:
            os.kill(os.getpid(), signal.SIGKILL)
            raise


@dataclass(frozen=True)
class Moment:
    """When a process is killed."""

    due: Callable[[Watch], bool] = lambda watch: False
    """Asked every millisecond by the process that kills."""
    chances: Mapping[str, float] | None = None
    """Of every place and call that writes: there the process kills itself."""
    fault: Fault | None = None
    later: int = 0
    """Calls that write between the process's arming and the fault."""


NEVER = Moment()


def after(seconds: float) -> Moment:
    until = time.monotonic() + seconds
    return Moment(lambda watch: time.monotonic() >= until)


def once(begun: Callable[[Watch], bool], seconds: float) -> Moment:
    """So long after that came true."""
    until: list[float] = []

    def due(watch: Watch) -> bool:
        if not until and begun(watch):
            until.append(time.monotonic() + seconds)
        return bool(until) and time.monotonic() >= until[0]

    return Moment(due)


def while_saving(number: int, seconds: float) -> Moment:
    """So long after checkpoint `number`, from 1, was begun."""
    return once(lambda watch: watch.begun >= number, seconds)


@dataclass
class Process:
    """One command, which may be run again after it was killed."""

    arguments: Sequence[str]
    folder: Path
    """Where it writes."""
    instrument: Callable[[Watch], None]
    """Called in the process, before the command."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is added to the environment."""
    watch: Watch = field(default_factory=Watch.new)
    seconds: float = 0.0
    """That it lived the last time."""
    start: float = 0.0
    """Of these, the ones before its first step."""
    _process: int = 0
    _began: float = 0.0
    _code: int | None = None

    def run(self, moment: Moment, draw: random.Random) -> bool:
        """Was it killed before it was done? Raises AssertionError if it ended by itself, or leaves others behind."""
        self.begin(moment, draw)
        while (code := self.code()) is None:
            if moment.due(self.watch):
                self.send(signal.SIGKILL)
            time.sleep(0.001)
        if code == -signal.SIGKILL:
            return True
        assert code == 0, f"{self.arguments} ended with code {code}:\n{self.log.read_text()[-3000:]}"
        return False

    def begin(self, moment: Moment, draw: random.Random) -> None:
        self.watch.clear()
        self.start = 0.0
        # drawn here, or every fork would die at the same call
        chance = random.Random(draw.random())
        self._code = None
        self._began = time.monotonic()
        self._process = os.fork()
        if self._process == 0:
            self._live(moment, chance)

    def code(self) -> int | None:
        """Its exit code, or the negative number of the signal that killed it; None while it lives.

        Raises AssertionError if it leaves others behind.
        """
        if not self.start and self.watch.first >= 0:
            self.start = time.monotonic() - self._began
        if self._code is None:
            ended, status = os.waitpid(self._process, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self._began
                left = alive_after(WORKERS_END_WITHIN, self._process)
                assert not left, f"processes live on without {self.arguments}"
        return self._code

    def send(self, number: signal.Signals) -> None:
        if self._code is None:
            os.kill(self._process, number)

    def calls(self) -> Counter[str]:
        """Of every place and call that writes, how many there were, if the last `moment` had chances."""
        return Counter(json.loads(self._calls.read_text()))

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def _calls(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.calls")

    def _live(self, moment: Moment, chance: random.Random) -> None:
        """What the fork does. It never returns."""
        try:
            os.setsid()
            self._speak_to_log()
            os.environ.update(self.environment)
            # else the workers that it starts would import what started this one, and torch with it
            sys.modules["__main__"] = ModuleType("__main__")
            self.instrument(self.watch)
            if moment.fault:
                FailingSystem(self.folder, self.watch, moment.fault, moment.later).__enter__()
            elif moment.chances is None:
                for name in ("fsync", "replace", "link"):
                    self.watch.mark_call(name)
            else:
                system = KillingSystem(self.folder, self.watch, moment.chances, chance).__enter__()
                atexit.register(lambda: self._calls.write_text(json.dumps(system.seen)))
            sys.argv = ["acdc", *self.arguments]
            app.main()
        except SystemExit as end:
            # what is left to the interpreter where there are threads
            atexit._run_exitfuncs()
            os._exit(int(end.code or 0))
        finally:
            traceback.print_exc()
            os._exit(99)

    def _speak_to_log(self) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def alive_after(seconds: float, session: int) -> bool:
    """Is a process of the session still there after that time?"""
    until = time.monotonic() + seconds
    while (alive := _alive(session)) and time.monotonic() < until:
        time.sleep(0.02)
    return alive


def _alive(session: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, group = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == session and state != "Z":
            return True
    return False
