"""A row of training images for each augmentation, and one with all of them.

`python -m scripts.augmentations` draws docs/augmentations.png, of the demo digits. Arguments are a recipe, a file to
write and `--set` values, such as: cifar/resnet20_dense sheet.png data.path=/elsewhere
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from acdc_cli.data.data_set import open_set
from acdc_cli.data.image_loaders import train_loader
from acdc_cli.recipe.load import load
from acdc_cli.schedule.sizes import sizes

CPU = torch.device("cpu")
SHOWN = 12
ROWS = (
    {},
    {"policy": "trivial"},
    {"policy": "rand-m7-mstd0.5-inc1"},
    {"erasing": "0.5"},
    {"mixup": "0.8"},
    {"cutmix": "1.0"},
    {"repeats": "3"},
    {"policy": "trivial", "erasing": "0.1", "mixup": "0.2", "cutmix": "1.0", "repeats": "4"},
)


def main(recipe: str = "demo", out: str = "docs/augmentations.png", *overrides: str) -> int:
    rows = [_row(recipe, row, overrides) for row in ROWS]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).permute(1, 2, 0)
    picture = Image.fromarray(sheet.round().to(torch.uint8).numpy())
    scale = max(1, 64 // rows[0].shape[2])
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(Path(out))
    return 0


def _row(recipe: str, row: dict[str, str], overrides: tuple[str, ...]) -> Tensor:
    settings = [f"data.augmentation.{key}={value}" for key, value in row.items()]
    wanted = load(recipe, [*overrides, f"data.batch_size={SHOWN}", "data.workers=0", *settings])
    loader = train_loader(open_set(wanted.data), wanted.seed, sizes(wanted), CPU)
    with closing(loader), loader.epoch(0) as batches:
        return next(batches).inputs.float()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
