"""An exponential moving average of the weights, under the model's own masks, judged and saved beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from acdc_cli.sparsity.masked import MaskedParameters


class Average:
    """a <- decay a + (1 - decay) w after each step, for the weights and for batch norm's running statistics.

    Whatever is not a floating-point number, such as batch norm's count of batches, is the model's own. A step with
    non-finite gradients leaves w as it is; it counts like any other, so that the host need not know of it.

    A weight that is masked is exactly zero in the average too: its past is forgotten with it. Where a method frees it,
    on entering a dense phase or by growing it, it comes back in both as zero, and the average follows from there.
    """

    def __init__(self, model: nn.Module, masked: MaskedParameters, decay: float, begin: int = 0) -> None:
        """begin: the epoch after whose first step the average is the weights as they are.

        Make it when the model has its device and its memory layout.
        """
        parameters, saved = dict(model.named_parameters()), model.state_dict()
        buffers = {name: value for name, value in model.named_buffers() if name in saved and value.is_floating_point()}
        self._model = {name: value.detach() for name, value in (parameters | buffers).items()}
        self._average = {name: torch.empty_like(value) for name, value in self._model.items()}
        self.statistics = [self._average[name] for name in buffers]
        """Batch norm's: they are the first rank's, as the model's are."""
        names = {id(value): name for name, value in parameters.items()}
        self._pruned = {name: self._average[names[id(weight)]] for name, weight in masked.parameters.items()}
        self._masked = masked
        self._begin = begin
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._installed = False
        self.begun = False
        """Is there an average yet?"""

    def update(self, epoch: int) -> None:
        """After a step of this epoch and what its method does then: two fused calls, and the host waits for none."""
        if epoch < self._begin:
            return
        if self.begun:
            self._blend(list(self._average.values()), list(self._model.values()), 0)
            self._masked.apply_to(self._pruned)
        else:
            torch._foreach_copy_(list(self._average.values()), list(self._model.values()))
            self.begun = True

    def restart(self) -> None:
        """The next update begins anew: the model has left the weights that were averaged."""
        self.begun = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within, the model is the average, under the masks as they are now; then it is itself again, to the bit.

        Its tensors stay where they are, so that compiled graphs hold for both.
        """
        self._masked.apply_to(self._pruned)
        with self._swapped():
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, the model is itself, even inside `installed`."""
        if not self._installed:
            yield
            return
        with self._swapped():
            yield

    def state_dict(self) -> dict[str, Any]:
        """To be asked for while the model is itself."""
        assert not self._installed
        return {"begun": self.begun, "average": dict(self._average) if self.begun else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
