"""A step of every method, between two updates of its masks, against the dense step of the same model and batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from acdc_cli.recipe import kinds
from acdc_cli.recipe.load import load
from acdc_cli.training.precision import choose_device
from benchmarks.assemble import Assembly, Resident, assemble, moment
from benchmarks.measure import Contestant, Rounds, Target, Timing, alternate, compare, cpus, timed, walls

TARGET = Target("≤", 1.03)
STEPS_PER_EPOCH = 1000
_RECIPES = {"acdc": "resnet50_95", "str": "str_resnet50"}
"""Shipped recipes whose `sparsity` block is measured; the others are `<method>_resnet50_95`."""
_SIDE_BY_SIDE = 4
"""Methods that take turns with one dense model: a ResNet-50 with all it needs takes 0.6 GiB."""
_DEARER = ("str", "topkast")
"""They compute the weights of the forward pass anew at every step."""
_NO_UPDATE: dict[str, dict[str, Any]] = {
    "deepr": {"every": STEPS_PER_EPOCH},
    "dpf": {"every": STEPS_PER_EPOCH, "begin": 75},
    "gmp": {"every_epochs": 75},
    "lottery": {"prune": 0.95, "rewind_to": 0},
    "snip": {"batches": 1},
    "synflow": {"rounds": 1},
    "topkast": {"every": STEPS_PER_EPOCH},
    # one update, of a Fisher matrix that takes no time: it is the steps after it that are measured
    "woodfisher": {
        "from_checkpoint": None,
        "begin": 40,
        "end": 40,
        "samples": 1,
        "fisher_batch_size": 1,
        "fisher_block": 16,
        "damping": 1.0,
    },
}
"""What keeps updates out of the measured steps, or those before them short; it changes no step between updates."""


@dataclass(frozen=True)
class Case:
    model: str
    """A dense recipe, whose `sparsity` block is exchanged."""
    batch_size: int
    side: int
    steps: int
    """In a round."""
    rounds: int
    held_to_target: bool = False

    def __str__(self) -> str:
        return f"{self.model.removesuffix('_dense')}, {self.side} px, batch {self.batch_size}"


_CASES = (
    Case("resnet50_dense", batch_size=32, side=96, steps=1, rounds=7, held_to_target=True),
    Case("cifar/resnet20_dense", batch_size=128, side=32, steps=2, rounds=7),
)
_SMOKE = (Case("cifar/resnet20_dense", batch_size=2, side=32, steps=1, rounds=1),)


def run(smoke: bool) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(smoke)
    finally:
        torch.set_num_threads(threads)


def methods() -> list[str]:
    return [name for name in kinds.methods() if name != "dense"]


def _run(smoke: bool) -> dict[str, Any]:
    comparisons = []
    cases = _SMOKE if smoke else _CASES
    for case in cases:
        for group in groups(methods(), _SIDE_BY_SIDE):
            rounds = measure(case, group, "cpu")
            for method in group:
                target = TARGET if case.held_to_target and method not in _DEARER else None
                pair = (method, "dense")
                comparisons.append(compare(f"{method}, {case}", "ms/step", walls(rounds, 1000), *pair, target))
                comparisons.append(compare(f"{method}, {case}: CPU time", "ms/step", cpus(rounds, 1000), *pair))
    updates = [round(1000 * timing.wall, 1) for timing in updates_of(_assembled(cases[0], "acdc", "cpu"))]
    return {
        "comparisons": comparisons,
        "threads": 1,
        "mask_update_ms": updates,
        "notes": [f"global mask update, {cases[0]}: {median(updates):.0f} ms"],
    }


def groups(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def measure(case: Case, methods: Sequence[str], device: str) -> Rounds:
    """Steps of each method's last sparse phase and dense steps in turn; of one step."""
    contestants = {method: _contestant(case, method, device) for method in ("dense", *methods)}
    alternate(contestants, 1)
    return alternate(contestants, case.rounds)


def _contestant(case: Case, method: str, device: str) -> Contestant:
    assembly = _assembled(case, method, device)
    return partial(_steps, assembly, 1 if method == "dense" else brought_to_its_sparse_phase(assembly), case.steps)


def updates_of(assembly: Assembly, count: int = 7) -> list[Timing]:
    """Times of AC/DC's mask updates: one global ranking of all weights, and zeroing. The first is not counted."""
    epoch = next(phase.start for phase in assembly.parts.sparsifier.phases.phases if phase.kind == "sparse")
    assembly.steps(0, 1)
    updates = []
    for _ in range(count + 1):
        assembly.parts.sparsifier.masked.fill()
        updates.append(settled(partial(assembly.parts.sparsifier.on_epoch_start, moment(assembly, epoch))))
    return updates[1:]


def _assembled(case: Case, method: str, device: str) -> Assembly:
    settings = [f"device={device}", f"data.batch_size={case.batch_size}", "optim.lr=0.001"]
    if method != "dense":
        block = load(_RECIPES.get(method, f"{method}_resnet50_95")).as_dict()["sparsity"] | _NO_UPDATE.get(method, {})
        settings.append(f"sparsity={json.dumps(block)}")
    recipe = load(case.model, [f"epochs={_epochs(method)}", *settings])
    return assemble(recipe, Resident(case.batch_size, case.side, STEPS_PER_EPOCH, choose_device(device)))


def _epochs(method: str) -> int:
    """Epochs of the run that the method's recipe is made for: its phases must fit."""
    return 100 if method == "dense" else load(_RECIPES.get(method, f"{method}_resnet50_95")).epochs


def brought_to_its_sparse_phase(assembly: Assembly) -> int:
    """Every update of the masks on the way happens, with one step at the start; returns the epoch that is reached."""
    sparsifier = assembly.parts.sparsifier
    sparse = max(phase.start for phase in sparsifier.phases.phases if phase.kind == "sparse")
    for epoch in range(max(sparse, 1) + 1):
        sparsifier.on_epoch_start(moment(assembly, epoch))
        if epoch == 0:
            assembly.steps(0, 1, first=0)
    return max(sparse, 1)


def _steps(assembly: Assembly, epoch: int, steps: int) -> Timing:
    return settled(lambda: assembly.steps(epoch, steps)).per(steps)


def settled(action: Any) -> Timing:
    """Begins and ends with an idle device."""
    settle()

    def whole() -> None:
        action()
        settle()

    return timed(whole)


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
