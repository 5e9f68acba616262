"""WoodFisher: prune by the empirical Fisher's inverse, and let the other weights compensate (arXiv 2004.14340)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from acdc_cli.errors import RecipeError, RunError
from acdc_cli.recipe.blocks.base import Misfit, RunSize
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.cubic import CubicKeys
from acdc_cli.sparsity.fisher import Fisher, passes
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier

_log = logging.getLogger(__name__)

_FEW = 0.25
"""Share of the gradients below which a Fisher matrix that rests on them is a poor estimate."""


class Config(CubicKeys):
    """Gradual along a cubic from `begin` to `end`; all at once if they are the same epoch."""

    at_once = {"begin": 0, "end": 0}

    samples: PositiveInt = 400
    """Gradients in the Fisher matrix, computed anew at every update from the first images of its epoch."""
    fisher_batch_size: PositiveInt = 10
    """Images averaged in one of these gradients, at most `data.batch_size`. 1 is the empirical Fisher by definition,
    but images that the model fits have almost no gradient; more of them use more of the data at the same memory."""
    fisher_block: PositiveInt = 2000
    """Consecutive weights of a layer in one block of the Fisher matrix, which is zero outside its blocks. Time and
    memory grow in proportion."""
    damping: PositiveFloat = 1e-3
    """Added to the diagonal of the Fisher matrix, so that it has an inverse. The larger, the less the other weights
    compensate; with `fisher_batch_size` times as many images in a gradient the matrix is that much smaller."""
    memory_gib: PositiveFloat = 16.0
    """Memory for the inverse, in GiB, on the training device. The whole of it takes 4 bytes · weights · `fisher_block`;
    with less memory, the layers are processed in parts, with two passes over the gradients for each."""

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

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        samples, images = (cls.model_fields[key].default for key in ("samples", "fisher_batch_size"))
        if run.batch_size and run.steps_per_epoch:
            images = min(images, run.batch_size)
            samples = min(samples, run.steps_per_epoch * (run.batch_size // images))
        return super().proposed(run, target) | {"samples": samples, "fisher_batch_size": images}

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if run.batch_size and self.fisher_batch_size > run.batch_size:
            batch = f"{self.fisher_batch_size} images must come from one batch, but data.batch_size is {run.batch_size}"
            yield Misfit("fisher_batch_size", f"{batch}; make it smaller")
        elif run.batch_size and run.steps_per_epoch:
            there = run.steps_per_epoch * (run.batch_size // self.fisher_batch_size)
            if there < self.samples:
                yield Misfit("samples", self.too_many(there, run.steps_per_epoch))

    def too_many(self, there: int, batches: int) -> str:
        """Why there are fewer gradients than `samples` in an epoch of so many batches, in words."""
        return (
            f"an epoch gives {there} gradients, not {self.samples}: {there // batches} from each of its {batches} "
            f"batches, each of {self.fisher_batch_size} images (fisher_batch_size); the rest of a batch is left out. "
            "Lower samples or fisher_batch_size"
        )


class Method(Sparsifier[Config]):
    """The weights with the smallest ρ go; for each, the others move by δw (sections 3 and 4):

        F = λI + 1/N Σ g gᵀ        ρ_q = w_q² / (2 [F^-1]_qq)        δw = -w_q F^-1 e_q / [F^-1]_qq

    Weights that stay keep their momentum, although the compensation moves them a little.
    """

    _warned_at = -1
    """The latest epoch whose gradients were weighed."""

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
        # pruned weights rank below every living one, even a zero one
        scores = {name: score.masked_fill(~masks[name], -1) for name, score in fisher.scores().items()}
        kept = self.selector.masks(scores, self.sparsity(moment))
        change = fisher.compensation({name: masks[name] & ~mask for name, mask in kept.items()})
        torch._foreach_add_(list(weights.values()), [change[name] for name in weights])
        self.masked.set(kept)

    def _gradients(self, moment: Moment) -> Iterator[dict[str, Tensor]]:
        """Gradients, zero where masked: pruned weights have no part in the loss of the others.

        A NaN or infinite gradient counts as zero, like a training step that the optimiser skips.
        """
        config, masks = self.config, self.masked.masks
        finite: list[Tensor] = []
        squares: list[Tensor] = []
        for gradient in self.training.gradients(moment, config.samples, config.fisher_batch_size):
            finite.append(torch.stack([part.isfinite().all() for part in gradient.values()]).all())
            gradient = {name: part.where(masks[name] & finite[-1], 0) for name, part in gradient.items()}
            squares.append(torch.stack([part.double().square().sum() for part in gradient.values()]).sum())
            yield gradient
            # before the next one is made: one of them is as large as the model
            del gradient
        self._check(moment, finite)
        self._warn_if_few_count(moment, squares)

    def _warn_if_few_count(self, moment: Moment, squares: list[Tensor]) -> None:
        """Warns, once an epoch, if the Fisher matrix rests on few of its gradients.

        squares: their squared norms n. (Σ n)² / Σ n² is the number of equal gradients that would be as uneven.
        """
        if self._warned_at == moment.epoch:
            return
        self._warned_at = moment.epoch
        norms = torch.stack(squares)
        count = float(norms.sum() ** 2 / norms.square().sum().clamp_min(1e-300))
        if 0 < count < _FEW * len(squares):
            text = (
                "epoch %d: the Fisher matrix rests on about %.0f of its %d gradients, because images which the "
                "model fits give almost none; raise sparsity.fisher_batch_size"
            )
            _log.warning(text, moment.epoch, count, len(squares))

    def _check(self, moment: Moment, finite: list[Tensor]) -> None:
        """Raises RecipeError if there were too few gradients, RunError if none of them is finite."""
        samples = self.config.samples
        if len(finite) < samples:
            raise RecipeError(f"sparsity.samples: {self.config.too_many(len(finite), moment.steps_per_epoch)}")
        used = int(torch.stack(finite).sum())
        if not used:
            raise RunError(
                f"at the start of epoch {moment.epoch} all {samples} gradients are NaN or infinite: the model has "
                "diverged. Lower optim.lr, and continue from an earlier checkpoint"
            )
        if used < samples:
            text = "epoch %d: %d of %d gradients are NaN or infinite and are left out"
            _log.warning(text, moment.epoch, samples - used, samples)
