"""Optimiser steps of many ranks, event by event: loaders with bounded queues, stragglers, exchange, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What one step takes, in seconds. Two lanes run at once: the device computes what the host has launched."""

    device: float
    """Forward, backward and optimiser on a rank's part of the batch."""
    exposed: float = 0.0
    """Exchange of gradients that no backward pass hides."""
    host: float = 0.0
    """Launching the kernels of a step, however few images it has."""
    agreement: float = 0.0
    """What all hosts tell one another after a step, read after the next one."""
    batch: float = 0.0
    """A machine's loader, for the images that its ranks take in a step."""
    queue: int = 4
    """Batches that a loader draws ahead."""
    noise: float = 0.0
    """Sigma of the lognormal factor, of mean 1, on each rank's device and host time."""
    samples: tuple[float, ...] = ()
    """Measured device times to draw from instead of `device` and `noise`."""

    def drawn(self, generator: np.random.Generator, shape: tuple[int, int]) -> tuple[Times, Times]:
        """Device and host times of (steps, ranks)."""
        if self.samples:
            return generator.choice(self.samples, shape), np.full(shape, self.host)
        if self.noise == 0:
            return np.full(shape, self.device), np.full(shape, self.host)
        factor = generator.lognormal(-(self.noise**2) / 2, self.noise, shape)
        return self.device * factor, self.host * factor


def step_ends(step: Step, ranks: int, machine: int, count: int, seed: int = 0) -> Times:
    """Seconds from the start to the end of each of `count` steps. machine: ranks that share a loader.

    A loader begins batch k when it has drawn batch k-1 and its queue has room, that is, when step k-queue has taken
    its batch. A step begins on a machine when the step before has ended everywhere and its batch is there; it ends
    everywhere when the slowest rank has computed and all have exchanged, and when the slowest host has launched and
    has the agreement of the step before. Agreements do not overlap.
    """
    generator = np.random.default_rng(seed)
    machines = -(-ranks // machine)
    device, host = step.drawn(generator, (count, ranks))
    owner = np.arange(ranks) // machine
    ready = np.zeros(machines)
    begins: list[Times] = []
    ends = np.zeros(count)
    now, agreed = 0.0, 0.0
    for index in range(count):
        room = begins[index - step.queue] if index >= step.queue else 0.0
        ready = np.maximum(ready, room) + step.batch
        begin = np.maximum(ready, now)
        begins.append(begin)
        computed = (begin[owner] + device[index]).max() + step.exposed
        launched = max((begin[owner] + host[index]).max(), agreed)
        agreed = launched + step.agreement
        now = ends[index] = max(computed, launched)
    return ends


def mean_step(step: Step, ranks: int, machine: int = 8, count: int = 300, seed: int = 0) -> float:
    """Seconds of a step once the queues have settled: of the second half of `count` steps."""
    ends = step_ends(step, ranks, machine, count, seed)
    half = count // 2
    return float((ends[-1] - ends[half - 1]) / (count - half))


def joint_steps(apart: Sequence[Sequence[float]], exchange: Sequence[float]) -> list[float]:
    """Seconds of steps of processes that exchange without overlap: every combination of what each measured alone.

    apart: step times of each process; exchange: seconds of the exchange of a step.
    """
    return [max(times) + sent for *times, sent in product(*apart, exchange)]
