"""ImageNet, and any other images that lie in one folder a class."""

from __future__ import annotations

from pathlib import Path

from acdc_cli.data.image_folder import folder_source
from acdc_cli.data.known_sets import SPLITS, KnownSet
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError

# FFCV's own recipe, which P2 follows, writes 500 px, half of it raw. At 400 px JPEGs decode about 1.4 times as fast,
# are enough for crops of 160 to 224 px, and ImageNet fits into one machine's memory.
_TRAIN = Settings(quality=90, max_side=400)
ORIGINAL = Settings(original=True)


def read_folders(name: str, root: Path | None, download: bool) -> tuple[Source, Source]:
    """Raises DataError when `root` does not hold train/ and val/ with the same classes, as many as the set has."""
    if root is None:
        raise DataError(
            f"{name}: --source FOLDER says where the images lie: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg"
        )
    if download:
        raise DataError(f"{name} cannot be downloaded; give the folder that holds it with --source")
    train, val = (folder_source(name, split, root) for split in SPLITS)
    if train.class_names != val.class_names:
        difference = sorted(set(train.class_names) ^ set(val.class_names))
        raise DataError(
            f"{root}: train/ and val/ hold different classes; only one of them has {', '.join(difference[:5])}"
            f"{' …' if len(difference) > 5 else ''}"
        )
    classes = SETS[name].classes
    if classes not in (None, len(train.class_names)):
        raise DataError(
            f"{root}: {name} has {classes} classes, but train/ holds {len(train.class_names)} folders. "
            "If that is meant, write it as `folder`."
        )
    return train, val


SETS = {
    "imagenet": KnownSet(
        description="ImageNet-1k: --source FOLDER with train/ and val/, one folder a class (n01440764, …)",
        classes=1000,
        train_images=1_281_167,
        image_size="varies",
        read=read_folders,
        train=_TRAIN,
        val=ORIGINAL,
    ),
    "folder": KnownSet(
        description="any images: --source FOLDER with train/ and val/, one folder a class",
        classes=None,
        train_images=None,
        image_size="varies",
        read=read_folders,
        train=_TRAIN,
        val=ORIGINAL,
    ),
}
