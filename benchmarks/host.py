"""Host time of a training step outside the forward pass, the backward pass and the optimiser.

The network has as many tensors as ResNet-50, with a few numbers in each, so that the CPU time measured is the host's work
and not the device's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from acdc_cli.models import catalog as models
from acdc_cli.recipe.load import load
from benchmarks.assemble import Assembly, Resident, assemble, moment
from benchmarks.trainer import bar_drawn

_CLASSES, _LAYERS = 10, 53
_SPARSE_EPOCH = 11
"""Of P1's phases: masks are applied at every step."""


def run(smoke: bool) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {name: measure(name, 2 if smoke else 200, 1 if smoke else 7) for name in ("fp32", "bf16")}
    finally:
        torch.set_num_threads(threads)
    notes = [f"{name}: {median(rounds):.0f} µs a step" for name, rounds in found.items()]
    return {"comparisons": [], "threads": 1, "host_microseconds": found, "notes": notes}


def measure(precision: str, steps: int, rounds: int) -> list[float]:
    """Microseconds of a step in an epoch as `acdc train` runs it, progress bar included; one number a round."""
    words = ["device=cpu", "data.batch_size=2", "optim.lr=0.001", f"precision={precision}", "epochs=100"]
    with patch.object(models, "_construct", lambda block, classes: _network(classes)):
        recipe = load("resnet50_95", [*words, "model.blurpool=false"])
        assembly = assemble(recipe, Resident(2, 4, steps, torch.device("cpu"), _CLASSES), _CLASSES)
    inside = _Timed(assembly)
    assembly.parts.sparsifier.on_epoch_start(moment(assembly, 10))
    found = []
    for _ in range(rounds + 1):
        inside.seconds = 0.0
        with bar_drawn():
            began = time.thread_time()
            assembly.train_epoch(_SPARSE_EPOCH)
            whole = time.thread_time() - began
        found.append(round(1e6 * (whole - inside.seconds) / steps, 1))
    return found[1:]


class _Timed:
    """Wraps the forward pass, the backward pass and the optimiser's step of an assembly, and adds up their time."""

    def __init__(self, assembly: Assembly) -> None:
        self.seconds = 0.0
        replica, optimizer = assembly.trainer._replica, assembly.parts.optimizer
        replica.forward = self._timed(replica.forward)
        optimizer.step = self._timed(optimizer.step)  # type: ignore[method-assign]
        torch.autograd.backward = self._timed(_BACKWARD)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds += time.thread_time() - began

        return timed


_BACKWARD = torch.autograd.backward


def _network(classes: int) -> nn.Module:
    """53 convolutions with batch norm, and a linear layer."""
    layers = [nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)) for _ in range(_LAYERS)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
