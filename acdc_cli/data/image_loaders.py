"""Build the loaders of a set of images by its recipe's `data` block."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc_cli import console
from acdc_cli.data import augment, resident
from acdc_cli.data.augment import Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.corrupted_labels import CorruptedLabels
from acdc_cli.data.data_set import steps_per_epoch
from acdc_cli.data.finish import finish_of
from acdc_cli.data.image_set import ImageSet, is_as_published
from acdc_cli.data.order import spread
from acdc_cli.data.resident import ResidentLoader
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import ImagesBlock

if TYPE_CHECKING:
    from acdc_cli.data.ffcv import FFCVLoader

FFCV_HINT = (
    "pip install 'acdc-cli[ffcv]' compiles it; on Debian it needs: "
    "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++"
)
_CROPS = {"random_resized_crop": augment.RANDOM_RESIZED, "pad_crop": augment.PADDED, "none": augment.WHOLE}


def train_loader(
    data: ImageSet, seed: int, sizes: Sequence[int], device: torch.device, shard: Shard = UNDIVIDED
) -> Loader:
    """The training loader: shuffled and augmented, with the recipe's corrupted labels.

    sizes: sides of the crops in each epoch.
    """
    block, wrong = data.block, data.corrupted_labels
    plan = Plan(
        batch_size=block.batch_size,
        size=sizes.__getitem__,
        crop=Crop(_CROPS[block.augment], *block.crop_scale, *block.crop_ratio, padding=block.padding),
        flip=block.flip,
        seed=seed,
        shuffle=True,
        images=block.images,
        relabelled=(wrong.indices, wrong.given) if wrong else None,
        shard=shard,
        finish=finish_of(block, seed),
        repeats=block.augmentation.repeats,
    )
    steps_per_epoch(block, plan.samples(len(data.split("train").labels)))
    wanted = block.augmentation
    if not (wanted.mixup or wanted.cutmix):
        return _loader(data, "train", plan, device, len(sizes))
    if plan.largest_batch == 1:
        raise DataError(
            f"data.augmentation: mixup and cutmix mix an image with another of the same process, and data.batch_size "
            f"{block.batch_size} gives each of {shard.size} only one. Raise it, or set both to 0."
        )
    # here because it imports torchvision
    from acdc_cli.data.mixing import MixingLoader

    return MixingLoader(_loader(data, "train", plan, device, len(sizes)), wanted, seed, data.labelled)


def first_size(data: ImageSet, split: str = "val") -> tuple[int, int]:
    """Height and width of the split's first image, in pixels."""
    stored = data.split(split).images
    if not isinstance(stored, Source):
        height, width = stored.sizes[0].tolist()
        return height, width
    from acdc_cli.data.torch import FolderImages

    height, width, _ = FolderImages(stored).decode(0).shape
    return height, width


def val_loader(
    data: ImageSet, device: torch.device, split: str = "val", shard: Shard = UNDIVIDED, count: int | None = None
) -> Loader:
    """The validation loader: every image of the split once, in order, not augmented, with its true label.

    count: use this many images only, evenly spread.
    """
    used = data.block.images if split == "train" else data.block.val_images
    plan = replace(_val_plan(data.block, shard), images=count if used is None else used)
    if used is not None and count is not None:
        stored = len(data.split(split).labels)
        used = plan.samples(stored)
        plan = replace(plan, only=spread(used, stored)[spread(min(count, used), used)])
    return _loader(data, split, plan, device)


def calibration_loader(data: ImageSet, seed: int, device: torch.device) -> Loader:
    """The training images in whole shuffled batches, prepared like validation images, with their true labels."""
    block = data.block
    plan = replace(
        _val_plan(block, UNDIVIDED), batch_size=block.batch_size, seed=seed, shuffle=True, images=block.images
    )
    steps_per_epoch(block, plan.samples(len(data.split("train").labels)))
    return _loader(data, "train", plan, device)


def corrupted_loader(data: ImageSet, wrong: CorruptedLabels, device: torch.device, shard: Shard = UNDIVIDED) -> Loader:
    """The corrupted training samples, each once and not augmented; labels are their positions in `wrong`."""
    numbers = np.arange(len(wrong.indices))
    plan = replace(_val_plan(data.block, shard), only=wrong.indices, relabelled=(wrong.indices, numbers))
    return _loader(data, "train", plan, device)


def _val_plan(block: ImagesBlock, shard: Shard) -> Plan:
    return Plan(
        batch_size=block.val_batch_size or block.batch_size // shard.size,
        size=lambda epoch: block.val_crop,
        crop=Crop(augment.CENTRED, share=block.val_crop / block.val_resize),
        shard=shard,
        bicubic=block.val_interpolation == "bicubic",
    )


def _loader(data: ImageSet, split: str, plan: Plan, device: torch.device, epochs: int = 1) -> Loader:
    block, stored = data.block, data.split(split).images
    cores = len(os.sched_getaffinity(0)) // plan.shard.local_size
    workers = max(1, cores) if block.workers is None else block.workers
    if isinstance(stored, Source):
        name = block.name if block.name == "imagenet" or is_as_published(block) else "folder"
        write = f"`acdc data write {name} --source {stored.root}` makes them"
        _do_without_ffcv(block, f"FFCV reads .beton files, and {stored.root} holds images: {write}")
        # here, like below, because it imports torchvision, which the other loaders and `acdc plan` do without
        from acdc_cli.data.torch import FolderImages, TorchLoader

        return TorchLoader(FolderImages(stored), plan, workers, device)
    stays = resident.can_stay(stored, plan, map(plan.size, range(epochs)))
    # FFCV shows the same pixels of raw images, but decodes JPEGs in its own way: those stay only where it is not taken
    wanted = block.loader == "ffcv" or (block.loader == "auto" and not (stays and stored.is_raw))
    if plan.bicubic:
        _do_without_ffcv(block, "FFCV does not resize with data.val_interpolation: bicubic")
        wanted = False
    if wanted and (ffcv := _ffcv(block)) is not None:
        return ffcv(stored, plan, max(1, workers), device)
    if stays:
        return ResidentLoader(stored, plan, device)
    from acdc_cli.data.torch import MemoryImages, TorchLoader, is_small

    # operations on images take longer than decoding them: several processes share the work
    if plan.finish is not None or not is_small(stored):
        return TorchLoader(stored, plan, workers, device)
    # a few are read each time sooner than all are decoded and kept
    return TorchLoader(MemoryImages(stored) if plan.only is None else stored, plan, 0, device)


def _ffcv(block: ImagesBlock) -> type[FFCVLoader] | None:
    """FFCV's loader; None if it is unusable and the recipe does not require it."""
    try:
        # here, because it loads FFCV's kernels
        from acdc_cli.data.ffcv import FFCVLoader

        return FFCVLoader
    except (ImportError, OSError) as cause:
        _do_without_ffcv(block, f"FFCV cannot be used ({cause}): {FFCV_HINT}")
        return None


def _do_without_ffcv(block: ImagesBlock, reason: str) -> None:
    """Raises DataError if the recipe requires FFCV; with `auto`, prints the reason."""
    if block.loader == "ffcv":
        raise DataError(f"{reason}. Or let torchvision do it: --set data.loader=torch")
    if block.loader == "auto":
        _say_once(f"loading with torchvision. {reason}")


@functools.cache
def _say_once(text: str) -> None:
    console.say(text)
