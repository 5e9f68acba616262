"""The cost of training, epoch by epoch: planned from the method's schedule, and measured from its weights.

Per image, an ordinary step takes 2 f(A) + f(B): a forward pass with the weights A, gradients of its inputs with the
same weights, and gradients of the weights B. That is 3 f for dense training, 3 f_e for AC/DC in an epoch with cost f_e,
and 2 f_A + f_B for Top-KAST (arXiv 2106.03517). A step with sparse weights and dense gradients takes 2 f(A) + f(dense):
over one such step and dT ordinary ones, RigL's mean is (3 f_S dT + 2 f_S + f_D) / (dT + 1) (arXiv 1911.11134).

An extra gradient that a method asks for before an epoch's steps takes 3 f, of the weights that live until then, for
each of its images. An epoch's cost per image is its whole cost divided by the images that its steps train on; times
these images and summed over the epochs, it is the cost of the run. A teacher's predictions take one forward pass of the
teacher for each image of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from acdc_cli.cost.conventions import Convention, exact, forward_flops
from acdc_cli.cost.count import Operation
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.where import Living

Flops = int | Fraction
Kept = Mapping[str, int | Fraction]
"""Nonzero weights by parameter name; layers that it does not name are dense."""


@dataclass(frozen=True)
class TeacherCost:
    """The price of a teacher's predictions."""

    forward: Mapping[int, Flops]
    """FLOPs of one image, by its side."""
    after_dense: bool
    """Whether it teaches only where `PhasePlan.after_dense` is true."""

    def per_image(self, phases: PhasePlan, epoch: int, side: int) -> Flops:
        return 0 if self.after_dense and not phases.after_dense(epoch) else self.forward[side]


@dataclass(frozen=True)
class EpochCost:
    epoch: int
    resolution: int
    """Side of the images, in pixels."""
    forward: Flops
    """FLOPs of one image with the weights at the epoch's end."""
    train: Flops
    """FLOPs of one image, forward and backward: the mean over the epoch's steps, the teacher included, and its share of
    the method's extra gradients."""


def training_flops(
    forward: Flops,
    backward: Flops,
    dense: Flops,
    dense_gradients: Fraction = Fraction(0),
    dense_steps: Fraction = Fraction(0),
) -> Flops:
    """FLOPs of one image, the mean over an epoch's steps.

    dense_gradients: share of the steps with sparse weights and dense gradients.  dense_steps: share of the steps
    without masks.
    """
    ordinary = 1 - dense_gradients - dense_steps
    acting = (1 - dense_steps) * forward + dense_steps * dense
    return exact(2 * acting + ordinary * backward + (1 - ordinary) * dense)


def nominal(
    sparsifier: Sparsifier[Any],
    operations: Mapping[int, Sequence[Operation]],
    resolutions: Sequence[int],
    steps_per_epoch: int,
    batch_size: int,
    convention: Convention,
    teacher: TeacherCost | None = None,
) -> list[EpochCost]:
    """The costs that follow from the method's schedule, known before the run starts.

    operations: of the model, by the images' side.  resolutions: of the epochs.
    Extra gradients have the weights at the end of the epoch before; before the first epoch, all weights.
    """
    prices = _Prices(operations, convention, teacher)
    costs = []
    before: Kept = {}
    for epoch, side in enumerate(resolutions):
        work = sparsifier.cost(epoch, steps_per_epoch)
        forward, backward = (kept_weights(sparsifier.masked, living) for living in (work.forward, work.backward))
        cost = prices.of(sparsifier.phases, work, epoch, side, forward, backward, steps_per_epoch)
        if work.probed_images:
            share = work.probed_images * prices.probe(side, before) / Fraction(steps_per_epoch * batch_size)
            cost = replace(cost, train=exact(cost.train + share))
        costs.append(cost)
        before = forward
    return costs


def kept_weights(masked: MaskedParameters, living: Living) -> Kept:
    """Weights that take part in a pass.

    If the method knows only their total, they are spread evenly over the layers that it prunes, in fractions of
    weights. If it does not know the total either, because it learns it, they are dense.
    """
    if living.by_layer is not None:
        return living.by_layer
    density = 1.0 if living.density is None else living.density
    # as exact as the count of weights that it stands for
    exact_density = Fraction(round(density * masked.total), masked.total)
    return {name: exact_density * shape.numel() for name, shape in masked.shapes.items()}


class Measured:
    """The measured cost of a run: zeros are counted after every epoch, including those of dead filters in dense phases.

    An epoch is charged with the weights at its end, even for its steps before a change of the masks.
    The total is the only state. It includes an epoch's extra gradients before the first step, so that a run that
    resumes within the epoch counts them once.
    """

    def __init__(
        self,
        operations: Mapping[int, Sequence[Operation]],
        convention: Convention,
        teacher: TeacherCost | None = None,
    ) -> None:
        self._prices = _Prices(operations, convention, teacher)
        self.operations = operations
        self.convention = convention
        self.teacher = teacher
        self.total = 0
        """FLOPs of all images so far."""

    def probe(self, images: int, nonzero: Mapping[str, int], side: int) -> None:
        """Charge the extra gradients that the method is about to compute before an epoch's steps.

        nonzero: weights by parameter name.  side: of the images, in pixels.
        """
        self.total += round(images * self._prices.probe(side, nonzero))

    def add(
        self, sparsifier: Sparsifier[Any], nonzero: Mapping[str, int], epoch: int, side: int, steps: int, images: int
    ) -> EpochCost:
        """Charge the steps of an epoch that is just over, on so many images; `probe` has charged extra gradients.

        nonzero: weights by parameter name.  side: of the images, in pixels.
        """
        trained = {**nonzero, **sparsifier.masked.trained()}
        work = sparsifier.cost(epoch, steps)
        cost = self._prices.of(sparsifier.phases, work, epoch, side, nonzero, trained, steps)
        self.total += round(images * cost.train)
        return cost


class _Prices:
    """Costs of epochs; equal epochs are counted once."""

    def __init__(
        self, operations: Mapping[int, Sequence[Operation]], convention: Convention, teacher: TeacherCost | None
    ) -> None:
        self._operations = operations
        self._convention = convention
        self._teacher = teacher
        self._known: dict[tuple[int, frozenset[tuple[str, int | Fraction]]], Flops] = {}

    def of(
        self, phases: PhasePlan, work: EpochWork, epoch: int, side: int, forward: Kept, backward: Kept, steps: int
    ) -> EpochCost:
        """The cost of the epoch's steps."""
        acting, trained, dense = (self._forward(side, kept) for kept in (forward, backward, {}))
        # as exact as they are: numbers of steps
        dense_gradients, dense_steps = (
            Fraction(share).limit_denominator(steps) for share in (work.dense_gradients, work.dense_steps)
        )
        step = training_flops(acting, trained, dense, dense_gradients, dense_steps)
        taught = self._teacher.per_image(phases, epoch, side) if self._teacher else 0
        return EpochCost(epoch, side, acting, step + taught)

    def probe(self, side: int, kept: Kept) -> Flops:
        """The cost of the gradient of one image."""
        return 3 * self._forward(side, kept)

    def _forward(self, side: int, kept: Kept) -> Flops:
        key = side, frozenset(kept.items())
        if key not in self._known:
            self._known[key] = forward_flops(self._operations[side], kept, self._convention)
        return self._known[key]
