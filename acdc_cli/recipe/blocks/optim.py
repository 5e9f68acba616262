"""The block `optim` of a recipe: optimisers and courses of the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from acdc_cli.recipe.blocks.base import Bears, Block, Decay, Misfit, RunSize, Share


class _Warmup(Block):
    name: str
    warmup_epochs: NonNegativeFloat = 0.0
    """Epoch at whose start the learning rate reaches its peak, after a linear rise at every step."""
    warmup_start: Share = 0.0
    """Share of the peak at the first step of the warm-up."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        if self.warmup_epochs >= run.epochs:
            peak = f"the peak would come at epoch {self.warmup_epochs:g}, but there are {run.epochs} epochs"
            yield Misfit("warmup_epochs", f"{peak}; make it earlier")


class LinearSchedule(_Warmup):
    name: Literal["linear"]
    """A straight line from the peak to `end`."""
    end: Share = 0.0
    """Share of the peak at the end of the run."""


class CosineSchedule(_Warmup):
    name: Literal["cosine"]
    """Half a cosine from the peak to `end`."""
    end: Share = 0.0
    """Share of the peak at the end of the run."""


class StepSchedule(_Warmup):
    name: Literal["step"]
    """Constant, times `gamma` at each milestone."""
    milestones: list[PositiveInt]
    """Epochs at whose start the learning rate drops."""
    gamma: PositiveFloat = 0.1
    """Factor on the learning rate at a milestone."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if late := [str(milestone) for milestone in self.milestones if milestone >= run.epochs]:
            yield Misfit("milestones", f"the run ends after {run.epochs} epochs, before {', '.join(late)}")


Schedule = Annotated[LinearSchedule | CosineSchedule | StepSchedule, Field(discriminator="name")]


class _Optim(Block):
    name: str
    lr: PositiveFloat
    """Peak learning rate; acdc never rescales it."""
    lr_batch: Annotated[PositiveInt | None, Bears.NOTHING] = None
    """Batch size that `lr` was chosen for; `acdc train` warns if `data.batch_size` differs."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of convolution and linear weights."""
    decay_norm_and_bias: bool = False
    """Decay biases and normalisation parameters too (P1 does, P2 does not)."""
    schedule: Schedule
    """Learning rate over the run, set at every step."""
    clip_norm: PositiveFloat | None = None
    """Clip the gradient's global norm to this."""
    nan_patience: Annotated[PositiveInt, Bears.NOTHING] = 10
    """Consecutive steps with a NaN or infinite loss that stop the run; such a step changes no weight. The loss is
    checked every `track.log_every` steps."""
    accumulate: PositiveInt = 1
    """Split a batch into this many forward and backward passes, to save memory."""


class _Momentum(_Optim):
    momentum: Decay = 0.9
    """Momentum, without dampening."""
    nesterov: bool = False
    """Nesterov's form of momentum."""

    @property
    def state_per_parameter(self) -> int:
        """Numbers of optimiser state for each parameter."""
        return 1 if self.momentum else 0

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs momentum, which is 0 here; set momentum, or nesterov: false")
        return self


class _Moments(_Optim):
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    @property
    def state_per_parameter(self) -> int:
        """Numbers of optimiser state for each parameter."""
        return 2


class SGDBlock(_Momentum):
    name: Literal["sgd"]
    """Stochastic gradient descent with momentum."""


class LARSBlock(_Momentum):
    name: Literal["lars"]
    """LARS, for large batches: SGD whose rate is scaled in each layer by norm(weight) / norm(gradient), as timm has it.
    Biases and normalisation parameters take the unscaled rate unless they decay."""
    trust_coefficient: PositiveFloat = 0.001
    """Factor on each layer's ratio (the paper's eta)."""


class AdamWBlock(_Moments):
    name: Literal["adamw"]
    """AdamW: Adam with decoupled weight decay."""


class LAMBBlock(_Moments):
    name: Literal["lamb"]
    """LAMB, for large batches: Adam whose step is scaled in each layer to norm(weight), as timm has it. It has no bias
    correction, so warm up the learning rate. Biases and normalisation parameters take Adam's step unless they decay.
    timm clips gradients to norm 1 by default; here, set `clip_norm`."""
    eps: PositiveFloat = 1e-6
    """Added to the denominator."""


Optim = Annotated[SGDBlock | AdamWBlock | LARSBlock | LAMBBlock, Field(discriminator="name")]
