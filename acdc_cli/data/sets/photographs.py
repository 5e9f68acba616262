"""ImageNet, and any other images in one folder per class."""

from __future__ import annotations

from pathlib import Path

from acdc_cli.data.image_folder import folder_source
from acdc_cli.data.known_sets import KnownSet, known_set
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError

# FFCV's own recipe, which P2 follows, writes 500 px, half of it raw. At 400 px JPEGs decode about 1.4 times as fast,
# are enough for crops of 160 to 224 px, and ImageNet fits into one machine's memory.
_TRAIN = Settings(quality=90, max_side=400)
ORIGINAL = Settings(original=True)


def read_folder(name: str, split: str, root: Path | None, download: bool) -> Source:
    """The images of the split. Raises DataError if `root` does not hold it with the set's number of classes."""
    if root is None:
        raise DataError(
            f"{name}: name the images' folder with --source FOLDER: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg"
        )
    if download:
        raise DataError(f"{name} cannot be downloaded; give the folder that holds it with --source")
    source, classes = folder_source(name, split, root), known_set(name).classes
    if classes not in (None, len(source.class_names)):
        raise DataError(
            f"{root}: {name} has {classes} classes, but {split}/ holds {len(source.class_names)} folders. "
            "If that is meant, write it as `folder`."
        )
    return source


SETS = {
    "imagenet": KnownSet(
        description="ImageNet-1k: --source FOLDER with train/ and val/, one folder per class (n01440764, …)",
        classes=1000,
        train_images=1_281_167,
        image_size="varies",
        read=read_folder,
        train=_TRAIN,
        val=ORIGINAL,
    ),
    "folder": KnownSet(
        description="any images: --source FOLDER with train/ and val/, one folder per class",
        classes=None,
        train_images=None,
        image_size="varies",
        read=read_folder,
        train=_TRAIN,
        val=ORIGINAL,
    ),
}
