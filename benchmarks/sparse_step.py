"""A step in a sparse phase against one in a dense phase of the same AC/DC and GMP run: ResNet-50, one core."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from acdc_cli.recipe.load import load
from acdc_cli.training.precision import choose_device
from benchmarks.assemble import Assembly, Resident, assemble, moment
from benchmarks.measure import Rounds, Target, Timing, alternate, compare, cpus, timed, walls

TARGET = Target("≤", 1.03)
PAIR = ("sparse", "dense")


@dataclass(frozen=True)
class Case:
    recipe: str
    batch_size: int
    side: int
    steps: int
    """In a round."""
    rounds: int

    def __str__(self) -> str:
        return f"{self.recipe}, {self.side} px, batch {self.batch_size}"


_CASES = tuple(Case(recipe, batch_size=32, side=96, steps=2, rounds=7) for recipe in ("resnet50_95", "gmp_resnet50_95"))
_SMOKE = (Case("cifar/resnet20_90", batch_size=2, side=32, steps=1, rounds=1),)


@dataclass(frozen=True)
class Found:
    rounds: Rounds
    """Of one step."""
    updates: list[Timing]
    """Of the masks: one global ranking of all weights, and zeroing what it drops."""


def run(smoke: bool) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(smoke)
    finally:
        torch.set_num_threads(threads)


def _run(smoke: bool) -> dict[str, Any]:
    comparisons, updates = [], {}
    for case in _SMOKE if smoke else _CASES:
        found = measure(case, "cpu")
        comparisons.append(compare(str(case), "ms/step", walls(found.rounds, 1000), *PAIR, TARGET))
        comparisons.append(compare(f"{case}: CPU time", "ms/step", cpus(found.rounds, 1000), *PAIR))
        updates[str(case)] = [round(1000 * timing.wall, 1) for timing in found.updates]
    return {
        "comparisons": comparisons,
        "threads": 1,
        "mask_update_ms": updates,
        "notes": [f"mask update, {case}: {median(times):.0f} ms" for case, times in updates.items()],
    }


def measure(case: Case, device: str) -> Found:
    """Dense and sparse steps of one run in turn: the masks are filled and set anew between them."""
    recipe = load(case.recipe, [f"device={device}", f"data.batch_size={case.batch_size}", "optim.lr=0.001"])
    here = choose_device(recipe.device)
    assembly = assemble(recipe, Resident(case.batch_size, case.side, case.steps, here))
    sparse = next(phase.start for phase in assembly.parts.sparsifier.phases.phases if phase.kind == "sparse")
    updates: list[Timing] = []
    contestants = {
        "sparse": partial(_sparse_steps, assembly, sparse, case.steps, updates),
        "dense": partial(_dense_steps, assembly, case.steps),
    }
    alternate(contestants, 1)
    updates.clear()
    return Found(alternate(contestants, case.rounds), updates)


def _sparse_steps(assembly: Assembly, epoch: int, steps: int, updates: list[Timing]) -> Timing:
    update = partial(assembly.parts.sparsifier.on_epoch_start, moment(assembly, epoch))
    updates.append(_timed(update))
    return _timed(lambda: assembly.steps(epoch, steps)).per(steps)


def _dense_steps(assembly: Assembly, steps: int) -> Timing:
    assembly.parts.sparsifier.masked.fill()
    return _timed(lambda: assembly.steps(0, steps)).per(steps)


def _timed(action: Any) -> Timing:
    """Begins and ends with an idle device."""
    settle()

    def settled() -> None:
        action()
        settle()

    return timed(settled)


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
