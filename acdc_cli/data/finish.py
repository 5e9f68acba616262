"""What follows the flip of a training crop: a policy's operations and random erasing, drawn from (seed, epoch, index).

The libraries draw from generators that a process shares, so that a draw would depend on the ones before it. Here every
draw has a generator of its own, and only the operations are the libraries'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.discovery import POLICIES

_POLICY, _ERASING, MIXING = 1, 2, 3
_ATTEMPTS = 10
_AREA = 0.02, 0.33
_RATIO = 0.3, 3.3
"""Height / width of an erased rectangle; both ranges as in torchvision's RandomErasing."""


class Policy(Protocol):
    """A file of `policies`, whose `check` refuses what may not follow its name in `data.augmentation.policy`."""

    def __call__(self, image: Image.Image, draws: np.random.Generator) -> Image.Image:
        """image: RGB."""


@dataclass(frozen=True)
class Finish:
    policy: Policy | None
    erasing: float
    """Probability."""
    fill: tuple[int, int, int]
    """Colour of what is erased."""
    seed: int

    def __call__(self, pixels: NDArray[np.uint8], index: int, time: int) -> None:
        """Changes the crop of sample `index`: (height, width, 3).  time: from `augment.times_of`."""
        if self.policy is not None:
            pixels[:] = np.asarray(self.policy(Image.fromarray(pixels), draws(self.seed, time, index, _POLICY)))
        if self.erasing:
            top, left, height, width = erased_box(self.erasing, draws(self.seed, time, index, _ERASING), *pixels.shape)
            pixels[top : top + height, left : left + width] = self.fill


def finish_of(block: ImagesBlock, seed: int) -> Finish | None:
    """None if the recipe asks for neither a policy nor erasing."""
    wanted = block.augmentation
    fill = tuple(min(255, round(255 * channel)) for channel in block.mean)
    policy = None
    if wanted.policy is not None:
        name, _, rest = wanted.policy.partition("-")
        policy = POLICIES.module(name).Policy(rest, fill)
    if policy is None and not wanted.erasing:
        return None
    return Finish(policy, wanted.erasing, fill, seed)  # type: ignore[arg-type]


def draws(seed: int, time: int, number: int, purpose: int) -> np.random.Generator:
    """A generator of its own for each (seed, time, number, purpose); `order` has purpose 0."""
    key, counter = np.array([seed, time], np.uint64), np.array([0, 0, number, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def erased_box(
    probability: float, draws: np.random.Generator, rows: int, columns: int, *_: Any
) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision draws it; of no height if nothing is erased."""
    if draws.random() >= probability:
        return 0, 0, 0, 0
    for _attempt in range(_ATTEMPTS):
        area = rows * columns * draws.uniform(*_AREA)
        ratio = math.exp(draws.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < rows and width < columns:
            return int(draws.integers(rows - height + 1)), int(draws.integers(columns - width + 1)), height, width
    return 0, 0, 0, 0
