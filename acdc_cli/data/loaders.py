"""From a recipe's `data` block to its data set and loaders."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from acdc_cli import console
from acdc_cli.data import augment, corrupted_labels, datasets, resident
from acdc_cli.data import manifest as manifests
from acdc_cli.data.augment import Crop
from acdc_cli.data.batches import UNDIVIDED, Loader, Plan, Shard
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.corrupted_labels import CorruptedLabels
from acdc_cli.data.order import spread
from acdc_cli.data.resident import ResidentLoader
from acdc_cli.errors import DataError
from acdc_cli.recipe.schema import DataBlock
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.schedule.resolution import resolution_of

if TYPE_CHECKING:
    from acdc_cli.data.ffcv import FFCVLoader
    from acdc_cli.data.torch import Images

FFCV_HINT = (
    "pip install 'acdc-cli[ffcv]' compiles it; on Debian it needs: "
    "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++"
)
_CROPS = {"random_resized_crop": augment.RANDOM_RESIZED, "pad_crop": augment.PADDED, "none": augment.WHOLE}


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before an image is read. A split that is not there has no images."""

    name: str
    path: Path
    classes: int
    class_names: tuple[str, ...] | None
    train: int
    """Images for training."""
    val: int
    """Images for validation."""
    fingerprint: dict[str, str]
    """Of each split: changes when its images do."""


@dataclass(frozen=True)
class _Split:
    samples: int
    class_names: tuple[str, ...]
    fingerprint: str


def open_set(block: DataBlock) -> DataSet:
    """Raises DataError when neither split is there, or one is damaged."""
    root = _root(block)
    splits = {split: _describe(root, split) for split in datasets.SPLITS if _lies_at(root, split) is not None}
    if not splits:
        raise DataError(_missing(block, " and ".join(datasets.SPLITS)))
    class_names = next(iter(splits.values())).class_names
    for found in splits.values():
        if found.class_names != class_names:
            differing = sorted(set(found.class_names) ^ set(class_names))
            only = f"; only one of them has {', '.join(differing[:5])}" if differing else " or order them differently"
            raise DataError(f"{root}: train and val hold different classes{only}. Make both from the same source.")
    return DataSet(
        name=block.name,
        path=root,
        classes=len(class_names),
        class_names=class_names,
        train=splits["train"].samples if "train" in splits else 0,
        val=splits["val"].samples if "val" in splits else 0,
        fingerprint={split: found.fingerprint for split, found in splits.items()},
    )


def expected_set(block: DataBlock) -> tuple[int, int, bool]:
    """(classes, training images that are used, whether they were found): of the set that lies there, or of the one
    that is known by this name where it lies elsewhere.

    Raises DataError for a set that is not there and whose size its name does not tell, and for labels that cannot be
    corrupted.
    """
    known = datasets.SETS.get(block.name)
    if _lies_at(_root(block), "train") is None and known and known.classes and known.train_images:
        classes, images, found = known.classes, known.train_images, False
    else:
        data = open_set(block)
        classes, images, found = data.classes, data.train, True
    used = min(images, block.images or images)
    if block.corrupt_labels:
        corrupted_labels.check(block.corrupt_labels.count, used, classes)
    return classes, used, found


def train_loader(block: DataBlock, seed: int, epochs: int, device: torch.device, shard: Shard = UNDIVIDED) -> Loader:
    """Shuffled and augmented; crops have the resolution that the recipe gives the epoch, and samples the labels that
    the recipe's corruption gives them."""
    wrong = corrupted(block)
    plan = Plan(
        batch_size=block.batch_size,
        size=partial(resolution_of, block.resolution, epochs=epochs),
        crop=Crop(_CROPS[block.augment], *block.crop_scale, *block.crop_ratio, padding=block.padding),
        flip=block.flip,
        seed=seed,
        shuffle=True,
        images=block.images,
        relabelled=(wrong.indices, wrong.given) if wrong else None,
        shard=shard,
    )
    loader = _loader(block, "train", plan, device, epochs)
    try:
        steps_per_epoch(block, loader.samples)
    except DataError:
        loader.close()
        raise
    return loader


def steps_per_epoch(block: DataBlock, images: int) -> int:
    """Whole batches in that many training images. Raises DataError where there is none."""
    if images < block.batch_size:
        raise DataError(
            f"data.batch_size {block.batch_size} is more than the {images} images of {block.name}: "
            "an epoch would have no step. Lower it."
        )
    return images // block.batch_size


def val_loader(
    block: DataBlock, device: torch.device, split: str = "val", shard: Shard = UNDIVIDED, count: int | None = None
) -> Loader:
    """Every image of the split that is used, once, in its order, without augmentation, and with its true label.

    count: so many of them only, evenly spread.
    """
    plan = replace(_val_plan(block, shard), images=block.images if split == "train" else block.val_images)
    if count is not None and plan.images is None:
        plan = replace(plan, images=count)
    elif count is not None:
        _place(block, split)
        stored = _describe(_root(block), split).samples
        used = plan.samples(stored)
        plan = replace(plan, only=spread(used, stored)[spread(min(count, used), used)])
    return _loader(block, split, plan, device)


def corrupted(block: DataBlock) -> CorruptedLabels | None:
    """The training samples whose labels the recipe makes wrong; None where it leaves them alone.

    Raises DataError where it cannot be done.
    """
    if (asked := block.corrupt_labels) is None:
        return None
    place = _place(block, "train")
    labels: NDArray[np.int64]
    if place.is_dir():
        source = datasets.folder_source(block.name, "train", place.parent)
        labels, classes = source.labels, len(source.class_names)
    else:
        labels, classes = BetonFile(place).labels, len(manifests.read(place).class_names)
    used = spread(min(len(labels), block.images or len(labels)), len(labels))
    return corrupted_labels.corrupt(labels, used, classes, asked.count, asked.seed, asked.classes == "all")


def corrupted_loader(
    block: DataBlock, wrong: CorruptedLabels, device: torch.device, shard: Shard = UNDIVIDED
) -> Loader:
    """The corrupted training samples as validation would show them, each once; labels are their numbers in `wrong`."""
    numbers = np.arange(len(wrong.indices))
    plan = replace(_val_plan(block, shard), only=wrong.indices, relabelled=(wrong.indices, numbers))
    return _loader(block, "train", plan, device)


def _val_plan(block: DataBlock, shard: Shard) -> Plan:
    return Plan(
        batch_size=block.val_batch_size or block.batch_size // shard.size,
        size=lambda epoch: block.val_crop,
        crop=Crop(augment.CENTRED, share=block.val_crop / block.val_resize),
        shard=shard,
    )


def _loader(block: DataBlock, split: str, plan: Plan, device: torch.device, epochs: int = 1) -> Loader:
    place = _place(block, split)
    file = None if place.is_dir() else BetonFile(place)
    stays = file is not None and resident.can_stay(file, plan, map(plan.size, range(epochs)))
    cores = len(os.sched_getaffinity(0)) // plan.shard.local_size
    workers = max(1, cores) if block.workers is None else block.workers
    # FFCV shows the same pixels of raw images, but decodes JPEGs in its own way: those stay only where it is not taken
    if block.loader == "ffcv" or (block.loader == "auto" and not (stays and file is not None and file.is_raw)):
        ffcv = _ffcv(block, place)
        if ffcv is not None:
            return ffcv(file, plan, max(1, workers), device)
    if file is not None and stays:
        return ResidentLoader(file, plan, device)
    # here, because it imports torchvision, which the other loaders and `acdc plan` do without
    from acdc_cli.data.torch import BetonImages, FolderImages, MemoryImages, TorchLoader, is_small

    images: Images
    if file is None:
        images = FolderImages(datasets.folder_source(block.name, split, place.parent))
    else:
        images = BetonImages(file)
        if is_small(file):
            workers = 0
            # a few are read each time sooner than all are decoded and kept
            images = MemoryImages(images) if plan.only is None else images
    return TorchLoader(images, plan, workers, device)


def _ffcv(block: DataBlock, place: Path) -> Callable[..., FFCVLoader] | None:
    """FFCV's loader; None, and a word why, where `auto` has to do without. Raises DataError where `ffcv` cannot."""
    if place.is_dir():
        folder = place.parent
        name = "imagenet" if block.name == "imagenet" else "folder"
        reason = (
            f"FFCV reads .beton files, and {folder} holds images: `acdc data write {name} --source {folder}` makes them"
        )
    else:
        try:
            # here, because it loads FFCV's kernels
            from acdc_cli.data.ffcv import FFCVLoader

            return FFCVLoader
        except (ImportError, OSError) as cause:
            reason = f"FFCV cannot be used ({cause}): {FFCV_HINT}"
    if block.loader == "ffcv":
        raise DataError(f"{reason}. Or let torchvision do it: --set data.loader=torch")
    _say_once(f"loading with torchvision. {reason}")
    return None


@functools.cache
def _say_once(text: str) -> None:
    console.say(text)


def _root(block: DataBlock) -> Path:
    return Path(block.path or f"data/{block.name}")


def _place(block: DataBlock, split: str) -> Path:
    place = _lies_at(_root(block), split)
    if place is None:
        raise DataError(_missing(block, split))
    return place


def _lies_at(root: Path, split: str) -> Path | None:
    """The split's .beton file, else its folder of class folders."""
    beton, folder = root / f"{split}.beton", root / split
    # os.path's, which take what may not be looked at for missing
    if os.path.isfile(beton):
        return beton
    return folder if os.path.isdir(folder) else None


def _describe(root: Path, split: str) -> _Split:
    place = _lies_at(root, split)
    assert place is not None
    if place.is_dir():
        source = datasets.folder_source(root.name, split, root)
        return _Split(len(source.images), source.class_names, source.fingerprint)
    manifest = manifests.check_quick(place)
    return _Split(manifest.samples, manifest.class_names, manifest.content_hash)


def _missing(block: DataBlock, what: str) -> str:
    root = _root(block).absolute()
    if os.path.isfile(root):
        return f"the data set {block.name} has no {what}: {root} is a file; --set data.path=FOLDER names a folder"
    if os.path.isdir(root) and not _may_read(root):
        return f"the data set {block.name}: you may not read {root}; ask its owner for it, or --set data.path=FOLDER"
    near = "" if block.path or block.name in datasets.SETS else did_you_mean(block.name, datasets.SETS)
    return (
        f"the data set {block.name} has no {what}: in {root} lies neither a .beton file of that name nor a folder of "
        f"images{near or '.'} Write it: {_write_command(block)}. Or say where it lies: --set data.path=FOLDER"
    )


def _may_read(folder: Path) -> bool:
    try:
        os.scandir(folder).close()
    except PermissionError:
        return False
    return True


def _write_command(block: DataBlock) -> str:
    if block.name == "demo" and block.path is None:
        return "`acdc data write demo`"
    name = block.name if block.name in datasets.SETS else "folder"
    source = "" if name == "demo" else f" --source /path/to/{block.name}"
    return f"`acdc data write {name}{source} --out {_root(block)}`"
