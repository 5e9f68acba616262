"""An exponential moving average of the weights, under the model's masks, evaluated and saved beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from acdc_cli.errors import CheckpointError
from acdc_cli.sparsity.masked import MaskedParameters


class Average:
    """a <- decay a + (1 - decay) w after each step, for the weights and for batch norm's running statistics.

    Other values, such as batch norm's batch counters, are the model's own. A step with non-finite gradients leaves w
    unchanged; it counts like any other, so that the host need not know of it.

    A masked weight is exactly zero in the average too: its history is dropped. When a method frees it, on entering a
    dense phase or by growing it, it starts from zero in both, and the average follows from there.
    """

    def __init__(self, model: nn.Module, masked: MaskedParameters, decay: float, begin: int = 0) -> None:
        """begin: the epoch in whose first step the average is set to the weights.

        Create it once the model is on its device and in its memory layout.
        """
        parameters, saved = dict(model.named_parameters()), model.state_dict()
        buffers = {name: value for name, value in model.named_buffers() if name in saved and value.is_floating_point()}
        self._model = {name: value.detach() for name, value in (parameters | buffers).items()}
        self._average = {name: torch.empty_like(value) for name, value in self._model.items()}
        self.statistics = [self._average[name] for name in buffers]
        """Batch norm's statistics: those of the first rank, as in the model."""
        names = {id(value): name for name, value in parameters.items()}
        self._pruned = {name: self._average[names[id(weight)]] for name, weight in masked.parameters.items()}
        self._masked = masked
        self._begin = begin
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._installed = False
        self.begun = False
        """Whether the average has begun."""

    def update(self, epoch: int) -> None:
        """Call after a step of this epoch and the method's work after it: two fused calls; the host waits for
        neither."""
        if epoch < self._begin:
            return
        if self.begun:
            self._blend(list(self._average.values()), list(self._model.values()), 0)
            self._masked.apply_to(self._pruned)
        else:
            torch._foreach_copy_(list(self._average.values()), list(self._model.values()))
            self.begun = True

    def restart(self) -> None:
        """The next update starts the average anew: the model no longer has the weights that were averaged."""
        self.begun = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside this context the model is the average under its current masks; afterwards it is restored exactly.

        Its tensors stay in place, so that compiled graphs work for both.
        """
        self._masked.apply_to(self._pruned)
        with self._swapped():
            yield

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside this context the model is itself, even within `installed`."""
        if not self._installed:
            yield
            return
        with self._swapped():
            yield

    def state_dict(self) -> dict[str, Any]:
        """Call it only while the model is itself."""
        assert not self._installed
        return {"begun": self.begun, "average": dict(self._average) if self.begun else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["begun"] and state["average"].keys() != self._average.keys():
            raise CheckpointError("the checkpoint's average is of other weights; start a new run with --out")
        self.begun = state["begun"]
        for name, value in state["average"].items():
            self._average[name].copy_(value)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        model, average = list(self._model.values()), list(self._average.values())
        models_own = [value.clone() for value in model]
        torch._foreach_copy_(model, average)
        torch._foreach_copy_(average, models_own)
        self._installed = not self._installed
