"""Host time of a training step outside the forward pass, the backward pass and the optimiser.

The network has as many tensors as ResNet-50, with a few numbers in each: the CPU time is that of the host's work, not
of the device's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from acdc_cli.models import build as models
from acdc_cli.recipe.load import load
from benchmarks.assemble import Resident, assemble, moment
from benchmarks.bare import BareLoop
from benchmarks.measure import compare
from benchmarks.trainer import bar_drawn

_CLASSES, _LAYERS = 10, 53
_SPARSE_EPOCH = 11
"""An epoch in a sparse phase of P1, in which masks are applied at every step."""


PAIR = ("acdc train", "bare loop")


def run(smoke: bool) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds_by_name = {
            precision: measure(precision, 2 if smoke else 200, 1 if smoke else 7) for precision in ("fp32", "bf16")
        }
    finally:
        torch.set_num_threads(threads)
    comparisons = [compare(f"host time, {name}", "µs/step", rounds, *PAIR) for name, rounds in rounds_by_name.items()]
    return {"comparisons": comparisons, "threads": 1}


def measure(precision: str, steps: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of a step in an epoch of a sparse phase as `acdc train` runs it, progress bar included, and of the
    bare loop, in turn."""
    device = torch.device("cpu")
    words = ["device=cpu", "data.batch_size=2", "optim.lr=0.001", f"precision={precision}", "model.blurpool=false"]
    recipe, loader = load("resnet50_95", words), Resident(2, 4, steps, device, _CLASSES)
    with patch.object(models, "_construct", lambda block, classes: _network(classes)):
        assembly = assemble(recipe, loader, _CLASSES)
        bare = BareLoop(recipe, loader, device, _CLASSES)
    assembly.parts.sparsifier.on_epoch_start(moment(assembly, 10))
    inside = _Inside()
    inside.wraps(assembly.trainer._backward._replica, "forward")
    inside.wraps(bare, "_forward")
    for optimizer in (assembly.parts.optimizer, bare._optimizer):
        inside.wraps(optimizer, "step")
    microseconds: dict[str, list[float]] = {name: [] for name in PAIR}
    with inside.wrapped_backward():
        for _ in range(rounds + 1):
            for name, epoch in zip(PAIR, (assembly.train_epoch, bare.train_epoch), strict=True):
                inside.seconds = 0.0
                with bar_drawn():
                    began = time.thread_time()
                    epoch(_SPARSE_EPOCH)
                    whole = time.thread_time() - began
                microseconds[name].append(1e6 * (whole - inside.seconds) / steps)
    # the first epoch allocates
    return {name: times[1:] for name, times in microseconds.items()}


class _Inside:
    """Adds up the CPU time of what it wraps: forward passes, backward passes and optimisers' steps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wraps(self, owner: Any, name: str) -> None:
        setattr(owner, name, self._timed(getattr(owner, name)))

    @contextmanager
    def wrapped_backward(self) -> Iterator[None]:
        # where both loops end up
        with patch.object(torch.autograd, "backward", self._timed(torch.autograd.backward)):
            yield

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds += time.thread_time() - began

        return timed


def _network(classes: int) -> nn.Module:
    """53 convolutions with batch norm, and a linear layer."""
    layers = [nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)) for _ in range(_LAYERS)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
