"""A few of the demo set's digits."""

from __future__ import annotations

from pathlib import Path

TINY = "resolution: 5, val_resize: 5, val_crop: 5"
"""Keys of `data` for digits of 5 pixels a side, whose pixels a run hardly takes time for."""


def image_folders(home: Path, shrink: int = 1) -> Path:
    """200 training and 100 validation digits of 28 / shrink pixels (rounded up), as images in folders below `home`."""
    from PIL import Image

    from acdc_cli.data.sets.demo_digits import digits

    pixels, labels = digits("train")
    for split, chosen in (("train", range(0, 4000, 20)), ("val", range(10, 4000, 40))):
        for index in chosen:
            folder = home / "images" / split / str(labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).reduce(shrink).save(folder / f"{index:04d}.png")
    return home / "images"
