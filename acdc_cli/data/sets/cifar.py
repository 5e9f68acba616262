"""CIFAR-10 and CIFAR-100, from the archives of their authors."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from acdc_cli.data.known_sets import KnownSet, array_source
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError


def read_archive(name: str, split: str, root: Path | None, download: bool) -> Source:
    """The images of the archive. Raises DataError if it is not in `root` and may not be downloaded."""
    if root is None:
        raise DataError(f"{name}: give the folder of the archive, or for --download, with --source FOLDER")
    if (root / split).is_dir():
        raise DataError(
            f"{root} holds images in folders, not the archive of {name}. Write them with "
            f"`acdc data write folder --source {root} --out data/{name}`; recipes then read them as {name}."
        )
    # here, so that `acdc data list` does not load torch
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    archive = root / dataset.filename
    # torchvision unpacks an archive only with download=True, which downloads nothing that is there
    download = download or check_integrity(str(archive), dataset.tgz_md5)
    try:
        with warnings.catch_warnings():
            # the archives hold dtypes pickled by NumPy 1
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            images = dataset(root, train=split == "train", download=download)
    except (OSError, RuntimeError) as cause:
        raise DataError(
            f"{name}: neither {archive} nor its unpacked folder is complete ({cause}). "
            f"Put the archive there, or download it: acdc data write {name} --source {root} --download"
        ) from cause
    return array_source(name, split, images.data, np.asarray(images.targets, np.int64), tuple(images.classes))


SETS = {
    f"cifar{classes}": KnownSet(
        description=f"CIFAR-{classes}: --source FOLDER with cifar-{classes}-python.tar.gz, or --download",
        classes=classes,
        train_images=50_000,
        image_size="32x32",
        read=read_archive,
    )
    for classes in (10, 100)
}
