"""TrivialAugment: one operation at a random strength (arXiv 2103.10158), as torchvision has it."""

from __future__ import annotations

import numpy as np
from PIL import Image


def check(rest: str) -> None:
    if rest:
        raise ValueError(f"trivial takes nothing after its name, found -{rest}"[:80])


class Policy:
    def __init__(self, rest: str, fill: tuple[int, int, int]) -> None:
        """fill: unused; what an operation uncovers is black, as in torchvision's recipes."""
        # imported here because it takes seconds
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import TrivialAugmentWide

        self._wide = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)

    def __call__(self, image: Image.Image, draws: np.random.Generator) -> Image.Image:
        # its parts, because its `forward` draws from torch's global generator
        space = list(self._wide._AUGMENTATION_SPACE.items())
        operation, (strengths, is_signed) = space[draws.integers(len(space))]
        bins = strengths(self._wide.num_magnitude_bins, image.height, image.width)
        strength = 0.0 if bins is None else float(bins[draws.integers(len(bins))])
        if is_signed and draws.random() < 0.5:
            strength = -strength
        changed: Image.Image = self._wide._apply_image_or_video_transform(
            image, operation, strength, self._wide.interpolation, self._wide._fill
        )
        return changed
