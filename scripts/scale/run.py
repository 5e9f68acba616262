"""A run as a sequence of events: checkpoints, their background writes, failures, restarts, lost work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Checkpoint:
    """Seconds of one."""

    stop: float
    """What the step waits for in any case: collecting the state and copying it off the device."""
    write: float
    """Serialising, hashing and syncing."""
    asynchronous: bool = False
    """The write goes on beside the next steps; one checkpoint at a time, so that the next one waits for it."""


@dataclass(frozen=True)
class Work:
    """What there is to do, in seconds if nothing ever failed or was saved."""

    training: float
    """Steps of an epoch."""
    epochs: int
    validation: float = 0.0
    """After each epoch's steps."""
    interval: float | None = None
    """Work between two checkpoints; None: one after every epoch."""

    @property
    def total(self) -> float:
        return self.epochs * (self.training + self.validation)

    def checkpoints(self) -> Iterator[float]:
        """Where in the work they lie; the last is its end."""
        each = self.interval or self.training + self.validation
        for number in range(1, math.ceil(self.total / each - 1e-9)):
            yield number * each
        yield self.total


@dataclass(frozen=True)
class Failures:
    per_hour: float = 0.0
    """Failures of all machines together."""
    restart: float = 0.0
    """Seconds from a failure to the first step after it: detection, start, compilation, reading the checkpoint."""
    at: tuple[float, ...] = ()
    """Seconds of the clock at which a failure comes, instead of at random."""

    def times(self, seed: int) -> Iterator[float]:
        """Seconds of the clock, rising; they do not depend on what the run does."""
        if self.at or self.per_hour == 0:
            yield from self.at
        else:
            generator, now = np.random.default_rng(seed), 0.0
            while True:
                now += generator.exponential(3600 / self.per_hour)
                yield now
        yield math.inf


@dataclass(frozen=True)
class Outcome:
    """Seconds of the clock, by what they went to; they add up to `total`."""

    training: float
    """Steps that the result keeps."""
    validation: float
    stopped: float
    """Waiting for checkpoints."""
    lost: float
    """Work that a failure undid."""
    restarting: float
    failures: int

    @property
    def total(self) -> float:
        return self.training + self.validation + self.stopped + self.lost + self.restarting

    @property
    def goodput(self) -> float:
        """The share of the clock that went to steps that count."""
        return self.training / self.total


class _FailedError(Exception):
    pass


class _Clock:
    """Time goes on, until the next failure at most."""

    def __init__(self, failures: Iterator[float]) -> None:
        self._failures = failures
        self._next = next(failures)
        self.now = 0.0
        self.failed = 0

    def advance(self, seconds: float) -> None:
        if self.now + seconds > self._next:
            self.now, self._next = self._next, next(self._failures)
            self.failed += 1
            raise _FailedError
        self.now += seconds

    def restart(self, seconds: float) -> float:
        """Until it has succeeded: a failure within it begins it anew. Returns what it took in all."""
        began = self.now
        while True:
            try:
                self.advance(seconds)
                return self.now - began
            except _FailedError:
                continue


def simulate(work: Work, checkpoint: Checkpoint, failures: Failures, seed: int = 0) -> Outcome:
    """The run from its first step to the moment when its last checkpoint is on the disk."""
    clock = _Clock(failures.times(seed))
    due = [0.0, *work.checkpoints()]
    saved, lost, restarting = 0, 0.0, 0.0
    while saved < len(due) - 1:
        reached, written_at, working_since = saved, clock.now, math.inf
        try:
            while reached < len(due) - 1:
                working_since = clock.now
                clock.advance(due[reached + 1] - due[reached])
                if written_at > clock.now:
                    clock.advance(written_at - clock.now)
                saved = reached
                clock.advance(checkpoint.stop)
                reached, written_at, working_since = reached + 1, clock.now + checkpoint.write, math.inf
                if not checkpoint.asynchronous or reached == len(due) - 1:
                    clock.advance(checkpoint.write)
                    saved = reached
        except _FailedError:
            if written_at <= clock.now:
                saved = reached
            undone = due[reached] - due[saved]
            if working_since < clock.now:
                undone += min(clock.now - working_since, due[reached + 1] - due[reached])
            lost += undone
            restarting += clock.restart(failures.restart)
    training, validation = work.epochs * work.training, work.epochs * work.validation
    stopped = clock.now - training - validation - lost - restarting
    return Outcome(training, validation, stopped, lost, restarting, clock.failed)
