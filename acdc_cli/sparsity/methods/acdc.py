"""AC/DC: alternating sparse and dense phases give a sparse and a dense model in one run (P1 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Self

from pydantic import model_validator
from torch import Tensor

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import Misfit, RunSize, Sparsity
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.alternation import AlternationBlock
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.revival import Revive, clip_filters, filters_with_weights
from acdc_cli.sparsity.sparsifier import Sparsifier


class Config(AlternationBlock):
    ramp_from: Sparsity | None = None
    """Sparsity of the first sparse phase; it rises in equal steps to the target in the last one (P2 C.2). Default: all
    sparse phases have the target."""
    dense_sparsity: Sparsity = 0.0
    """Share of the weights that stays pruned in dense phases (P2 L, "sparse decompression"): the smallest at the end of
    the warm-up, which is fully dense. Sparse phases choose anew among the others. 0: none."""
    reset_momentum: bool = True
    """Zero the optimiser's state of every parameter on entering a dense phase: momentum, Adam's averages and its step
    count (P1 3.2: "once all weights are re-introduced")."""

    revive: Revive = "as_paper"
    """How a dense phase frees filters that the sparse phase left without weights. `as_paper`: like all others.
    `clipped`: with each filter's gradient clipped to its layer's median, which prevents a collapse at high sparsity
    (docs/results). If every filter has weights, the two are the same."""

    @model_validator(mode="after")
    def _sparsities_in_order(self) -> Self:
        if self.n_of_m and (self.ramp_from is not None or self.dense_sparsity):
            key = "dense_sparsity" if self.ramp_from is None else "ramp_from"
            raise ValueError(f"{key}: pattern {self.pattern} has a single sparsity; remove one of them")
        if self.ramp_from is not None and self.ramp_from > self.target:
            raise ValueError(f"ramp_from: expected at most the target, {self.target:g}, found {self.ramp_from:g}")
        lowest = self.target if self.ramp_from is None else self.ramp_from
        if self.dense_sparsity and self.dense_sparsity >= lowest:
            raise ValueError(
                f"dense_sparsity: expected less than {lowest:g}, the sparsity of the first sparse phase, found "
                f"{self.dense_sparsity:g}"
            )
        return self

    def check(self, run: RunSize) -> Iterator[Misfit]:
        misfits = list(super().check(run))
        yield from misfits
        if self.ramp_from is not None and not misfits and len(self._sparse_starts(run.epochs)) == 1:
            text = "the run has a single sparse phase, so the sparsity cannot rise; remove it, or train longer"
            yield Misfit("ramp_from", text)

    def sparsity(self, epoch: int, epochs: int) -> float:
        """Sparsity of the masks in this epoch."""
        starts, phase = self._sparse_starts(epochs), self.phases(epochs).at(epoch)
        if phase.kind == "dense":
            return self.dense_sparsity if epoch > starts[0] else 0.0
        if self.ramp_from is None:
            return self.target
        # in the decimals of the recipe, so that the last is the target to the bit
        start, target = Fraction(str(self.ramp_from)), Fraction(str(self.target))
        return float(start + (target - start) * starts.index(phase.start) / (len(starts) - 1))

    def _sparse_starts(self, epochs: int) -> list[int]:
        return [phase.start for phase in self.phases(epochs).phases if phase.kind == "sparse"]


class Method(Sparsifier[Config]):
    """Every sparse phase begins with new masks, and a dense phase with none (P1 algorithm 1):

        sparse: m = 1[|w| is among the k largest]        dense: m = 1        w <- m * (w - lr dL/dw)

    k = (1 - s) N of the N weights, where s is the phase's sparsity.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self._dense_masks: dict[str, Tensor] = {}
        """Masks of the dense phases with `dense_sparsity`; set at the first sparse phase."""
        self._living: dict[str, Tensor] = {}
        """Filters that had weights before the current dense phase, if it clips gradients."""
        self._best_rank = -math.inf
        self._best: dict[str, Tensor] = {}
        """The dense model that `dense_best` or `both` will fine-tune; else empty."""

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def sparsity(self, moment: Moment) -> float:
        return self.config.sparsity(moment.epoch, self.epochs)

    def on_epoch_start(self, moment: Moment) -> None:
        phase = self.phases.at(moment.epoch)
        if self._is_kept_in(moment.epoch) and not self._best:
            raise RecipeError(
                f"sparsity.last_phase: {self.config.last_phase} fine-tunes a dense model of earlier epochs, which this "
                "run did not keep: it was forked too late or not validated; use dense_last"
            )
        if phase.start != moment.epoch:
            return
        if phase.kind == "sparse":
            self._compress(moment)
            return
        if moment.epoch > 0 and self.phases.at(moment.epoch - 1).kind == "sparse":
            self._decompress()
        if phase.end == self.epochs and self._best:
            self.training.restore(self._best)
            self._best, self._living = {}, {}

    def on_gradients(self, moment: Moment) -> bool:
        clip_filters(self.masked, self._living)
        return super().on_gradients(moment)

    def on_epoch_end(self, moment: Moment, metrics: Mapping[str, float]) -> None:
        phase = self.phases.at(moment.epoch)
        if phase.kind != "dense" or phase.start == 0 or phase.end == self.epochs:
            return
        if self.config.last_phase == "dense_best":
            headline = self.training.headline
            rank = headline.rank(metrics.get(headline.key))
            if rank > self._best_rank:
                self._best_rank, self._best = rank, self.training.snapshot()
        if self.config.last_phase == "both" and phase.end == moment.epoch + 1 == self.phases.phases[-3].end:
            self._best = self.training.snapshot()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._dense_masks:
            state["dense_masks"] = dict(self._dense_masks)
        if self._living:
            state["living"] = dict(self._living)
        if self._best:
            state["best"] = {"top1": self._best_rank, "model": dict(self._best)}
        return state

    def later_bytes(self, model: int) -> int:
        dense_masks = self.masked.total if self.config.dense_sparsity else 0
        return dense_masks + (model if self.config.last_phase in ("dense_best", "both") else 0)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if dense := state.get("dense_masks"):
            self._dense_masks = {name: dense[name].clone() for name in self.masked.parameters}
        self._living = _cloned(state.get("living", {}))
        if best := state.get("best"):
            self._best_rank, self._best = best["top1"], _cloned(best["model"])

    def _is_kept_in(self, epoch: int) -> bool:
        """Whether the dense model to be fine-tuned is known when this epoch starts."""
        *_, before, last = self.phases.phases
        first = {"dense_best": last.start, "both": before.start}.get(self.config.last_phase, self.epochs)
        return first <= epoch <= last.start

    def _compress(self, moment: Moment) -> None:
        self._living = {}
        magnitudes = self.masked.magnitudes()
        if self.config.dense_sparsity and not self._dense_masks:
            # later rankings would give the same: what is masked in a dense phase ranks below all that lives there
            self._dense_masks = self.selector.masks(magnitudes, self.config.dense_sparsity)
        self.masked.set(self.selector.masks(magnitudes, self.sparsity(moment)))

    def _decompress(self) -> None:
        if self.config.revive == "clipped":
            self._living = filters_with_weights(self.masked.masks)
        if self._dense_masks:
            self.masked.set(self._dense_masks)
        else:
            self.masked.fill()
        if self.config.reset_momentum:
            self.masked.reset_momentum()


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
