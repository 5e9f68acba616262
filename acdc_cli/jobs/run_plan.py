"""`acdc plan`: a run's schedule and cost from its recipe alone; the model's weights are never created."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor, nn

from acdc_cli.cost.conventions import CONVENTION, Convention, forward_flops
from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Flops, kept_weights, nominal
from acdc_cli.data.data_set import expected_set, steps_per_epoch
from acdc_cli.jobs import setup, teaching
from acdc_cli.jobs.lint import lint
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.sparsity import PrunedBlock, TargetBlock
from acdc_cli.recipe.blocks.task import LAST_DENSE
from acdc_cli.recipe.schema import Recipe
from acdc_cli.schedule.learning_rate import learning_rate
from acdc_cli.schedule.sizes import sizes
from acdc_cli.sparsity.prunable import Layer, layers
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.where import Selector

_TENSOR_OVERHEAD = 300
"""Bytes of overhead per tensor in torch.save's zip archive: headers, alignment, names and shapes."""


@dataclass(frozen=True)
class PlannedEpoch:
    epoch: int
    phase: str
    sparsity: float | None
    """Sparsity over the layers that the recipe prunes, at the end of the epoch; None if learned."""
    sparsity_all: float | None
    """Sparsity over all conv and linear weights."""
    lr_start: float
    """Learning rate at the epoch's first step."""
    lr_end: float
    """Learning rate at its last step."""
    resolution: int
    forward_flops: Flops
    """FLOPs of one image."""
    train_flops: Flops
    """Mean FLOPs per image: forward, backward, and the epoch's share of the gradients that the method computes outside
    its steps. Times the epoch's images, summed over the epochs, it gives `Totals.train_flops`."""
    cost: float
    """Cost of training up to the end of this epoch, as a fraction of the whole dense training."""


@dataclass(frozen=True)
class PlannedLayer:
    name: str
    shape: tuple[int, ...]
    prunable: bool
    why: str | None
    """Why the layer is not pruned."""
    density: float | None
    """Density in the sparsest epoch; None if it depends on the weights."""


@dataclass(frozen=True)
class Totals:
    params: int
    nonzero: int | None
    """Nonzero parameters at the end, biases and normalisation included; None if learned."""
    inference_flops: Flops
    """FLOPs of one validation image at the end of the run."""
    train_flops: Flops
    """FLOPs of the whole run: `nominal` in its summary."""
    inference_ratio: float
    """Ratio to the dense model."""
    train_ratio: float
    """Ratio to dense training on the same images, at the same resolutions."""
    convention: Convention
    images: int
    """Training images over all epochs, repeats included."""
    steps: int
    """Optimiser steps over all epochs."""


@dataclass(frozen=True)
class MemoryFootprint:
    """Bytes on the training device, without activations."""

    weights: int
    """Weights, biases, normalisation parameters and running statistics."""
    gradients: int
    optimizer: int
    masks: int
    """Masks, including copies in the weights' own type, and backward masks if there are any."""
    method: int
    """The method's own state besides masks: latent weights, mean gradients, snapshots."""
    ema: int
    """The moving average of the weights."""
    teacher: int
    """The weights of the model that teaches this one."""


@dataclass(frozen=True)
class Plan:
    name: str
    epochs: list[PlannedEpoch]
    layers: list[PlannedLayer]
    totals: Totals
    memory: MemoryFootprint
    checkpoint: int
    """Bytes of checkpoints/last.pt; the previous checkpoint is kept as well."""
    inference_resolution: int
    notes: list[str]
    """Assumptions made where the recipe alone does not determine the plan."""
    warnings: list[str]
    samples: type[DataBlock] = ImagesBlock
    """The kind of inputs, for its words."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values. FLOPs are integers wherever they are whole."""
        return {key: _plain(value) for key, value in asdict(self).items() if key != "samples"}


def plan(recipe: Recipe, convention: Convention = CONVENTION) -> Plan:
    """Raises an AcdcError for anything in the recipe that `acdc train` would reject."""
    classes, images, is_there = expected_set(recipe.data)
    steps = steps_per_epoch(recipe.data, images)
    model = setup.without_weights(recipe, classes)
    all_layers = layers(model, setup.keep_dense(recipe))
    sparsifier = setup.sparsifier(recipe, all_layers)
    warnings = lint(recipe, sparsifier, steps)
    works = [sparsifier.cost(epoch, steps) for epoch in range(recipe.epochs)]
    densities = [work.forward.density for work in works]
    kept = works[_sparsest(densities)].forward.by_layer
    prices = _Prices(model, classes, sparsifier, recipe, steps, convention)
    memory = _memory(recipe, model, sparsifier, works, prices.teacher.size if prices.teacher else 0)
    return Plan(
        name=recipe.name,
        epochs=_epochs(sparsifier, all_layers, densities, prices, steps),
        layers=[_layer(layer, recipe, kept) for layer in all_layers],
        totals=_totals(recipe, model, sparsifier, works[-1], prices, steps),
        memory=memory,
        checkpoint=_checkpoint(recipe, model, sparsifier, memory),
        inference_resolution=recipe.data.val_size,
        notes=list(
            _notes(recipe, images, is_there, learned=densities[-1] is None, ranked=kept is None, taught=prices.teacher)
        ),
        warnings=warnings,
        samples=type(recipe.data),
    )


class _Prices:
    """FLOPs of the run's epochs, and of dense epochs at the same resolutions."""

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        sparsifier: Sparsifier[Any],
        recipe: Recipe,
        steps: int,
        convention: Convention,
    ) -> None:
        self.convention = convention
        self.learning_rate = partial(learning_rate, recipe)
        self.resolutions = sizes(recipe)
        sides = sorted({*self.resolutions, recipe.data.val_size})
        self.operations = {side: operations(model, side, recipe.data) for side in sides}
        self.dense = {side: forward_flops(counted, None, convention) for side, counted in self.operations.items()}
        self.teacher = teaching.price(recipe, model, classes, self.operations, convention, planned=True)
        taught, batch = self.teacher.cost if self.teacher else None, recipe.data.batch_size
        self.epochs = nominal(sparsifier, self.operations, self.resolutions, steps, batch, convention, taught)

    def dense_training(self) -> Flops:
        """FLOPs per image, summed over all epochs."""
        return sum(3 * self.dense[side] for side in self.resolutions)


def _epochs(
    sparsifier: Sparsifier[Any],
    all_layers: Sequence[Layer],
    densities: Sequence[float | None],
    prices: _Prices,
    steps: int,
) -> list[PlannedEpoch]:
    weights = sum(layer.shape.numel() for layer in all_layers)
    dense = prices.dense_training()
    spent: Flops = 0
    planned = []
    for cost, density in zip(prices.epochs, densities, strict=True):
        spent += cost.train
        zeros = None if density is None else (1 - density) * sparsifier.masked.total
        planned.append(
            PlannedEpoch(
                epoch=cost.epoch,
                phase=sparsifier.phases.at(cost.epoch).kind,
                sparsity=None if density is None else 1 - density,
                sparsity_all=None if zeros is None else zeros / weights,
                lr_start=prices.learning_rate(cost.epoch),
                lr_end=prices.learning_rate(((cost.epoch + 1) * steps - 1) / steps),
                resolution=cost.resolution,
                forward_flops=cost.forward,
                train_flops=cost.train,
                cost=float(Fraction(spent) / dense),
            )
        )
    return planned


def _totals(
    recipe: Recipe, model: nn.Module, sparsifier: Sparsifier[Any], last: EpochWork, prices: _Prices, steps: int
) -> Totals:
    """last: the work of the last epoch."""
    params = sum(weight.numel() for weight in model.parameters())
    density = last.forward.density
    zeros = None if density is None else round((1 - density) * sparsifier.masked.total)
    side, images = recipe.data.val_size, steps * recipe.data.batch_size
    kept = kept_weights(sparsifier.masked, last.forward)
    inference = forward_flops(prices.operations[side], kept, prices.convention)
    training = sum(cost.train for cost in prices.epochs)
    return Totals(
        params=params,
        nonzero=None if zeros is None else params - zeros,
        inference_flops=inference,
        train_flops=training * images,
        inference_ratio=float(Fraction(inference) / prices.dense[side]),
        train_ratio=float(Fraction(training) / prices.dense_training()),
        convention=prices.convention,
        images=images * recipe.epochs,
        steps=steps * recipe.epochs,
    )


def _notes(
    recipe: Recipe, images: int, is_there: bool, learned: bool, ranked: bool, taught: teaching.Price | None
) -> Iterator[str]:
    if not is_there:
        yield f"{recipe.data.name} was not found: its {images:,} training {recipe.data.noun} are assumed"
    if rest := images % recipe.data.batch_size:
        yield (
            f"training FLOPs leave out each epoch's incomplete last batch, {rest:,} of {images:,} {recipe.data.noun}; "
            "P1's EFLOPs count every image"
        )
    yield from recipe.data.notes()
    begun_from = recipe.sparsity.from_checkpoint if isinstance(recipe.sparsity, PrunedBlock) else None
    if source := begun_from or recipe.model.weights:
        yield f"the cost of training {source} is not counted"
    if taught and taught.assumption:
        yield taught.assumption
    if learned:
        yield f"{recipe.sparsity.method} learns its sparsity: FLOPs are those of dense weights, an upper bound"
    elif ranked:
        yield (
            "the densities of individual layers depend on the weights and are unknown before training: "
            "FLOPs assume the same density in all pruned layers"
        )


def _sparsest(densities: Sequence[float | None]) -> int:
    """The last of the epochs with the fewest weights; the last of all epochs if sparsity is learned."""
    shares = [1.0 if density is None else density for density in densities]
    fewest = min(shares)
    return max(epoch for epoch, share in enumerate(shares) if share == fewest)


def _layer(layer: Layer, recipe: Recipe, kept: Mapping[str, int] | None) -> PlannedLayer:
    """kept: the number of weights kept in each layer in the sparsest epoch, if known."""
    why = _kept_dense(layer, recipe)
    size = layer.shape.numel()
    fixed = {} if kept is None else kept
    known = size if why else fixed.get(layer.parameter_name)
    return PlannedLayer(layer.name, tuple(layer.shape), why is None, why, None if known is None else known / size)


def _kept_dense(layer: Layer, recipe: Recipe) -> str | None:
    if layer.kept_dense is not None:
        return f"keep_dense: {layer.kept_dense}"
    if not isinstance(recipe.sparsity, PrunedBlock):
        return f"method: {recipe.sparsity.method}"
    if isinstance(recipe.sparsity, TargetBlock) and Selector.of(recipe.sparsity).left_dense({layer.name: layer.shape}):
        return f"pattern: {recipe.sparsity.pattern} does not divide the channels"
    return None


def _memory(
    recipe: Recipe, model: nn.Module, sparsifier: Sparsifier[Any], works: Sequence[EpochWork], teacher: int
) -> MemoryFootprint:
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    masked = list(sparsifier.masked.parameters.values())
    has_backward_masks = any(work.backward.density != work.forward.density for work in works)
    one_mask = sum(weight.numel() for weight in masked) + _bytes(masked)
    weights = _bytes([*model.parameters(), *model.buffers()])
    state = {key: value for key, value in sparsifier.state_dict().items() if key != "masks"}
    return MemoryFootprint(
        weights=weights,
        gradients=_bytes(parameters),
        optimizer=recipe.optim.state_per_parameter * _bytes(parameters),
        masks=one_mask * (2 if has_backward_masks else 1),
        method=_bytes(_tensors(state)) + sparsifier.later_bytes(weights),
        ema=weights if recipe.ema else 0,
        teacher=teacher,
    )


def _checkpoint(recipe: Recipe, model: nn.Module, sparsifier: Sparsifier[Any], memory: MemoryFootprint) -> int:
    saved = _tensors([model.state_dict(), sparsifier.state_dict()])
    tensors = len(saved) + recipe.optim.state_per_parameter * len(list(model.parameters()))
    own_teacher = recipe.task.teacher == LAST_DENSE
    tensors += len(model.state_dict()) * (bool(recipe.ema) + own_teacher)
    return (
        _bytes(saved)
        + memory.optimizer
        + memory.ema
        + memory.teacher * own_teacher
        + sparsifier.later_bytes(memory.weights)
        + _TENSOR_OVERHEAD * tensors
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors(state: Any) -> list[Tensor]:
    """All tensors in a state dict."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Mapping):
        state = list(state.values())
    return [tensor for item in state for tensor in _tensors(item)] if isinstance(state, list | tuple) else []


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
