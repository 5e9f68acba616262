"""The block `data` of a recipe whose task is on images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from acdc_cli.recipe.blocks.base import THREADS, Bears, Block, Misfit, Pixels, RunSize, Share, at_most
from acdc_cli.recipe.blocks.course import ResolutionRamp, ResolutionStep, SizeCourse
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.discovery import POLICIES
from acdc_cli.recipe.explain import unknown_name


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
    repeats: Annotated[PositiveInt, at_most(100)] = 1
    """Show N versions of an image in one batch, each drawn on its own. An epoch has as many steps as without, so
    it shows one in N images."""


class ImagesBlock(DataBlock):
    """A set of images, for tasks that judge images."""

    inputs: ClassVar[str] = "images"
    noun: ClassVar[str] = "images"
    one: ClassVar[str] = "an image"
    size_key: ClassVar[str] = "resolution"
    size_unit: ClassVar[str] = "pixels"
    short_words: ClassVar[tuple[str, str]] = ("px", "img/s")
    size_keys: ClassVar[str] = "training crops are data.resolution, validation crops data.val_crop"

    path: Annotated[str | None, Bears.NOTHING] = None
    """Folder with `train.beton` and `val.beton`, or the image folders `train/` and `val/`. Default: `data/<name>`."""
    loader: Annotated[Literal["auto", "ffcv", "torch"], Bears.EXECUTION] = "auto"
    """`auto` takes FFCV if it is installed and the data is a .beton file, and says so. Small sets of raw images
    whose crops are not resized (CIFAR, the demo) are kept on the device instead, with the same pixels."""
    workers: Annotated[Annotated[NonNegativeInt, THREADS] | None, Bears.NOTHING] = None
    """Threads (FFCV) or processes (torch) that decode images, for each rank. Default: one per core."""
    images: PositiveInt | None = None
    """Train on this many images only, spread evenly over the set: for a quick trial. Default: all."""
    val_images: PositiveInt | None = None
    """Validate on this many images only, spread evenly over the set. Default: all."""
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
    padding: Annotated[NonNegativeInt, at_most(1_000)] = 4
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

    @property
    def train_size(self) -> SizeCourse:
        return self.resolution

    @property
    def val_size(self) -> int:
        return self.val_crop

    def shown(self) -> dict[str, Any]:
        return {"val_resize": self.val_resize, "val_crop": self.val_crop}

    def settled(self, size: int) -> dict[str, Any]:
        return {"resolution": size, "corrupt_labels": None}

    def notes(self) -> list[str]:
        if (repeats := self.augmentation.repeats) == 1:
            return []
        return [f"an epoch shows one in {repeats} images, {repeats} times each (data.augmentation.repeats)"]

    def check(self, run: RunSize) -> Iterator[Misfit]:
        if isinstance(self.resolution, ResolutionRamp):
            for key, text in self.resolution.errors(run):
                yield Misfit(f"resolution.{key}", text)
