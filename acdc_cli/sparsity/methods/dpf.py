"""DPF: the gradients of the pruned model train dense weights, which are ranked again regularly (arXiv 2006.07253)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from acdc_cli.recipe.blocks.base import Misfit, RunSize
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.cubic import CubicKeys
from acdc_cli.sparsity.latent import LatentWeights
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.revival import Revive, clip_filters, filters_with_weights
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import ranks_after


class Config(CubicKeys):
    """The sparsity rises along the cubic; masks also change between its steps and after the last one."""

    every: PositiveInt = 16
    """Steps between two rankings of the dense weights, to the end of the run (the paper's p: 16)."""
    every_epochs: PositiveInt = 1
    """Epochs between two steps of the sparsity."""
    revive: Revive = "as_paper"
    """How dense weights learn while a filter of the pruned model is empty. `as_paper`: like all others. `clipped`: with
    each filter's gradient clipped to its layer's median, which prevents a collapse at high sparsity (docs/results)."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if run.steps_per_epoch is None:
            return
        reached, last = self.ramp(run.epochs)[1] * run.steps_per_epoch, run.epochs * run.steps_per_epoch - 1
        if last // self.every * self.every <= reached:
            text = f"the weights are not ranked again after step {reached}, which reaches the target; make it smaller"
            yield Misfit("every", text, stops=False)


class Method(Sparsifier[Config]):
    """w <- w - lr g(m * w): the pruning error w - m * w is fed back into every later step (section 3).

    Momentum and weight decay act on the dense weights w. Between two steps the model holds m * w.
    """

    revives_values = True

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.latent = LatentWeights(masked)
        self._living: dict[str, Tensor] = {}
        """Filters of the pruned model that have weights, if gradients are clipped."""

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def sparsity(self, moment: Moment) -> float:
        return self.config.sparsity(moment.epoch, self.epochs)

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        return replace(super().cost(epoch, steps_per_epoch), backward=self.living(0.0))

    def on_epoch_start(self, moment: Moment) -> None:
        if not self.config.updates_at(moment.epoch, self.epochs):
            return
        if self._dense:
            self.latent.store()
        self.latent.install()
        self._prune(moment)

    def on_gradients(self, moment: Moment) -> bool:
        clip_filters(self.masked, self._living)
        if not self._dense:
            self.latent.install()
        return True

    def after_step(self, moment: Moment) -> None:
        if self._dense:
            return
        self.latent.store()
        # the one place where the host waits, and only at updates
        if ranks_after(moment, self.config.every) and self.masked.finite_gradients().item():
            self._prune(moment)
        else:
            self.masked.apply()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"latent": self.latent.state_dict()}

    def later_bytes(self, model: int) -> int:
        return self.masked.total  # the backward masks

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.latent.load_state_dict(state["latent"])
        self._choose_clipping()

    @property
    def _dense(self) -> bool:
        """Whether nothing is pruned yet; the model itself then holds the dense weights."""
        return self.masked.sparsity() == 0

    def _prune(self, moment: Moment) -> None:
        """Prune the model, which holds the dense weights."""
        masks = self.selector.masks(self.latent.magnitudes(), self.sparsity(moment))
        self.masked.set(masks, backward={name: torch.ones_like(mask) for name, mask in masks.items()})
        self._choose_clipping()

    def _choose_clipping(self) -> None:
        if self.config.revive == "clipped":
            self._living = filters_with_weights(self.masked.masks)
