"""SET: drop the smallest weights, grow others at random (arXiv 1707.04780)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.exchange import ExchangeKeys, drop_and_grow
from acdc_cli.sparsity.random_start import RandomStartKeys, start_at_random
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.which import random_scores


class Config(ExchangeKeys, RandomStartKeys):
    """No keys of its own: updates and their cosine are RigL's, so only the growth differs."""


class Method(Sparsifier[Config]):
    """At step t, the k - n largest |w| of a layer's k living weights stay, and n of all others grow, each with the same
    probability. a is `fraction`, T the step of `end`:

        n = floor(a/2 (1 + cos(πt/T)) k)

    An update follows the optimiser's step: the paper trains, then rewires (algorithm 1), and so does
    google-research's code. RigL skips that step instead.
    """

    updates = 0

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        if moment.step == 0:
            start_at_random(self.masked, self.selector, self.config.target, self.seed)

    def after_step(self, moment: Moment) -> None:
        # the one place where the host waits, and only at updates
        if self.config.updates_at(moment) and self.masked.finite_gradients().item():
            scores = random_scores(self.masked.parameters, self.seed, moment.step)
            self.masked.set(drop_and_grow(self.masked, self.config.exchanged(moment), scores))
            self.updates += 1

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"mask_updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]
