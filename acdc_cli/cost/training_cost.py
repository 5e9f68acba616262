"""What training costs, epoch by epoch: what the method's schedule says, and what its weights really were.

Per image, an ordinary step takes 2 f(A) + f(B): a forward pass with the weights A, the gradients of its inputs with the
same, and the gradients of the weights B. That is 3 f for dense training, 3 f_e for AC/DC in an epoch with cost f_e, and
2 f_A + f_B for Top-KAST (arXiv 2106.03517). A step whose weights are sparse but whose gradient is not takes
2 f(A) + f(dense): of it and dT ordinary ones, RigL's mean is (3 f_S dT + 2 f_S + f_D) / (dT + 1) (arXiv 1911.11134).

A gradient that a method asks for besides, before an epoch's steps, takes 3 f of the weights that live until then for
each of its images. An epoch's cost of an image is that of all it takes, divided by the images that its steps train on:
times these and summed over the epochs it is the run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from acdc_cli.cost.conventions import Convention, exact, forward_flops
from acdc_cli.cost.count import Operation
from acdc_cli.sparsity.sparsifier import Sparsifier

Flops = int | Fraction
Kept = Mapping[str, int | Fraction]
"""Weights that are not zero, by parameter name; layers that are not in it are dense."""


@dataclass(frozen=True)
class EpochCost:
    epoch: int
    resolution: int
    """Side of the images, in pixels."""
    forward: Flops
    """FLOPs of one image, with the weights that the epoch ends with."""
    train: Flops
    """FLOPs of one image, forward and backward: the mean over the epoch's steps, and its share of what the method asks
    for besides."""


def training_flops(
    forward: Flops,
    backward: Flops,
    dense: Flops,
    dense_gradients: Fraction = Fraction(0),
    dense_steps: Fraction = Fraction(0),
) -> Flops:
    """Of one image, the mean over an epoch's steps.

    dense_gradients: share of those in which every weight has a gradient, but sparse ones act.  dense_steps: share of
    those without masks.
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
) -> list[EpochCost]:
    """What the method's schedule says, known before the run starts.

    operations: of the model, by the images' side.  resolutions: of the epochs.
    What is asked for besides has the weights that the epoch before ends with; before the first, all.
    """
    prices = _Prices(operations, convention)
    found = []
    for epoch, side in enumerate(resolutions):
        kept = forward_kept(sparsifier, epoch), backward_kept(sparsifier, epoch)
        cost = prices.of(sparsifier, epoch, side, *kept, steps_per_epoch)
        if images := sparsifier.probed_images(epoch):
            before = forward_kept(sparsifier, epoch - 1) if epoch else {}
            share = images * prices.probe(side, before) / Fraction(steps_per_epoch * batch_size)
            cost = replace(cost, train=exact(cost.train + share))
        found.append(cost)
    return found


def forward_kept(sparsifier: Sparsifier[Any], epoch: int) -> Kept:
    """Weights that the forward pass uses.

    Where the method does not know how many each layer keeps they are spread evenly over the layers that it prunes, in
    fractions of weights; where it does not even know how many in all, because they are learned, they are dense.
    """
    if (fixed := sparsifier.kept(epoch)) is not None:
        return fixed
    density = sparsifier.nominal(epoch)
    return _spread(sparsifier, density.forward if density else 1.0)


def backward_kept(sparsifier: Sparsifier[Any], epoch: int) -> Kept:
    """Weights that get a gradient, in the same way."""
    if (fixed := sparsifier.kept_backward(epoch)) is not None:
        return fixed
    density = sparsifier.nominal(epoch)
    return _spread(sparsifier, density.backward if density else 1.0)


class Measured:
    """What the run really took: zeros are counted after every epoch, those of dead filters in dense phases included.

    An epoch is charged with the weights that it ends with, also for its steps before a change of the masks.
    The total alone is its state: what is asked for before an epoch's steps is in it before the first of them is taken,
    so that a run which goes on within the epoch has it once.
    """

    def __init__(self, operations: Mapping[int, Sequence[Operation]], convention: Convention) -> None:
        self._prices = _Prices(operations, convention)
        self.operations = operations
        self.convention = convention
        self.total = 0
        """FLOPs of all images so far."""

    def probe(self, sparsifier: Sparsifier[Any], nonzero: Mapping[str, int], epoch: int, side: int) -> None:
        """What the method is about to ask for before this epoch's steps, with the weights as they are.

        nonzero: weights by parameter name.  side: of the images, in pixels.
        """
        self.total += round(sparsifier.probed_images(epoch) * self._prices.probe(side, nonzero))

    def add(
        self, sparsifier: Sparsifier[Any], nonzero: Mapping[str, int], epoch: int, side: int, steps: int, images: int
    ) -> EpochCost:
        """The steps of an epoch that is just over, on so many images; `probe` has charged what came before them.

        nonzero: weights by parameter name.  side: of the images, in pixels.
        """
        trained = {**nonzero, **sparsifier.masked.trained()}
        cost = self._prices.of(sparsifier, epoch, side, nonzero, trained, steps)
        self.total += round(images * cost.train)
        return cost


class _Prices:
    """Of epochs, each kind of which is counted once."""

    def __init__(self, operations: Mapping[int, Sequence[Operation]], convention: Convention) -> None:
        self._operations = operations
        self._convention = convention
        self._known: dict[tuple[int, frozenset[tuple[str, int | Fraction]]], Flops] = {}

    def of(
        self, sparsifier: Sparsifier[Any], epoch: int, side: int, forward: Kept, backward: Kept, steps: int
    ) -> EpochCost:
        """Of the epoch's steps."""
        acting, trained, dense = (self._forward(side, kept) for kept in (forward, backward, {}))
        # as exact as they are: numbers of steps
        dense_gradients, dense_steps = (
            Fraction(share(epoch, steps)).limit_denominator(steps)
            for share in (sparsifier.dense_gradients, sparsifier.dense_steps)
        )
        return EpochCost(epoch, side, acting, training_flops(acting, trained, dense, dense_gradients, dense_steps))

    def probe(self, side: int, kept: Kept) -> Flops:
        """Of the gradient of one image."""
        return 3 * self._forward(side, kept)

    def _forward(self, side: int, kept: Kept) -> Flops:
        key = side, frozenset(kept.items())
        if key not in self._known:
            self._known[key] = forward_flops(self._operations[side], kept, self._convention)
        return self._known[key]


def _spread(sparsifier: Sparsifier[Any], density: float) -> Kept:
    """The same density in every layer, as exact as the count of weights that it stands for."""
    total = sparsifier.masked.total
    exact = Fraction(round(density * total), total)
    return {name: exact * shape.numel() for name, shape in sparsifier.masked.shapes.items()}
