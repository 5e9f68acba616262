"""What a run is: the blocks of a recipe. A field's docstring is its documentation for whoever fills in the YAML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import floor, isclose
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from acdc_cli.errors import RecipeError


def _at_most(limit: int) -> AfterValidator:
    """A bound that only a typing error exceeds; the messages about other errors do not mention it."""

    def check(number: int) -> int:
        if number > limit:
            raise ValueError(f"expected at most {limit:,}, found {number:,}"[:80])
        return number

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""What a running mean keeps of itself at each step."""
Distribution = Literal["global", "uniform", "erk"]
Epochs = (
    NonNegativeInt
    | Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$", json_schema_extra={"expected": "a share of the run such as 10%"})]
)
"""A length in whole epochs (`10`) or as a share of the run (`10%`)."""


def part_of(share: float | Fraction, whole: int) -> int:
    """share · whole to the nearest integer, halves up, in decimals: 0.35 of 90 is 31.5, never 31.4999…, so 32."""
    return floor(Fraction(str(share)) * whole + Fraction(1, 2))


def epochs_of(length: int | str, epochs: int) -> int:
    """Whole epochs of a length given as `10` or `10%`, halves rounded up."""
    if isinstance(length, int):
        return length
    return part_of(Fraction(length.removesuffix("%")) / 100, epochs)


EpochCount = Annotated[PositiveInt, _at_most(1_000_000)]
Pixels = Annotated[PositiveInt, _at_most(10_000)]
_THREADS = _at_most(1_000)


class Bears(Enum):
    """What a key of a recipe bears on; a field is marked by `Annotated[..., Bears.NOTHING]`, and its block's fields
    with it. A field without a mark bears on the numbers. `recipe/bearing.py` tells who may ignore which."""

    NUMBERS = "numbers"
    NOTHING = "nothing"
    """Speed, reports and warnings, and where files lie."""
    EXECUTION = "execution"
    """How the same computation is carried out and how often it is validated: equal up to rounding."""
    REPETITION = "repetition"
    """Which of several repetitions of one experiment this is."""


class Block(BaseModel):
    """Frozen, strict (no `"3"` for 3, no `true` for 1), and no key that nobody reads."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelBlock(Block):
    name: str
    """A model of `acdc_cli/models`, else of torchvision, else of timm; `torchvision:NAME` or `timm:NAME` to insist."""
    blurpool: bool = False
    """Blur before every strided convolution with at least 16 input channels (P2 A); parameter names stay the same."""
    blur: Annotated[Literal["convolution", "shifts"], Bears.EXECUTION] = "convolution"
    """How `blurpool` is computed. `convolution`: depthwise. `shifts`: as a sum of shifted copies, which torch.compile
    fuses with the operations around it; slower without. Both are the same function up to rounding."""
    weights: str | None = None
    """Start from this file (.safetensors, or a torch file that holds tensors only)."""
    options: dict[str, bool | int | float | str] = {}
    """Further keyword arguments of the model's constructor, for example `drop_path_rate: 0.1`."""


class ResolutionStep(Block):
    since: Share
    """Share of the epochs after which this size holds: 0.8 of 100 epochs is epoch 80."""
    size: Pixels
    """Side of the training crops, in pixels."""


class ResolutionRamp(Block):
    start_size: Pixels
    """Side of the training crops up to and including the epoch `begin`, in pixels."""
    end_size: Pixels
    """Their side from the epoch `end` on."""
    begin: Epochs = 0
    """Epoch up to which the size stays `start_size`; a share such as 35% counts the run's epochs."""
    end: Epochs
    """Epoch from which on the size is `end_size`."""
    step: Pixels = 32
    """Sizes in between are multiples of this; the sizes at both ends must be too."""

    @model_validator(mode="after")
    def _in_steps(self) -> Self:
        for key in ("start_size", "end_size"):
            if getattr(self, key) % self.step:
                raise ValueError(
                    f"{key}: {getattr(self, key)} is not a multiple of step, {self.step}; change one of them"
                )
        return self

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        """(key, message) for everything that does not fit a run of `epochs` epochs."""
        begin, end = epochs_of(self.begin, epochs), epochs_of(self.end, epochs)
        if begin >= end:
            return [("end", f"the ramp begins at epoch {begin} and ends at epoch {end}; it must end later")]
        if end > epochs:
            return [("end", f"the ramp ends at epoch {end} of {epochs}, after the run")]
        return []


class CorruptLabelsBlock(Block):
    count: PositiveInt = 1000
    """Training images that get another label."""
    classes: Literal["others", "all"] = "others"
    """What it is drawn from: every class but the image's own, or every class, so that one in as many labels as there
    are classes stays true (P1's code)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Which images and which classes follow from it, the same whatever the recipe's `seed`."""


class DataBlock(Block):
    name: str
    """A data set of `acdc data list`."""
    path: Annotated[str | None, Bears.NOTHING] = None
    """Folder with `train.beton` and `val.beton`, or the image folders `train/` and `val/`. Default: `data/<name>`."""
    loader: Annotated[Literal["auto", "ffcv", "torch"], Bears.EXECUTION] = "auto"
    """`auto` takes FFCV where it is installed and the data is a .beton, and says which it took. Small sets of raw
    images whose crops are not resized (CIFAR, the demo) are kept on the device instead: the pixels are the same."""
    workers: Annotated[Annotated[NonNegativeInt, _THREADS] | None, Bears.NOTHING] = None
    """Threads (FFCV) or processes (torch) that decode images, for each process that trains. Default: one a core."""
    batch_size: PositiveInt
    """Images in one optimiser step, over all devices and accumulated parts."""
    images: PositiveInt | None = None
    """Train on this many images only, spread evenly over the set: for a quick trial. Default: all."""
    val_images: PositiveInt | None = None
    """Validate on this many images only, in the same way. Default: all."""
    val_batch_size: Annotated[PositiveInt | None, Bears.EXECUTION] = None
    """Images in a process's validation batch; the numbers do not depend on it. Default: its part of `batch_size`."""
    corrupt_labels: CorruptLabelsBlock | None = None
    """Train on some wrong labels, and track at each epoch's end how those images are classified (P1 4). The images are
    listed in the run's corrupted_labels.csv. Everything but training goes by the true labels. Default: none is wrong.
    """
    augment: Literal["random_resized_crop", "pad_crop", "none"] = "random_resized_crop"
    """How a training crop is drawn: as on ImageNet, as on CIFAR (zero padding, then a random crop), or not at all."""
    crop_scale: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a random resized crop."""
    crop_ratio: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random resized crop."""
    padding: Annotated[NonNegativeInt, _at_most(1_000)] = 4
    """Pixels of zero padding on each side for `pad_crop`."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    resolution: Pixels | list[ResolutionStep] | ResolutionRamp = 224
    """Side of the training crops in pixels. It changes over the run (progressive resizing) by a list of sizes with the
    share of the run that each begins at, or along a ramp as in FFCV's ImageNet script:
    `{start_size: 160, end_size: 192, begin: 35%, end: 85%}`."""
    val_resize: Pixels = 256
    """Validation images are resized to this shorter side …"""
    val_crop: Pixels = 224
    """… and cropped to this square in the centre."""
    val_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How validation images are resized. `bicubic` is for checkpoints of others; FFCV does not have it."""
    mean: Annotated[tuple[Share, Share, Share], Field(strict=False)] = (0.485, 0.456, 0.406)
    """Subtracted from the channels (red, green, blue), whose range is 0 to 1. Default: ImageNet's."""
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)] = (0.229, 0.224, 0.225)
    """The channels are divided by this after `mean` is subtracted. Default: ImageNet's."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: the smaller number comes first, found [{low}, {high}]")
        if self.val_crop > self.val_resize:
            raise ValueError(f"val_crop: {self.val_crop} is larger than val_resize, {self.val_resize}")
        if isinstance(self.resolution, list):
            starts = [step.since for step in self.resolution]
            if not starts or starts[0] != 0 or starts != sorted(set(starts)):
                raise ValueError("resolution: the steps must begin with `since: 0` and rise")
        return self


class TaskBlock(Block):
    name: Literal["classification"] = "classification"
    """What is learned: one label an image, softmax cross entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes while training; losses of validation are unsmoothed."""


class _Warmup(Block):
    name: str
    warmup_epochs: NonNegativeFloat = 0.0
    """The peak is reached at the start of this epoch, rising linearly, one step an iteration."""
    warmup_start: Share = 0.0
    """Share of the peak at the very first iteration of the warm-up."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        """(key, message) for everything that does not fit a run of `epochs` epochs."""
        if self.warmup_epochs < epochs:
            return []
        return [
            ("warmup_epochs", f"the peak would be reached at epoch {self.warmup_epochs:g} of {epochs}, at no epoch")
        ]


class LinearSchedule(_Warmup):
    name: Literal["linear"]
    """Straight from the peak to `end`."""
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
    """Epochs at whose start the rate drops."""
    gamma: PositiveFloat = 0.1
    """What the rate is multiplied by at a milestone."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        late = [str(milestone) for milestone in self.milestones if milestone >= epochs]
        message = f"the run ends after {epochs} epochs, before {', '.join(late)}"
        return super().problems(epochs) + ([("milestones", message)] if late else [])


Schedule = Annotated[LinearSchedule | CosineSchedule | StepSchedule, Field(discriminator="name")]


class _Optim(Block):
    name: str
    lr: PositiveFloat
    """Peak learning rate, as it is used: it is never scaled behind your back."""
    lr_batch: Annotated[PositiveInt | None, Bears.NOTHING] = None
    """Batch size that `lr` was chosen for; `acdc train` warns when `data.batch_size` is another."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of convolution and linear weights."""
    decay_norm_and_bias: bool = False
    """Decay biases and normalisation parameters too (P1 does, P2 does not)."""
    schedule: Schedule
    """Learning rate over the run, set at every iteration."""
    clip_norm: PositiveFloat | None = None
    """Clip the gradient's global norm to this."""
    nan_patience: Annotated[PositiveInt, Bears.NOTHING] = 10
    """The run stops after this many steps in a row whose loss is NaN or infinite; such a step changes no weight. The
    loss is checked every `track.log_every` steps."""
    accumulate: PositiveInt = 1
    """Split a batch into this many forward and backward passes, to save memory."""


class _Momentum(_Optim):
    momentum: Decay = 0.9
    """Momentum, without dampening."""
    nesterov: bool = False
    """Nesterov's form of momentum."""

    @property
    def state_per_parameter(self) -> int:
        """Numbers that it keeps of every parameter."""
        return 1 if self.momentum else 0

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it is a form of momentum, which is 0 here; set momentum, or nesterov: false")
        return self


class _Moments(_Optim):
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    @property
    def state_per_parameter(self) -> int:
        """Numbers that it keeps of every parameter."""
        return 2


class SGDBlock(_Momentum):
    name: Literal["sgd"]
    """Stochastic gradient descent with momentum."""


class LARSBlock(_Momentum):
    name: Literal["lars"]
    """LARS, for large batches: SGD whose rate is scaled in each layer by norm(weight) / norm(gradient) (timm's). Biases
    and normalisation take the rate as it is, unless they decay."""
    trust_coefficient: PositiveFloat = 0.001
    """Factor of every layer's ratio (the paper's eta)."""


class AdamWBlock(_Moments):
    name: Literal["adamw"]
    """AdamW: Adam with decoupled weight decay."""


class LAMBBlock(_Moments):
    name: Literal["lamb"]
    """LAMB, for large batches: Adam whose step is scaled in each layer to norm(weight) (timm's). It has no bias
    correction: warm the learning rate up. Biases and normalisation take Adam's step, unless they decay. timm's own
    default clips gradients to norm 1; here `clip_norm` does."""
    eps: PositiveFloat = 1e-6
    """Added to the denominator."""


Optim = Annotated[SGDBlock | AdamWBlock | LARSBlock | LAMBBlock, Field(discriminator="name")]


@dataclass(frozen=True)
class RunSize:
    """What a method's keys have to fit."""

    epochs: int
    steps_per_epoch: int | None = None
    """None where only the data set can tell."""
    batch_size: int | None = None


class Misfit(NamedTuple):
    key: str
    """Of the sparsity block."""
    text: str
    stops: bool = True
    """Whether it stops the run; otherwise it is a warning."""


class SparsityBlock(Block):
    """What every method shares; each method's own file adds its keys."""

    method: str
    """A file of `acdc_cli/sparsity/methods`."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        """Everything of this block that does not fit a run of this size."""
        yield from ()

    def errors(self, run: RunSize) -> list[tuple[str, str]]:
        """(key, message) for everything that would stop the run."""
        return [(key, text) for key, text, stops in self.check(run) if stops]

    def require(self, run: RunSize) -> None:
        """Raises RecipeError, with a line for each error."""
        if errors := self.errors(run):
            raise RecipeError("\n".join(f"sparsity.{key}: {text}" for key, text in errors))

    def warnings(self, run: RunSize) -> list[tuple[str, str]]:
        """(key, message) for what can be run, but is hardly what was meant."""
        return [(key, text) for key, text, stops in self.check(run) if not stops]

    def clock(self, progress: float, epochs: int) -> tuple[float, int]:
        """What the learning rate and the resolution take for the epochs elapsed and for all epochs.

        The run's own, but for a method that trains several times over: each time starts the clock again.
        """
        return progress, epochs


class PrunedBlock(SparsityBlock):
    """What every method that prunes shares."""

    keep_dense: list[str] = []
    """Layers never pruned: `first`, `last`, `depthwise`, or patterns of layer names such as `layer4.*`."""
    from_checkpoint: str | None = None
    """Start from a trained dense model: a run directory, whose dense model is taken, or a file (`model.weights`)."""


class TargetBlock(PrunedBlock):
    """What every method shares that prunes to a sparsity set beforehand."""

    target: Sparsity
    """Share of the pruned weights that are zero at the end: 0.95, never 95."""
    distribution: Distribution = "global"
    """`global`: one ranking of all weights. `uniform`: the same sparsity in every layer. `erk`: layers whose weight has
    small dimensions stay denser (Erdős-Rényi-Kernel). The pattern N:M is uniform by nature."""
    pattern: Annotated[
        str,
        Field(
            pattern=r"^(unstructured|[1-9]\d{0,2}:[1-9]\d{0,2}|block([2-9]|[1-9]\d{1,2}))$",
            json_schema_extra={"expected": "unstructured, N:M such as 2:4, or blocks such as block4"},
        ),
    ] = "unstructured"
    """`2:4` keeps the 2 largest of every 4 consecutive input channels (any N:M), `block4` keeps or drops 4 of them
    together, by their mean size. A layer whose input channels are no multiple of 4 stays dense."""
    layers: dict[str, Sparsity] = {}
    """Sparsities of their own, by patterns of layer names (`"layer4.*": 0.98`), of which the first that matches holds;
    the target is then that of the other layers."""

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M."""
        n, colon, m = self.pattern.partition(":")
        return (int(n), int(m)) if colon else None

    @property
    def block(self) -> int:
        """Consecutive input channels that live and die together."""
        return int(self.pattern.removeprefix("block")) if self.pattern.startswith("block") else 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.layers and not self.target:
            raise ValueError("layers: with target 0 there is nothing to add to; name layers to spare in keep_dense")
        if self.n_of_m is None:
            return self
        n, m = self.n_of_m
        if n >= m:
            raise ValueError(f"pattern: {self.pattern} prunes nothing; N of N:M must be smaller than M")
        if not isclose(self.target, 1 - n / m, abs_tol=1e-3):
            raise ValueError(
                f"target: {self.pattern} keeps {n} of every {m} weights, a sparsity of {1 - n / m:.4g}, found "
                f"{self.target:g}; write target: {1 - n / m:.4g}, or take another pattern"
            )
        fixes = f"{self.pattern} fixes the sparsity of every layer at {1 - n / m:.4g}"
        if self.distribution == "erk":
            raise ValueError(f"distribution: {fixes}, and erk gives each its own; leave one of them out")
        if self.layers:
            raise ValueError(f"layers: {fixes}, so none can have its own; leave one of them out")
        return self


class EMABlock(Block):
    decay: Decay
    """What the average keeps of itself at each step, as 0.9999: it spans about 1 / (1 - decay) steps."""
    begin: Epochs = 0
    """Epoch that the average begins with, from the weights after its first step; 85% averages the last phase only."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        """(key, message) for everything that does not fit a run of `epochs` epochs."""
        if (begin := epochs_of(self.begin, epochs)) < epochs:
            return []
        return [("begin", f"the average would begin at epoch {begin} of {epochs}, at no epoch")]


class TrackBlock(Block):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when logged in, else offline. metrics.jsonl is written in every case."""
    project: str = "acdc"
    """W&B project."""
    entity: str | None = None
    """W&B user or team. Default: yours."""
    group: str | None = None
    """W&B group."""
    tags: list[str] = []
    """W&B tags."""
    log_every: PositiveInt = 50
    """Steps between two looks at the loss (the progress bar, and the end of the run if it is no number)."""


class CheckpointBlock(Block):
    every_epochs: PositiveInt = 1
    """Epochs between two resumable checkpoints; the end of a phase, the last included, always writes one."""
    every_minutes: PositiveFloat | None = 15.0
    """Minutes after which one is written within an epoch; null: none is."""
    keep_phases: bool = False
    """Keep the model at every phase end in checkpoints/, not only the last sparse and the last dense one."""
    keep_every: PositiveInt | None = None
    """Keep the model, and its masks in masks/, also at the end of every so many-th epoch. Default: of none."""


class Recipe(Block):
    name: Annotated[str, Bears.REPETITION] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        json_schema_extra={
            "expected": "a name of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        },
    )
    """Names the run directory: runs/<name>-<seed>."""
    epochs: EpochCount
    """Passes over the training set."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Bears.REPETITION] = 0
    """Initial weights, order of the epochs and augmentation follow from it."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Bears.EXECUTION] = "auto"
    """`auto`: CUDA when there is one."""
    threads: Annotated[Annotated[PositiveInt, _THREADS] | None, Bears.EXECUTION] = None
    """CPU threads of one operation; default: one a core. A small model on a busy machine is faster with fewer, and a
    run is the same to the bit only on as many."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """`auto`: bf16 on CUDA, fp32 on the CPU. fp16 scales the loss. fp32 is IEEE float32 everywhere. tf32 lets CUDA
    round the factors of convolutions and matrix products to 10 bits, which is several times faster. What bf16 and fp16
    leave in float32 is IEEE float32."""
    compile: Annotated[Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] | bool, Bears.EXECUTION] = (
        "auto"
    )
    """The mode of torch.compile. `auto`: default on CUDA, off on the CPU. reduce-overhead replays CUDA graphs, which
    helps small models and batches and takes more memory. max-autotune does so too, and tries out kernels for minutes
    before it starts. Older recipes have true for default and false for off."""
    channels_last: Annotated[bool, Bears.EXECUTION] = True
    """Memory layout of images and weights; faster on GPUs and most CPUs."""
    deterministic: Annotated[bool, Bears.EXECUTION] = False
    """The same run to the bit every time on the same GPU: cuDNN and torch take deterministic algorithms only, and
    cuDNN does not choose by timing. Slower; an operation that has no such algorithm ends the run with its name. On the
    CPU runs are the same to the bit in any case."""
    eval_every: Annotated[PositiveInt, Bears.EXECUTION] = 1
    """Epochs between two validations. An epoch that ends a phase, ends the run or keeps its model is always validated;
    the records of the others have null in place of validation metrics. `last_phase: dense_best` chooses among the
    epochs that are validated."""
    sync_bn: bool = False
    """Batch norm takes its statistics over the batch of all GPUs together, not each over its own part. For parts of a
    few images; it costs time at every layer. On one GPU it makes no difference."""
    model: ModelBlock
    data: DataBlock
    task: TaskBlock = TaskBlock()
    optim: Optim
    sparsity: SerializeAsAny[SparsityBlock]
    ema: EMABlock | None = None
    """Average the weights over the steps, in an exponential moving average with the masks of the model. It is judged
    at each epoch's end (`ema_top1`, …) and saved beside the pair, as sparse-ema and dense-ema.safetensors. Default: no.
    """
    track: Annotated[TrackBlock, Bears.NOTHING] = TrackBlock()
    checkpoint: Annotated[CheckpointBlock, Bears.NOTHING] = CheckpointBlock()

    def as_dict(self) -> dict[str, Any]:
        """Every key with its value, defaults included: what resolved.yaml holds."""
        return self.model_dump(mode="json")
