"""RigL: drop the smallest weights, grow where the dense gradient is largest (arXiv 1911.11134)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import PositiveInt, model_validator

from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.exchange import ExchangeKeys, drop_and_grow
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.random_start import RandomStartKeys, start_at_random
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.which import GradientSums


class Config(ExchangeKeys, RandomStartKeys):
    average_batches: PositiveInt = 1
    """Batches whose mean gradient decides which weights grow: the update's own and those before it, at most back to the
    previous update."""

    @model_validator(mode="after")
    def _averages_between_updates(self) -> Self:
        if self.every is not None and self.average_batches > self.every:
            raise ValueError(f"average_batches: only {self.every} batches lie between two updates (every); lower it")
        return self

    def averages_at(self, moment: Moment) -> bool:
        """Whether the next update uses this step's gradient."""
        to_update = -moment.step % self.interval(moment.steps_per_epoch)
        return to_update < self.average_batches and 0 < moment.step + to_update < self.last_step(moment)

    def averaged(self, epoch: Moment) -> int:
        """Number of steps, in the epoch that begins at this moment, whose gradients an update uses."""
        interval, begin = self.interval(epoch.steps_per_epoch), epoch.step
        end = begin + epoch.steps_per_epoch
        # an update's last batch is its own: gradients of this epoch serve updates within it or just after it
        first = max(-(-begin // interval), 1) * interval
        updates = range(first, min(self.last_step(epoch), end + self.average_batches - 1), interval)
        return sum(len(range(max(begin, at - self.average_batches + 1), min(end, at + 1))) for at in updates)


class Method(Sparsifier[Config]):
    """At step t, the k - n largest |w| of a layer's k living weights stay, and of all others the n with the largest
    |dL/dw| grow (section 3; P2 eq. 6). a is `fraction`, T the step of `end`:

        n = floor(a/2 (1 + cos(πt/T)) k)

    The optimiser skips the step of an update. Steps whose gradient decides about growth have a dense backward pass.

    The first update comes after one interval. google-research's code has another at step 0, where magnitudes of
    untrained weights say nothing about which to drop.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.updates = 0
        self.gradients = GradientSums(masked)
        """Sums since the averaging for the next update began; else empty."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        first = Moment(epoch, epoch * steps_per_epoch, self.epochs, steps_per_epoch)
        dense_gradients = self.config.averaged(first) / steps_per_epoch
        return replace(super().cost(epoch, steps_per_epoch), dense_gradients=dense_gradients)

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        if moment.step == 0:
            start_at_random(self.masked, self.selector, self.config.target, self.seed)

    def on_gradients(self, moment: Moment) -> bool:
        if self.config.averages_at(moment):
            self.gradients.add()
        if not self.config.updates_at(moment):
            return super().on_gradients(moment)
        # the one place where the host waits, and only at updates
        steps = not self.masked.finite_gradients().item()
        if steps:
            super().on_gradients(moment)
        else:
            self.update(moment)
        self.gradients.clear()
        return steps

    def update(self, moment: Moment) -> None:
        share = self.config.exchanged(moment)
        self.masked.set(drop_and_grow(self.masked, share, self.gradients.magnitudes()))
        self.updates += 1

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"mask_updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates, "gradients": self.gradients.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]
        self.gradients.load_state_dict(state["gradients"])
