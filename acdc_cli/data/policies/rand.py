"""RandAugment: some operations of a given strength (arXiv 1909.13719), as timm has it and in timm's notation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from PIL import Image

_PART = re.compile(r"m\d{1,2}|n[1-9]|p(0?\.\d+|1)|mstd\d{1,3}(\.\d+)?|mmax\d{1,2}|inc[01]")
_AROUND_0 = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
"""Arguments at strength 10 of the operations that go either way: degrees, slopes, shares of the side."""
_AROUND_1 = dict.fromkeys(("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"), 0.9)
"""Enhancement factors: their distance from 1."""


def check(rest: str) -> None:
    for part in rest.split("-") if rest else ():
        if not _PART.fullmatch(part):
            raise ValueError(
                f"rand takes parts such as m7 (strength), n2 (operations), p0.5 (probability of each), mstd0.5 (spread "
                f"of the strength), mmax10 and inc1 (stronger with m), joined by dashes, found {part}"[:240]
            )


class Policy:
    def __init__(self, rest: str, fill: tuple[int, int, int]) -> None:
        """fill: the colour of what an operation uncovers."""
        # imported here because it takes seconds
        from timm.data.auto_augment import rand_augment_transform

        self._rand = rand_augment_transform(f"rand-{rest}" if rest else "rand", {"img_mean": fill})

    def __call__(self, image: Image.Image, draws: np.random.Generator) -> Image.Image:
        # its parts, because its `__call__` draws from Python's and NumPy's global generators
        for number in draws.integers(len(self._rand.ops), size=self._rand.num_layers):
            operation = self._rand.ops[number]
            if draws.random() < operation.prob:
                filters = operation.kwargs["resample"]
                options = operation.kwargs | {"resample": filters[draws.integers(len(filters))]}
                image = operation.aug_fn(image, *_arguments(operation, _strength(operation, draws), draws), **options)
        return image


def _strength(operation: Any, draws: np.random.Generator) -> float:
    drawn, spread = operation.magnitude, operation.magnitude_std
    if spread == float("inf"):
        drawn = draws.uniform(0, drawn)
    elif spread:
        drawn = draws.normal(drawn, spread)
    return float(np.clip(drawn, 0, operation.magnitude_max or 10))


def _arguments(operation: Any, strength: float, draws: np.random.Generator) -> tuple[float, ...]:
    """As timm's `level_fn` gives them, which draws the signs itself."""
    share = strength / 10 * (1 if draws.random() < 0.5 else -1)
    if operation.name in _AROUND_0:
        return (share * _AROUND_0[operation.name],)
    if operation.name in _AROUND_1:
        return (max(0.1, 1 + share * _AROUND_1[operation.name]),)
    return tuple(operation.level_fn(strength, operation.hparams)) if operation.level_fn else ()
