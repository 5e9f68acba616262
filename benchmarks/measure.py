"""Contestants run in turn, round by round, so that a busy neighbour slows them alike; ratios are medians of rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Timing:
    """Seconds that something took."""

    wall: float
    cpu: float
    """CPU time of all threads of the process that did it."""

    def per(self, count: float) -> Timing:
        return Timing(self.wall / count, self.cpu / count)


@dataclass(frozen=True)
class Target:
    """What a ratio must keep to."""

    bound: Literal["≥", "≤"]
    value: float

    def met_by(self, ratio: float) -> bool:
        return ratio >= self.value if self.bound == "≥" else ratio <= self.value

    def __str__(self) -> str:
        return f"{self.bound} {self.value}"


Contestant = Callable[[], Timing]
Rounds = dict[str, list[Timing]]


def timed(action: Callable[[], object]) -> Timing:
    # a collection in the middle would fall on whoever is running
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(contestants: Mapping[str, Contestant], rounds: int) -> Rounds:
    """A B A B …: what each contestant returned in each round."""
    results: Rounds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            results[name].append(contestant())
    return results


def walls(rounds: Rounds, scale: float = 1.0) -> dict[str, list[float]]:
    return {name: [scale * timing.wall for timing in timings] for name, timings in rounds.items()}


def cpus(rounds: Rounds, scale: float = 1.0) -> dict[str, list[float]]:
    return {name: [scale * timing.cpu for timing in timings] for name, timings in rounds.items()}


def speeds(rounds: Rounds, count: float) -> dict[str, list[float]]:
    """How many of `count` things a round were done a second."""
    return {name: [count / timing.wall for timing in timings] for name, timings in rounds.items()}


def compare(
    what: str, unit: str, rounds: Mapping[str, list[float]], over: str, under: str, target: Target | None = None
) -> dict[str, Any]:
    """One line of a result: the median over the rounds of `over` / `under`, and whether it meets the target."""
    ratio = median(one / other for one, other in zip(rounds[over], rounds[under], strict=True))
    return {
        "what": what,
        "ratio_of": f"{over} / {under}",
        "ratio": round(ratio, 4),
        "target": None if target is None else str(target),
        "met": None if target is None else target.met_by(ratio),
        "unit": unit,
        "medians": {name: _short(median(rounds[name])) for name in (over, under)},
        "rounds": {name: [_short(value) for value in rounds[name]] for name in (over, under)},
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")
