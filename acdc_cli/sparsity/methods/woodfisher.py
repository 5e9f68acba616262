"""WoodFisher: prune by the empirical Fisher's inverse, and let the other weights make up for it (arXiv 2004.14340)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from acdc_cli.errors import RecipeError, RunError
from acdc_cli.recipe.schema import Misfit, RunSize
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.fisher import Fisher, passes
from acdc_cli.sparsity.how_much import CubicKeys
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier

_log = logging.getLogger(__name__)


class Config(CubicKeys):
    """Gradual along a cubic from `begin` to `end`; all at once where they are the same epoch."""

    samples: PositiveInt = 400
    """Gradients that make up the Fisher matrix, taken anew at every update from the images its epoch begins with."""
    fisher_batch_size: PositiveInt = 1
    """Images that one of these gradients is the mean of, no more than `data.batch_size`. 1 is the empirical Fisher by
    its definition; more see more of the data at the same memory."""
    fisher_block: PositiveInt = 2000
    """Consecutive weights of a layer whose interplay counts: the Fisher matrix is zero outside such blocks. Time and
    memory grow in proportion."""
    damping: PositiveFloat = 1e-5
    """Added to the Fisher matrix' diagonal, so that it has an inverse."""
    memory_gib: PositiveFloat = 16.0
    """Memory for the inverse, in GiB, on the device that trains. The whole takes 4 bytes · weights · `fisher_block`;
    where there is less, the layers are worked through in parts, with two passes over the gradients for each."""

    @model_validator(mode="after")
    def _holds_a_block(self) -> Self:
        needed = 4 * self.fisher_block**2 / 2**30
        if needed > self.memory_gib:
            raise ValueError(
                f"memory_gib: the inverse of a single block of {self.fisher_block} weights takes {needed:.3g} GiB; "
                "make memory_gib larger, or fisher_block smaller"
            )
        return self

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if run.batch_size and self.fisher_batch_size > run.batch_size:
            batch = f"{self.fisher_batch_size} images are taken from one batch, and data.batch_size is {run.batch_size}"
            yield Misfit("fisher_batch_size", f"{batch}; make it smaller")


class Method(Sparsifier[Config]):
    """The momentum of the weights that stay is kept: they move a little, and are trained on from there."""

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def sparsity(self, moment: Moment) -> float:
        return self.config.sparsity(moment.epoch, self.epochs)

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        config, work = self.config, super().cost(epoch, steps_per_epoch)
        if not config.updates_at(epoch, self.epochs):
            return work
        passed = passes(self.masked.parameters, config.fisher_block, config.memory_bytes)
        return replace(work, probed_images=passed * config.samples * config.fisher_batch_size)

    def on_epoch_start(self, moment: Moment) -> None:
        if self.config.updates_at(moment.epoch, self.epochs):
            self._prune(moment)

    def _prune(self, moment: Moment) -> None:
        config, masks = self.config, self.masked.masks
        weights = {name: weight.detach() for name, weight in self.masked.parameters.items()}
        fisher = Fisher(
            weights,
            partial(self._gradients, moment),
            samples=config.samples,
            block=config.fisher_block,
            damping=config.damping,
            budget=config.memory_bytes,
        )
        # the pruned rank below all that live, even below those that live as zeros
        scores = {name: score.masked_fill(~masks[name], -1) for name, score in fisher.scores().items()}
        kept = self.selector.masks(scores, self.sparsity(moment))
        change = fisher.compensation({name: masks[name] & ~mask for name, mask in kept.items()})
        torch._foreach_add_(list(weights.values()), [change[name] for name in weights])
        self.masked.set(kept)

    def _gradients(self, moment: Moment) -> Iterator[dict[str, Tensor]]:
        """Zero where masked: pruned weights have no part in the loss of the others.

        One that is no number counts as zero, like a training step that the optimiser leaves out.
        """
        config, masks = self.config, self.masked.masks
        finite: list[Tensor] = []
        for gradient in self.training.gradients(moment, config.samples, config.fisher_batch_size):
            finite.append(torch.stack([part.isfinite().all() for part in gradient.values()]).all())
            yield {name: part.where(masks[name] & finite[-1], 0) for name, part in gradient.items()}
            # before the next one is made: one of them is as large as the model
            del gradient
        self._check(moment, finite)

    def _check(self, moment: Moment, finite: list[Tensor]) -> None:
        """Raises RecipeError if there were too few gradients, RunError if none of them is a number."""
        asked, size = self.config.samples, self.config.fisher_batch_size
        if len(finite) < asked:
            raise RecipeError(
                f"sparsity.samples: epoch {moment.epoch} has images for {len(finite)} gradients of {size} each "
                f"(fisher_batch_size), not for {asked}: lower samples or fisher_batch_size"
            )
        used = int(torch.stack(finite).sum())
        if not used:
            raise RunError(
                f"at the start of epoch {moment.epoch} none of {asked} gradients is a number: the model has diverged; "
                "lower optim.lr, and go on from a checkpoint before it did"
            )
        if used < asked:
            _log.warning(
                "epoch %d: %d of %d gradients are no numbers, and are left out", moment.epoch, asked - used, asked
            )
