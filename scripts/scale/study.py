"""P2's Figure C.1 as work: how long each run takes on a group of GPUs, and all of them on many groups."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from acdc_cli.jobs import setup
from acdc_cli.jobs.run_plan import plan
from acdc_cli.recipe.load import load
from acdc_cli.schedule.sizes import sizes
from acdc_cli.studies.study import load_study
from scripts.scale.parts import Machine, Model
from scripts.scale.run import Failures, Outcome, Work, simulate
from scripts.scale.steps import mean_step

STUDY = "epoch_length"
_LONGEST = 200
"""Epochs: longer runs are the same work on more of it."""
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20
"""Bytes that DistributedDataParallel sends at once."""


@dataclass(frozen=True)
class Cell:
    """A run of the study."""

    key: str
    sides: tuple[int, ...]
    """Sides of the training images, by epoch."""

    @property
    def epochs(self) -> int:
        return len(self.sides)


@cache
def cells() -> tuple[Cell, ...]:
    recipes = load_study(STUDY).recipes()
    return tuple(Cell(key, tuple(sizes(recipe))) for key, recipe in recipes.items() if recipe.epochs <= _LONGEST)


@cache
def resnet50() -> Model:
    recipe = load("resnet50_dense")
    parameters = setup.without_weights(recipe, 1000).parameters()
    gradients = 4 * sum(parameter.numel() for parameter in parameters)
    flops = {
        side: plan(load("resnet50_dense", ["epochs=1", "optim.schedule.warmup_epochs=0", f"data.resolution={side}"]))
        .epochs[0]
        .train_flops
        for side in (160, 192, 224)
    }
    return Model(gradients, 1 + -(-(gradients - _FIRST_BUCKET) // _BUCKET), flops)


@dataclass(frozen=True)
class Speed:
    """Speed of training a run on a group of GPUs."""

    step: dict[int, float]
    """Seconds, by side."""
    epoch: dict[int, float]
    validation: float

    def training(self, sides: Sequence[int]) -> float:
        """Seconds of the steps of all epochs."""
        return sum(self.epoch[side] for side in sides)


@cache
def speed(machine: Machine) -> Speed:
    gpus, within = machine.gpus, machine.assumed.machine
    step = {side: mean_step(machine.step(side), gpus, within) for side in (160, 192)}
    return Speed(step, {side: machine.steps * seconds for side, seconds in step.items()}, machine.validation())


def run_of(machine: Machine, sides: Sequence[int], asynchronous: bool = False, seed: int = 0) -> Outcome:
    """A run of that many epochs, saved after each as the recipe says; every epoch as long as their mean."""
    rates = speed(machine)
    work = Work(rates.training(sides) / len(sides), len(sides), rates.validation)
    failures = Failures(machine.failures_per_hour(), machine.restart())
    return simulate(work, machine.checkpoint(asynchronous), failures, seed)


def first_start(machine: Machine) -> float:
    """Seconds until a run's first step."""
    return machine.restart() - machine.assumed.detection


@dataclass(frozen=True)
class Schedule:
    """The whole study on groups of GPUs."""

    makespan: float
    """Seconds until the last run ends."""
    busy: float
    """GPU seconds that runs took."""
    goodput: float
    """Steps that count / GPU seconds that runs took."""


def schedule(machine: Machine, gpus: int, asynchronous: bool = False) -> Schedule:
    """All runs of the study on groups as large as `machine`, as many as fit into `gpus`."""
    start = first_start(machine)
    runs = [run_of(machine, cell.sides, asynchronous, seed) for seed, cell in enumerate(cells())]
    busy = sum(run.total + start for run in runs)
    makespan = list_schedule([run.total + start for run in runs], gpus // machine.gpus)
    return Schedule(makespan, machine.gpus * busy, sum(run.training for run in runs) / busy)


def list_schedule(seconds: Iterable[float], groups: int) -> float:
    """Seconds until all jobs are done: the longest first, each on the group that is free first."""
    free = [0.0] * groups
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)
