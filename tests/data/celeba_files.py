"""Files in the exact layout of CelebA, with small images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from PIL import Image

NAMES = ("5_o_Clock_Shadow", "Arched_Eyebrows", *(f"Attribute_{number}" for number in range(2, 39)), "Young")
PARTS = (0, 0, 0, 0, 1, 1, 2, 2)


def attributes(image: int) -> list[bool]:
    """Image 0 has the even attributes, image 1 the odd ones, and so on."""
    return [place % 2 == image % 2 for place in range(len(NAMES))]


def celeba(root: Path, parts: Sequence[int] = PARTS, zipped: bool = False) -> Path:
    """One image for each of `parts`, which are its numbers in list_eval_partition.txt."""
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    files = [f"{number:06d}.jpg" for number in range(1, len(parts) + 1)]
    rows = [
        file + "".join(f" {1 if there else -1:>2}" for there in attributes(image)) for image, file in enumerate(files)
    ]
    for image, file in enumerate(files):
        Image.new("RGB", (18, 22), (20 * image, 0, 0)).save(folder / file)
    (root / "list_attr_celeba.txt").write_text("\n".join([str(len(files)), " ".join(NAMES) + " ", *rows, ""]))
    partition = (f"{file} {part}\n" for file, part in zip(files, parts, strict=True))
    (root / "list_eval_partition.txt").write_text("".join(partition))
    if zipped:
        with ZipFile(root / "img_align_celeba.zip", "w") as archive:
            archive.mkdir("img_align_celeba")
            for file in files:
                archive.write(folder / file, f"img_align_celeba/{file}")
                (folder / file).unlink()
        folder.rmdir()
    return root
