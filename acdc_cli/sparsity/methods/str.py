"""STR: every layer learns the threshold below which its weights are zero (arXiv 2002.03231)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.recipe.blocks.sparsity import PrunedBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.latent import LatentWeights
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import in_turn


class Config(PrunedBlock):
    """There is no target: the sparsity results from the weight decay of s and of the weights."""

    s_init: Annotated[float, Field(lt=0)] = -3200.0
    """Initial s of every layer, whose threshold is sigmoid(s). The paper: -3200 (ResNet-50), -12800 (MobileNet). From
    there, training is dense until decay has brought s near -10; start a short run at -10."""
    s_decay: NonNegativeFloat | None = None
    """Weight decay of s, which draws s towards 0, a threshold of 0.5: more decay gives a sparser model. Default: the
    decay of the weights, as in the paper."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        return super().proposed(run, target) | {"s_init": -10.0}


class Method(Sparsifier[Config]):
    """The model holds w' = sign(w) relu(|w| - sigmoid(s)); the optimiser moves w and s.

        dL/dw = dL/dw' where w' is not 0, else 0        dL/ds = -sigmoid'(s) sum(dL/dw' sign(w'))

    A zero weight may return, so all masks are True until the end of the run.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.latent = LatentWeights(masked)
        first = next(iter(masked.parameters.values()))
        self.s = nn.Parameter(first.new_full((len(masked.parameters),), config.s_init))
        """(layers,): a layer's threshold is sigmoid(s)."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def sparsity(self, moment: Moment) -> None:
        return None

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Raises RecipeError if nothing would ever move s."""
        decay = weight_decay if self.config.s_decay is None else self.config.s_decay
        if not decay and not self.s.sigmoid().any():
            raise RecipeError(
                f"sparsity.s_decay: without decay s stays at {self.config.s_init:g}, where the threshold and its "
                "gradient are 0; set s_decay or optim.weight_decay, or a larger s_init"
            )
        return [{"params": [self.s], "weight_decay": decay}]

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.step == 0:
            self._shrink()

    def on_gradients(self, moment: Moment) -> bool:
        gradients = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad
            for weight in self.masked.parameters.values()
        ]
        signs = torch._foreach_sign([weight.detach() for weight in self.masked.parameters.values()])
        torch._foreach_mul_(gradients, signs)
        threshold = self.s.detach().sigmoid()
        self.s.grad = -threshold * (1 - threshold) * torch.stack([gradient.sum() for gradient in gradients])
        # a squared sign is 1, or 0 for a zero weight: the product is dL/dw
        torch._foreach_mul_(gradients, signs)
        self.latent.install()
        return True

    def after_step(self, moment: Moment) -> None:
        self.latent.store()
        self._shrink()

    def finish(self) -> None:
        self.masked.set(self.support())

    def support(self) -> dict[str, Tensor]:
        return {name: weight.detach() != 0 for name, weight in self.masked.parameters.items()}

    def metrics(self) -> dict[str, float]:
        thresholds = self.s.detach().sigmoid()
        smallest, mean, largest = torch.stack([thresholds.min(), thresholds.mean(), thresholds.max()]).tolist()
        return {
            "mask_sparsity": sum(self.masked.zeros().values()) / self.masked.total,
            "threshold_min": smallest,
            "threshold_mean": mean,
            "threshold_max": largest,
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"latent": self.latent.state_dict(), "s": self.s.detach()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.latent.load_state_dict(state["latent"])
        self.s.detach().copy_(state["s"])

    def _shrink(self) -> None:
        """Replace w by w' = w - clamp(w, -threshold, threshold), which is exactly the soft threshold."""
        weights = [weight.detach() for weight in self.masked.parameters.values()]
        thresholds = self.s.detach().sigmoid()
        clamped = torch._foreach_clamp_max(weights, thresholds.unbind())
        torch._foreach_clamp_min_(clamped, thresholds.neg().unbind())
        torch._foreach_sub_(weights, clamped)
