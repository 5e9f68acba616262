"""The parts of `python -m benchmarks gpu` in order of worth, and how the time is shared among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    name: str
    module: str
    """Its `run(trial)` measures, in a process of its own."""
    weight: float
    """Share of the time, relative to the other parts."""
    least: float
    """Seconds below which the part cannot give a number."""


PARTS = (
    Part("facts", "benchmarks.gpu.facts", 2, 20),
    Part("tests", "benchmarks.gpu.suite", 26, 20),
    Part("resident", "benchmarks.gpu.resident", 42, 60),
    Part("stalls", "benchmarks.gpu.stalls", 6, 20),
    Part("kernels", "benchmarks.gpu.kernels", 8, 20),
    Part("fed", "benchmarks.gpu.fed", 12, 30),
    Part("train", "benchmarks.gpu.train", 13, 30),
    Part("resume", "benchmarks.gpu.resume", 11, 30),
)


def limit_of(part: Part, later: Sequence[Part], left: float) -> float | None:
    """Seconds that a part may take, of the `left` seconds that it shares with the parts after it.

    It gets its weight's share, and at least what it needs, which the later parts then lack. What it does not use stays
    in `left` for them. None: less is left than it needs.
    """
    if left < part.least:
        return None
    share = left * part.weight / (part.weight + sum(each.weight for each in later))
    return max(share, part.least)
