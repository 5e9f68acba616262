"""Loaders of corrupted images: ImageNet-C's own folders (arXiv 1903.12261), or a loader's images, corrupted."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acdc_cli.data.augment import CENTRED, Crop
from acdc_cli.data.batches import Batch, Loader, Plan
from acdc_cli.data.image_corruption import Corrupter, Corruption, Make
from acdc_cli.data.image_folder import folder_source
from acdc_cli.data.image_set import ImageSet
from acdc_cli.data.order import spread
from acdc_cli.data.torch import FolderImages, TorchLoader
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError


class Corrupted:
    """A loader's images, corrupted as they are drawn."""

    def __init__(self, loader: Loader, corrupter: Corrupter, corruption: Corruption, severity: int) -> None:
        self._loader = loader
        self._begin = partial(corrupter.begin, corruption=corruption, severity=severity)

    @property
    def steps(self) -> int:
        return self._loader.steps

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        with self._loader.epoch(epoch, start_step) as batches:
            yield self._each(batches)

    def _each(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """One batch ahead, so that the corrupter's processes work while the models do."""
        begun: deque[tuple[Make, Tensor, Tensor]] = deque()
        for batch in batches:
            # copies, because a loader may use its storage again
            images = batch.inputs.permute(0, 2, 3, 1).cpu().numpy().copy()
            make = self._begin(images, batch.indices.tolist())
            begun.append((make, batch.targets.clone(), batch.indices.clone()))
            if len(begun) > 1:
                yield _finished(*begun.popleft())
        while begun:
            yield _finished(*begun.popleft())


def _finished(make: Make, labels: Tensor, indices: Tensor) -> Batch:
    return Batch(torch.from_numpy(make()).to(labels.device).permute(0, 3, 1, 2), labels, indices)


class MadeAnew:
    """Corrupts the images of validation loaders."""

    def __init__(self, corrupter: Corrupter) -> None:
        self._corrupter = corrupter

    @contextmanager
    def under(self, loader: Loader, corruption: Corruption, severity: int) -> Iterator[Corrupted]:
        yield Corrupted(loader, self._corrupter, corruption, severity)


class Folders:
    """ImageNet-C's own images, which were cropped before they were corrupted. They are resized to the recipe's crop if
    needed, and come in the order of the validation set's classes."""

    def __init__(self, root: Path, clean: ImageSet, device: torch.device) -> None:
        """clean: the set whose validation images were corrupted."""
        self._root, self._clean, self._device = root, clean, device

    def require(self, corruptions: Sequence[Corruption], severities: Sequence[int]) -> None:
        """Raises DataError if folders are missing."""
        wanted = [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]
        if missing := [name for name in wanted if not (self._root / name).is_dir()]:
            raise DataError(
                f"{self._root} has no {', '.join(missing)}; unpack ImageNet-C there, or name what is there: "
                "--set corruptions=[fog,snow], --set severities=[1]"
            )

    @contextmanager
    def under(self, _: Loader, corruption: Corruption, severity: int) -> Iterator[Loader]:
        """Raises DataError if the folders are not of the images that the models are evaluated on."""
        source = pictures(self._root, corruption, severity, self._clean.class_names)
        block = self._clean.block
        whole = self._holds_all(self._root / corruption / str(severity), source)
        plan = Plan(
            batch_size=block.val_batch_size or block.batch_size,
            size=lambda epoch: block.val_crop,
            crop=Crop(CENTRED),
            images=block.val_images if whole else None,
        )
        workers = len(os.sched_getaffinity(0)) if block.workers is None else block.workers
        with closing(TorchLoader(FolderImages(source), plan, workers, self._device)) as loader:
            yield loader

    def _holds_all(self, folder: Path, source: Source) -> bool:
        """Whether the folder holds all validation images, from which data.val_images chooses; else it holds those that
        are chosen. Labels are compared in their order, because images are chosen by their position."""
        labels, count = self._clean.split("val").labels, self._clean.block.val_images
        chosen = labels[spread(min(count or len(labels), len(labels)), len(labels))]
        # the order of all images does not matter if all are used
        if np.array_equal(source.labels, labels) or (len(chosen) == len(labels) == len(source.labels)):
            return True
        if np.array_equal(source.labels, np.sort(chosen)):
            return False
        if len(source.labels) not in (len(labels), len(chosen)):
            part = "" if len(chosen) == len(labels) else f", or the {len(chosen)} of data.val_images"
            raise DataError(
                f"{folder} holds {len(source.labels)} images of the validation set's classes, which has {len(labels)}"
                f"{part}; unpack it again, or name the set that it was made from with --data"
            )
        raise DataError(
            f"{folder} holds as many images, but in another order of classes than the validation set, so "
            "data.val_images would choose others; evaluate all images (--set data.val_images=null)"
        )


def pictures(root: Path, corruption: Corruption, severity: int, class_names: Sequence[str]) -> Source:
    """The images of `root/<corruption>/<severity>/<class>/`, in this order of the classes; other classes are left out.

    Raises DataError if a class's folder is missing or empty.
    """
    source = folder_source("imagenet-c", str(severity), root / corruption)
    if missing := [name for name in class_names if name not in source.class_names]:
        raise DataError(
            f"{root / corruption / str(severity)} has no folder for {len(missing)} of the {len(class_names)} classes: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. Its folders must have the validation set's "
            "names; unpack it again"
        )
    # -1: a class that is left out
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in source.class_names], np.int64)[source.labels]
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    paths = [source.images[each] for each in order]
    return replace(source, images=paths, labels=labels[order], class_names=tuple(class_names))
