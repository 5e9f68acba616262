"""The blocks of a recipe. A field's docstring documents the key for the person who fills in the YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import floor, isclose
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

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
from acdc_cli.recipe.discovery import POLICIES, TASKS
from acdc_cli.recipe.explain import unknown_name


def _at_most(limit: int) -> AfterValidator:
    """An upper bound that only a typo exceeds; messages about other errors do not mention it."""

    def check(number: int) -> int:
        if number > limit:
            raise ValueError(f"expected at most {limit:,}, found {number:,}"[:80])
        return number

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Factor by which a running mean decays at each step."""
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
    """What a recipe key affects: `Annotated[..., Bears.NOTHING]` marks a field, and with it all fields of its block.
    A field without a mark affects the numbers. `recipe/bearing.py` says which classes may be ignored where."""

    NUMBERS = "numbers"
    NOTHING = "nothing"
    """Speed, reports, warnings and the location of files."""
    EXECUTION = "execution"
    """How the same computation is carried out and how often it is validated: equal up to rounding."""
    REPETITION = "repetition"
    """Which repetition of an experiment this is."""


class Block(BaseModel):
    """Frozen, strict (no `"3"` for 3, no `true` for 1), and without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelBlock(Block):
    name: str
    """A model of `acdc_cli/models`, else of torchvision, else of timm; `torchvision:NAME`, `timm:NAME` pick one.
    `FILE.py:FUNCTION` calls a function of yours; the file is looked for beside the recipe, then in the working
    directory, and copied into the run."""
    code: str | None = None
    """Digest of the file in `name` and of the modules beside it that it imports. acdc fills it in, and refuses another
    content where it is given."""
    blurpool: bool = False
    """Blur before every strided convolution with at least 16 input channels (P2 A); parameter names stay the same."""
    blur: Annotated[Literal["convolution", "shifts"], Bears.EXECUTION] = "convolution"
    """How `blurpool` is computed; the results are equal up to rounding. `convolution`: as a depthwise convolution.
    `shifts`: as a sum of shifted copies, which torch.compile fuses with other operations; slower without it."""
    weights: str | None = None
    """Start from the weights in this file (.safetensors, packed or a torch file), in this folder as the Hugging Face
    Hub has it, or from `hf-hub:OWNER/NAME` or timm's pretrained `timm:TAG`, such as `timm:resnet50.a1_in1k`."""
    rename: list[Annotated[str, Field(pattern=r"^[^=]+=[^=]*$", json_schema_extra={"expected": "OLD=NEW"})]] = []
    """Replace text in the tensor names of the file that the run starts from, in this order: `[linear.=fc.]`."""
    new_head: bool = False
    """Start from the weights of all layers but the classifier, which is initialised at random for the classes of the
    data; it is dense, and pruned as any layer unless `sparsity.keep_dense` has `last`."""
    options: dict[str, bool | int | float | str] = {}
    """Further keyword arguments of the model's constructor, for example `drop_path_rate: 0.1`."""

    @model_validator(mode="after")
    def _has_code(self) -> Self:
        if self.code is not None and ".py:" not in self.name:
            raise ValueError(f"code: {self.name} is no file; leave it out, or set name: FILE.py:FUNCTION")
        return self

    def starting_from(self, weights: str | None) -> Self:
        """The same architecture with all weights of another file, whose names are the model's."""
        return self.model_copy(update={"weights": weights, "rename": [], "new_head": False})


class ResolutionStep(Block):
    since: Share
    """Share of the run at which this size begins: 0.8 of 100 epochs is epoch 80."""
    size: Pixels
    """Side of the training crops, in pixels."""


class ResolutionRamp(Block):
    start_size: Pixels
    """Side of the training crops up to and including epoch `begin`, in pixels."""
    end_size: Pixels
    """Side of the training crops from epoch `end` on, in pixels."""
    begin: Epochs = 0
    """Last epoch with `start_size`, as a number or a share of the run such as 35%."""
    end: Epochs
    """First epoch with `end_size`."""
    step: Pixels = 32
    """All sizes are multiples of this number of pixels; `start_size` and `end_size` must be, too."""

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
            return [("end", f"the ramp would end at epoch {end}, but the run has {epochs} epochs; make it earlier")]
        return []


class CorruptLabelsBlock(Block):
    count: PositiveInt = 1000
    """Number of training images that get another label."""
    classes: Literal["others", "all"] = "others"
    """Classes from which the new label is drawn: `others` leaves out the image's own; `all` includes it, as P1's code
    does, so that about one label in as many as there are classes stays true."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the choice of images and labels, independent of the recipe's `seed`."""


def _known_policy(text: str) -> str:
    name, _, rest = text.partition("-")
    if name not in (known := POLICIES.names()):
        raise ValueError(unknown_name(name, known))
    POLICIES.module(name).check(rest)
    return text


class AugmentationBlock(Block):
    policy: Annotated[
        Annotated[
            str,
            AfterValidator(_known_policy),
            Field(json_schema_extra={"expected": "trivial, or rand-… such as rand-m7-mstd0.5-inc1"}),
        ]
        | None,
        Field(),
    ] = None
    """Random operations on each crop, after its flip. `trivial`: torchvision's TrivialAugmentWide. `rand-…`: timm's
    RandAugment in its own notation, such as `rand-m7-mstd0.5-inc1`. Default: none."""
    erasing: Share = 0.0
    """Probability that a random rectangle of a crop, 2 % to 33 % of it, gets the mean colour (`data.mean`)."""
    mixup: NonNegativeFloat = 0.0
    """Blend each image of a batch, and its label, with another one's: the share is drawn for each batch from
    Beta(mixup, mixup). 0: never."""
    cutmix: NonNegativeFloat = 0.0
    """Paste a rectangle of another image of the batch into each one, and mix the labels by its area, drawn for each
    batch from Beta(cutmix, cutmix). With `mixup` too, each batch takes one of them at random. 0: never."""
    repeats: Annotated[PositiveInt, _at_most(100)] = 1
    """Show so many versions of an image in one batch, each drawn on its own. An epoch has as many steps as without, so
    it shows one in `repeats` images."""


class DataBlock(Block):
    name: str
    """A data set of `acdc data list`."""
    path: Annotated[str | None, Bears.NOTHING] = None
    """Folder with `train.beton` and `val.beton`, or the image folders `train/` and `val/`. Default: `data/<name>`."""
    loader: Annotated[Literal["auto", "ffcv", "torch"], Bears.EXECUTION] = "auto"
    """`auto` takes FFCV if it is installed and the data is a .beton file, and says so. Small sets of raw images
    whose crops are not resized (CIFAR, the demo) are kept on the device instead, with the same pixels."""
    workers: Annotated[Annotated[NonNegativeInt, _THREADS] | None, Bears.NOTHING] = None
    """Threads (FFCV) or processes (torch) that decode images, for each rank. Default: one per core."""
    batch_size: PositiveInt
    """Images in one optimiser step, over all devices and accumulated parts."""
    images: PositiveInt | None = None
    """Train on this many images only, spread evenly over the set: for a quick trial. Default: all."""
    val_images: PositiveInt | None = None
    """Validate on this many images only, spread evenly over the set. Default: all."""
    val_batch_size: Annotated[PositiveInt | None, Bears.EXECUTION] = None
    """Images in a rank's validation batch; results do not depend on it. Default: its part of `batch_size`."""
    corrupt_labels: CorruptLabelsBlock | None = None
    """Train on some wrong labels, and track after each epoch how those images are classified (P1 4). The run's
    corrupted_labels.csv lists them. Everything but training uses the true labels. Default: no wrong labels."""
    augment: Literal["random_resized_crop", "pad_crop", "none"] = "random_resized_crop"
    """How a training crop is drawn: `random_resized_crop` as on ImageNet, `pad_crop` as on CIFAR (zero padding, then a
    random crop); `none` takes the largest square in the centre."""
    crop_scale: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a random resized crop."""
    crop_ratio: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random resized crop."""
    padding: Annotated[NonNegativeInt, _at_most(1_000)] = 4
    """Pixels of zero padding on each side for `pad_crop`."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    augmentation: AugmentationBlock = AugmentationBlock()
    """Further augmentation of training images; all of it is off by default."""
    resolution: Pixels | list[ResolutionStep] | ResolutionRamp = 224
    """Side of the training crops, in pixels. For progressive resizing, give a list of sizes with the share of the run
    at which each begins, or a ramp as in FFCV's ImageNet script:
    `{start_size: 160, end_size: 192, begin: 35%, end: 85%}`."""
    val_resize: Pixels = 256
    """Shorter side to which validation images are resized, in pixels."""
    val_crop: Pixels = 224
    """Side of the square cropped from the centre of the resized validation images, in pixels."""
    val_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How validation images are resized. `bicubic` is for checkpoints of other projects; FFCV does not support it."""
    mean: Annotated[tuple[Share, Share, Share], Field(strict=False)] = (0.485, 0.456, 0.406)
    """Mean of the channels (red, green, blue) in the range 0 to 1, which is subtracted. Default: ImageNet's."""
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels, by which they are then divided. Default: ImageNet's."""

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


OLDER_TASKS = {"classification": "multiclass"}
"""Names of tasks in older recipes, with those of today."""


def current_task(name: str) -> str:
    return OLDER_TASKS.get(name, name)


def _known_task(name: str) -> str:
    name = current_task(name)
    if name not in (known := TASKS.names()):
        raise ValueError(unknown_name(name, known))
    return name


LAST_DENSE = "last_dense"
"""The value of `task.teacher` that names no file."""


class DistillationBlock(Block):
    temperature: PositiveFloat = 4.0
    """T: both models' logits are divided by it."""
    weight: Share = 0.9
    """w: the teacher's share of the training loss, (1 - w) L + w [(1 - h) T² KL(teacher ‖ model) + h H], where L is the
    loss on the labels and H the cross entropy with the teacher's answers as labels (arXiv 1503.02531)."""
    hard: Share = 0.0
    """h: how much of the teacher's share comes from its answers instead of its probabilities."""
    model: str | None = None
    """The architecture of a teacher in a file that was not written by acdc."""


class TaskBlock(Block):
    name: Annotated[str, AfterValidator(_known_task), Field(json_schema_extra={"enum": TASKS.names()})] = "multiclass"
    """`multiclass`: one class per image, softmax cross entropy. `multilabel`: several labels per image, each there or
    not, with binary cross entropy. Older recipes have `classification` for the former."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly during training: over all classes, or for `multilabel` over yes and no of each
    label. Validation losses are not smoothed."""
    loss: Literal["softmax", "binary"] | None = None
    """`softmax`: cross entropy of the classes. `binary`: binary cross entropy of each class or label on its own.
    Default: `softmax` for multiclass; `binary` for multilabel, which has no other. Validation reports the default's."""
    target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    """With `loss: binary`, each target above this becomes 1 and every other 0, for labels that are mixed. Default: the
    targets as they are mixed and smoothed."""
    teacher: str | None = None
    """Distillation: train on the predictions of another model, too. A run directory, whose dense model it takes if
    there is one, or a checkpoint, as in `model.weights`. `last_dense`: the model at the end of this run's last dense
    phase teaches the phases after it. A teacher sees the same images as the model, with its own mean and std."""
    distillation: DistillationBlock = DistillationBlock()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.teacher is None and self.distillation != DistillationBlock():
            raise ValueError("distillation needs a teacher: set task.teacher, or remove the block")
        return self

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        if self.target_threshold is not None and self.loss != "binary":
            raise ValueError("target_threshold: needs loss: binary; set it, or remove target_threshold")
        return self


class _Warmup(Block):
    name: str
    warmup_epochs: NonNegativeFloat = 0.0
    """Epoch at whose start the learning rate reaches its peak, after a linear rise at every step."""
    warmup_start: Share = 0.0
    """Share of the peak at the first step of the warm-up."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        """(key, message) for everything that does not fit a run of `epochs` epochs."""
        if self.warmup_epochs < epochs:
            return []
        return [
            (
                "warmup_epochs",
                f"the peak would come at epoch {self.warmup_epochs:g}, but there are {epochs} epochs; make it earlier",
            )
        ]


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

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        late = [str(milestone) for milestone in self.milestones if milestone >= epochs]
        message = f"the run ends after {epochs} epochs, before {', '.join(late)}"
        return super().problems(epochs) + ([("milestones", message)] if late else [])


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


@dataclass(frozen=True)
class RunSize:
    """The size of a run, which a method's keys must fit."""

    epochs: int
    steps_per_epoch: int | None = None
    """None if only the data set can tell."""
    batch_size: int | None = None


class Misfit(NamedTuple):
    key: str
    """A key of the sparsity block."""
    text: str
    stops: bool = True
    """Whether it stops the run; otherwise it is a warning."""


class SparsityBlock(Block):
    """The keys of every method; each method's file adds its own."""

    method: str
    """Sparse-training method: the name of a file in `acdc_cli/sparsity/methods`."""
    at_once: ClassVar[Mapping[str, Any] | None] = None
    """The keys with which the method prunes a trained model at the start of a run, as `acdc prune` does; None for a
    method that prunes in the course of training."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        """The keys, besides method and target, with which `acdc init` begins a recipe for a run of this size."""
        return {}

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
        """(key, message) for everything that can run but is probably a mistake."""
        return [(key, text) for key, text, stops in self.check(run) if not stops]

    def clock(self, progress: float, epochs: int) -> tuple[float, int]:
        """The elapsed epochs and all epochs, as the learning rate and the resolution count them.

        They are the run's own, except for a method that trains several times: its clock restarts each time.
        """
        return progress, epochs


class PrunedBlock(SparsityBlock):
    """The keys of every method that prunes."""

    keep_dense: list[str] = []
    """Layers that are never pruned: `first`, `last`, `depthwise`, or patterns of layer names such as `layer4.*`."""
    from_checkpoint: str | None = None
    """Start from a trained dense model: that of a run directory, or a weight file as in `model.weights`."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        return super().proposed(run, target) | {"keep_dense": ["first", "last"]}


class TargetBlock(PrunedBlock):
    """The keys of every method with a target sparsity."""

    target: Sparsity
    """Fraction of the prunable weights that is zero at the end: 0.95, never 95."""
    distribution: Distribution = "global"
    """`global`: one ranking of all weights. `uniform`: the same sparsity in every layer. `erk`: layers whose weight has
    small dimensions stay denser (Erdős-Rényi-Kernel). N:M patterns are always uniform."""
    pattern: Annotated[
        str,
        Field(
            pattern=r"^(unstructured|[1-9]\d{0,2}:[1-9]\d{0,2}|block([2-9]|[1-9]\d{1,2}))$",
            json_schema_extra={"expected": "unstructured, N:M such as 2:4, or blocks such as block4"},
        ),
    ] = "unstructured"
    """`2:4`, or any N:M, keeps the 2 largest of every 4 consecutive input channels; `block4` keeps or drops 4 of them
    together, by their mean magnitude. A layer whose input channels are not a multiple of 4 stays dense."""
    layers: dict[str, Sparsity] = {}
    """Sparsities of single layers, by patterns of layer names (`"layer4.*": 0.98`); the first match wins. The target
    applies to the other layers."""

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M; None for other patterns."""
        n, colon, m = self.pattern.partition(":")
        return (int(n), int(m)) if colon else None

    @property
    def block(self) -> int:
        """Consecutive input channels that are kept or dropped together."""
        return int(self.pattern.removeprefix("block")) if self.pattern.startswith("block") else 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.layers and not self.target:
            raise ValueError("layers: needs a target above 0; name layers that stay dense in keep_dense")
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
    """Decay of the average at each step, such as 0.9999; it spans about 1 / (1 - decay) steps."""
    begin: Epochs = 0
    """Epoch in which the average begins, from the weights after its first step; 85% averages the last phase only."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        """(key, message) for everything that does not fit a run of `epochs` epochs."""
        if (begin := epochs_of(self.begin, epochs)) < epochs:
            return []
        return [
            ("begin", f"the average would begin at epoch {begin}, but the run has {epochs} epochs; make it earlier")
        ]


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
    tensorboard: bool = False
    """Also write TensorBoard's event files, into the run's folder `tensorboard` (extra `tensorboard`)."""
    log_every: PositiveInt = 50
    """Steps between two checks of the loss, for the progress bar and `optim.nan_patience`."""


class CheckpointBlock(Block):
    every_epochs: PositiveInt = 1
    """Epochs between two resumable checkpoints; the end of every phase writes one, too."""
    every_minutes: PositiveFloat | None = 15.0
    """Minutes between two checkpoints within an epoch; null: none."""
    keep_phases: bool = False
    """Keep the model of every phase end in checkpoints/, not only the last sparse and the last dense one."""
    keep_every: PositiveInt | None = None
    """Also keep the model, and its masks in masks/, every so many epochs. Default: never."""
    keep_states: list[Epochs] = []
    """Keep the whole state after so many epochs, `[85]` or `[85%]` of the run, for `acdc train --fork`."""
    keep_masks_every: PositiveInt | None = None
    """Keep the masks alone, one bit per weight, every so many epochs outside dense phases. Default: only at phase
    ends and with kept models."""
    requeue: bool = False
    """In a Slurm job that is to be signalled before its end (`#SBATCH --signal=USR1@120`): once saved, requeue the job,
    whose command needs `--resume auto`."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        """(key, message) for everything that does not fit a run of `epochs` epochs."""
        outside = [str(each) for each in self.keep_states if not 0 < epochs_of(each, epochs) < epochs]
        text = f"{', '.join(outside)}: expected lengths between the start and the end of the run's {epochs} epochs"
        return [("keep_states", text)] if outside else []


class DistributedBlock(Block):
    timeout_minutes: PositiveFloat = 10.0
    """How long a process of several waits for another that hangs, once training has begun (30 minutes before), until
    it ends; all then restart from the last checkpoint."""


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
    """Seed of initial weights, order of images and augmentation."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Bears.EXECUTION] = "auto"
    """`auto`: CUDA if there is a GPU, else the CPU."""
    threads: Annotated[Annotated[PositiveInt, _THREADS] | None, Bears.EXECUTION] = None
    """CPU threads of one operation. Default: one per core. A small model on a busy machine is faster with fewer;
    runs are identical to the bit only with the same number."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """`auto`: bf16 on CUDA, fp32 on the CPU. fp16 scales the loss. fp32 is IEEE float32 everywhere. tf32 lets CUDA
    round the factors of convolutions and matrix products to 10 bits, which is several times faster. Operations that
    bf16 and fp16 leave in float32 use IEEE float32."""
    compile: Annotated[Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] | bool, Bears.EXECUTION] = (
        "auto"
    )
    """The mode of torch.compile. `auto`: default on CUDA, off on the CPU. reduce-overhead replays CUDA graphs, which
    helps small models and batches and takes more memory. max-autotune does so, too, after minutes of trying
    out kernels. Older recipes have true for default and false for off."""
    channels_last: Annotated[bool, Bears.EXECUTION] = True
    """Memory layout of images and weights; faster on GPUs and most CPUs."""
    deterministic: Annotated[bool, Bears.EXECUTION] = False
    """Runs identical to the bit on the same GPU: cuDNN and torch use deterministic algorithms only, cuDNN does not
    choose by timing. It is slower, and an operation without such an algorithm stops the run with an error that names
    it. Runs on the CPU are always identical."""
    eval_every: Annotated[PositiveInt, Bears.EXECUTION] = 1
    """Epochs between two validations. An epoch that ends a phase, ends the run or keeps its model is always validated;
    the records of other epochs have null validation metrics. `last_phase: dense_best` chooses among validated epochs.
    """
    fork: Annotated[str | None, Bears.REPETITION] = Field(
        default=None, pattern=r"^.+@[1-9]\d*$", json_schema_extra={"expected": "RUN@EPOCHS such as resnet50_95-0@85"}
    )
    """Start from the state that another run kept after so many epochs (`checkpoint.keep_states`): RUN@EPOCHS, where RUN
    is the run's directory, absolute or relative to the folder that holds this run. `acdc train --fork` sets it."""
    sync_bn: bool = False
    """Compute batch-norm statistics over the batch of all GPUs together, for parts of a few images. It costs time at
    every layer; on one GPU it makes no difference."""
    model: ModelBlock
    data: DataBlock
    task: TaskBlock = TaskBlock()
    optim: Optim
    sparsity: SerializeAsAny[SparsityBlock]
    ema: EMABlock | None = None
    """Exponential moving average of the weights, with the model's masks. It is validated after each epoch (`ema_top1`)
    and saved as sparse-ema.safetensors and dense-ema.safetensors. Default: none."""
    track: Annotated[TrackBlock, Bears.NOTHING] = TrackBlock()
    checkpoint: Annotated[CheckpointBlock, Bears.NOTHING] = CheckpointBlock()
    distributed: Annotated[DistributedBlock, Bears.NOTHING] = DistributedBlock()

    @property
    def forked_after(self) -> int:
        """Epochs that the source of a fork had trained; 0: the run starts from the beginning."""
        return int(self.fork.rpartition("@")[2]) if self.fork else 0

    def as_dict(self) -> dict[str, Any]:
        """Every key with its value, defaults included: what resolved.yaml holds."""
        return self.model_dump(mode="json")
