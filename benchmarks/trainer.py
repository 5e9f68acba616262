"""Images a second of `acdc train` against a bare PyTorch loop with the same model, loader and batch, on CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from acdc_cli import console
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.training.precision import choose_device
from benchmarks.assemble import Resident, assemble
from benchmarks.bare import BareLoop
from benchmarks.measure import Rounds, Target, Timing, alternate, compare, cpus, speeds, timed

TARGET = Target("≥", 0.97)
PAIR = ("acdc train", "bare loop")


@dataclass(frozen=True)
class Case:
    recipe: str
    batch_size: int
    side: int
    classes: int
    steps: int
    """In a round."""
    rounds: int

    @property
    def images(self) -> int:
        return self.batch_size * self.steps

    def load(self, device: str) -> Recipe:
        return load(
            self.recipe,
            # small, because images and labels are random: training must not diverge
            [f"device={device}", f"data.batch_size={self.batch_size}", "optim.lr=0.001", "epochs=1000"],
        )

    def __str__(self) -> str:
        return f"{self.recipe}, {self.side} px, batch {self.batch_size}"


_CASES = (
    Case("cifar/resnet20_dense", batch_size=128, side=32, classes=10, steps=8, rounds=11),
    Case("resnet50_dense", batch_size=16, side=64, classes=1000, steps=3, rounds=9),
)
_SMOKE = (Case("cifar/resnet20_dense", batch_size=4, side=32, classes=10, steps=2, rounds=2),)


def run(smoke: bool) -> dict[str, Any]:
    threads = torch.get_num_threads()
    comparisons = []
    for case in _SMOKE if smoke else _CASES:
        rounds = measure(case, "cpu")
        comparisons.append(compare(str(case), "images/s", speeds(rounds, case.images), *PAIR, TARGET))
        per_step = {name: [timing.per(case.steps) for timing in timings] for name, timings in rounds.items()}
        comparisons.append(compare(f"{case}: CPU time of a step", "ms", cpus(per_step, 1000), *PAIR))
    return {
        "comparisons": comparisons,
        "threads": threads,
        "notes": ["The batch lies in memory, so that no loader's time hides the loop's; the progress bar is drawn."],
    }


def measure(case: Case, device: str) -> Rounds:
    """Epochs of the trainer and of the bare loop in turn, without their first, which compiles and allocates."""
    recipe = case.load(device)
    here = choose_device(recipe.device)
    loader = Resident(case.batch_size, case.side, case.steps, here, case.classes)
    assembly = assemble(recipe, loader, case.classes)
    bare = BareLoop(recipe, loader, here, case.classes)
    with bar_drawn():
        contestants = {
            "acdc train": partial(_timed_epoch, assembly.train_epoch),
            "bare loop": partial(_timed_epoch, bare.train_epoch),
        }
        alternate(contestants, 1)
        return alternate(contestants, case.rounds)


@contextmanager
def bar_drawn() -> Iterator[None]:
    """As for a person at a terminal, wherever this runs."""
    with patch.object(console, "_err", Console(file=StringIO(), force_terminal=True, width=120)):
        yield


def _timed_epoch(train_epoch: Any) -> Timing:
    # both end by fetching the loss from the device, so that nothing is left running
    return timed(lambda: train_epoch(0))
