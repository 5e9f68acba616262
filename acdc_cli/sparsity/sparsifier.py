"""When a method acts on the masks: the hooks of a run, each with a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from acdc_cli.recipe.schema import SparsityBlock
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.masked import MaskedParameters

ConfigT = TypeVar("ConfigT", bound=SparsityBlock)


@dataclass(frozen=True)
class Density:
    """Share of the prunable weights that take part: in the forward pass, and in the weights' gradients."""

    forward: float
    backward: float


class Training(Protocol):
    """What a method may ask of the run that it is part of."""

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Gradients of the prunable weights, one batch at a time: of the mean loss over `batch_size` training images.

        In eval mode and fp32, the same on all ranks, dense (masked weights have theirs), from the images that this
        epoch begins with. Fewer batches than asked for where the epoch has no more.
        """

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the whole model: weights, biases, batch norm and its running statistics."""

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """The model becomes that of the snapshot, and the optimiser's state of all its parameters zero."""


class Sparsifier(Generic[ConfigT]):
    """A method of sparse training. As it stands it prunes nothing."""

    training: Training
    """Known from `attach` on."""
    revives_values = False
    """Whether a weight that is freed has a value other than zero: the method keeps the weights that it masks."""

    def __init__(self, config: ConfigT, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        """seed: of the run; what a method draws at random follows from it, never from torch's global generator."""
        self.config = config
        self.masked = masked
        self.epochs = epochs
        self.seed = seed
        self.phases = self.plan()

    def plan(self) -> PhasePlan:
        """The phases of the run."""
        return PhasePlan((Phase("dense", 0, self.epochs),))

    def nominal(self, epoch: int) -> Density | None:
        """The densities that this epoch ends with, known before the run starts; None where they are learned."""
        return Density(1.0, 1.0)

    def kept(self, epoch: int) -> Mapping[str, int] | None:
        """Weights that each layer keeps in the forward pass at this epoch's end, by parameter name.

        None where that is not known before the run starts, because scores decide, or because it is learned.
        """
        return {name: shape.numel() for name, shape in self.masked.shapes.items()}

    def kept_backward(self, epoch: int) -> Mapping[str, int] | None:
        """Weights of each layer that have a gradient, in the same way."""
        return self.kept(epoch)

    def dense_gradients(self, epoch: int, steps_per_epoch: int) -> float:
        """Share of this epoch's steps that need the gradients of all weights, although these are sparse."""
        return 0.0

    def dense_steps(self, epoch: int, steps_per_epoch: int) -> float:
        """Share of this epoch's steps that come before its masks: dense forward and backward."""
        return 0.0

    def probed_images(self, epoch: int) -> int:
        """Images whose gradients `on_epoch_start` asks the training for, counted again in every pass over them."""
        return 0

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of the optimiser that the method sets up itself: parameters of its own, or weights whose decay it
        takes over.

        weight_decay: the recipe's, for convolution and linear weights.
        """
        return []

    def attach(self, optimizer: Optimizer, training: Training) -> None:
        """Once, before anything else happens."""
        self.masked.attach(optimizer)
        self.training = training

    def on_epoch_start(self, moment: Moment) -> None:
        """Before the first batch of every epoch, and not again when a run goes on within one."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss, or None."""
        return None

    def on_gradients(self, moment: Moment) -> bool:
        """Between the backward pass and the optimiser's step; gradients are unscaled, dense and the same on all ranks.

        Returns whether the optimiser takes this step.
        """
        self.masked.apply_to_gradients()
        return True

    def after_step(self, moment: Moment) -> None:
        """After the optimiser's step."""

    def on_epoch_end(self, moment: Moment, metrics: Mapping[str, float]) -> None:
        """After an epoch's validation, whose `metrics` these are, none if it had none; `moment` is its last step."""

    def finish(self) -> None:
        """After the last epoch's last step, before the model is judged and written."""

    def metrics(self) -> dict[str, float]:
        """What the method adds to an epoch's record."""
        return {"mask_sparsity": self.masked.sparsity()}

    def state_dict(self) -> dict[str, Any]:
        """All that the method knows, masks included; only tensors, numbers, strings and containers of them."""
        return {"masks": self.masked.state_dict()}

    def later_bytes(self, model: int) -> int:
        """Bytes by which `state_dict` grows in the course of the run: of what a method is made without, and keeps.

        model: bytes of a snapshot.
        """
        return 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masked.load_state_dict(state["masks"])
