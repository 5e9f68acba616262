"""A few of the demo set's digits, written by the real command."""

from __future__ import annotations

from pathlib import Path


def image_folders(home: Path) -> Path:
    """200 training and 100 validation digits, as images in class folders below `home`."""
    from PIL import Image

    from acdc_cli.data.beton import BetonFile
    from acdc_cli.data.inventory import WriteOptions, write_set

    write_set("demo", WriteOptions(out=home / "demo", workers=1))
    for split, count in (("train", 200), ("val", 100)):
        file = BetonFile(home / "demo" / f"{split}.beton")
        step = file.samples // count
        for index in range(0, file.samples, step):
            folder = home / "images" / split / str(file.labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(file.decode(index)).save(folder / f"{index:04d}.png")
    return home / "images"
