"""The contract of a method of sparse training: the hooks of a run, each with a default.

The training loop, with every hook at its place:

    method = Method(config, masked, epochs, seed)           # -> plan()
    for each epoch: method.cost() -> sparsity(), living()   # at any time, for `acdc plan` and the measured cost
    method.later_bytes(model)                               # at any time, for the memory that `acdc plan` shows
    optimizer over method.parameter_groups(weight_decay) and the other parameters
    method.attach(optimizer, training)
    method.load_state_dict(state)                           # a resumed run only

    for epoch in range(epochs):
        method.on_epoch_start(moment)                       # not when a run resumes within the epoch
        for batch in epoch:
            loss.backward()                                 # of the mean loss; gradients of all weights
            unscale and reduce the gradients
            if method.on_gradients(moment):                 # masks the gradients
                optimizer.step()                            # skipped on the device where a gradient is not finite
            method.after_step(moment)
            perhaps save method.state_dict()
        if it is the last epoch: method.finish()
        validate
        method.on_epoch_end(moment, validation metrics)
        record method.metrics()
        perhaps save method.support()                       # as the epoch's masks

    method.prune_trained(moment, batch_size)                # `acdc prune`, in place of all epochs

A method answers four questions: *when* it acts (`when`: phases and update times), *how much* it prunes (`how_much`:
sparsity over time), *which* weights stay (`which`: scores), and *where* (`where.Selector`: distribution and pattern).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.recipe.blocks.sparsity import SparsityBlock, TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.where import Living, Selector

ConfigT = TypeVar("ConfigT", bound=SparsityBlock)


@dataclass(frozen=True)
class EpochWork:
    """The work of an epoch, known before the run starts: everything that its cost depends on."""

    forward: Living
    """Weights of the forward pass at the epoch's end."""
    backward: Living
    """Weights that have a gradient at the epoch's end."""
    dense_gradients: float = 0.0
    """Share of the steps that need the gradients of all weights, although the forward pass is sparse."""
    dense_steps: float = 0.0
    """Share of the steps before there are masks: both passes are dense."""
    probed_images: int = 0
    """Images whose gradients `on_epoch_start` computes; an image counts once for each pass."""


class Training(Protocol):
    """What a method may ask of its run."""

    @property
    def headline(self) -> Quantity:
        """The validation metric by which models are ranked."""

    @property
    def model(self) -> nn.Module:
        """The model itself, neither compiled nor wrapped; it takes normalised images."""

    def input_shape(self, epoch: int) -> tuple[int, ...]:
        """Shape of one training example in this epoch: channels, height and width of an image."""

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Gradients of the prunable weights, one batch at a time: of the mean loss over `batch_size` training images.

        Computed in eval mode and fp32 from the first images of this epoch; the same on all ranks, and dense: masked
        weights have gradients, too. Yields fewer batches if the epoch has no more.
        """

    def forward_passes(self, moment: Moment, images: int) -> Iterator[None]:
        """Forward passes of the model itself in eval mode and fp32, over the first training images of this epoch.

        The same on all ranks; fewer if the epoch has no more images.
        """

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the whole model: weights, biases, batch norm and its running statistics."""

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Load the snapshot into the model, and zero the optimiser's state of all parameters."""


class Sparsifier(Generic[ConfigT]):
    """A sparse-training method. The base class prunes nothing."""

    training: Training
    """Set by `attach`."""
    revives_values = False
    """Whether a freed weight may return with a nonzero value, because the method stores masked weights."""

    def __init__(self, config: ConfigT, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        """seed: the run's; all random draws of a method depend on it, never on torch's global generator."""
        self.config = config
        self.masked = masked
        self.epochs = epochs
        self.seed = seed
        self.selector = Selector.of(config)
        self.phases = self.plan()

    def plan(self) -> PhasePlan:
        """When: the phases of the run."""
        return in_turn(("dense", self.epochs))

    def sparsity(self, moment: Moment) -> float | None:
        """How much: the sparsity of the masks in this step; None where it is learned."""
        return self.config.target if isinstance(self.config, TargetBlock) else 0.0

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        """The work of this epoch; by default, with masks of the sparsity at its end."""
        last = Moment(epoch, (epoch + 1) * steps_per_epoch - 1, self.epochs, steps_per_epoch)
        living = self.living(self.sparsity(last))
        return EpochWork(living, living)

    def living(self, sparsity: float | None) -> Living:
        """The living weights under masks of this sparsity."""
        return Living(None, None) if sparsity is None else self.selector.living(self.masked.shapes, sparsity)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of the optimiser that the method sets up itself: parameters of its own, or weights whose decay it
        takes over.

        weight_decay: the recipe's, for convolution and linear weights.
        """
        return []

    def attach(self, optimizer: Optimizer, training: Training) -> None:
        """Called once, before any other hook of the run."""
        self.masked.attach(optimizer)
        self.training = training

    def on_epoch_start(self, moment: Moment) -> None:
        """Called before the first batch of every epoch, but not when a run resumes within the epoch.

        Raises RecipeError if the recipe's keys do not fit the epochs and steps of the run.
        """
        self.config.require(RunSize(moment.epochs, moment.steps_per_epoch))

    def prune_trained(self, moment: Moment, batch_size: int) -> None:
        """Called by `acdc prune` in place of a run's first epoch, for methods whose `Config.at_once` is not None.

        batch_size: images in a step of that run.
        """
        self.on_epoch_start(moment)

    def on_gradients(self, moment: Moment) -> bool:
        """Called between the backward pass and the optimiser's step.

        The gradients are unscaled, dense and the same on all ranks. Returns whether the optimiser takes this step.
        """
        self.masked.apply_to_gradients()
        return True

    def after_step(self, moment: Moment) -> None:
        """Called after the optimiser's step."""

    def on_epoch_end(self, moment: Moment, metrics: Mapping[str, float]) -> None:
        """Called after an epoch's validation, with its metrics (empty if it had none) and the epoch's last step."""

    def finish(self) -> None:
        """Called after the last step of the run, before the model is evaluated and written."""

    def support(self) -> Mapping[str, Tensor]:
        """The weights that the model uses now, bool, by parameter name: saved as the epoch's masks."""
        return self.masked.masks

    def metrics(self) -> dict[str, float]:
        """The method's entries in an epoch's record."""
        return {"mask_sparsity": self.masked.sparsity()}

    def state_dict(self) -> dict[str, Any]:
        """The complete state of the method, masks included; only tensors, numbers, strings and containers of them.

        As in torch, its tensors may be the method's own: copy them to keep them, as `load_state_dict` does.
        """
        return {"masks": self.masked.state_dict()}

    def later_bytes(self, model: int) -> int:
        """Bytes by which `state_dict` grows during the run.

        model: bytes of a snapshot.
        """
        return 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masked.load_state_dict(state["masks"])
