"""What all blocks of a recipe share: their base class, what their keys affect, and the types of values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import floor
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


def at_most(limit: int) -> AfterValidator:
    """An upper bound that only a typo exceeds; messages about other errors do not mention it."""

    def check(number: int) -> int:
        if number > limit:
            raise ValueError(f"expected at most {limit:,}, found {number:,}"[:80])
        return number

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Factor by which a running mean decays at each step."""
Distribution = Literal["global", "uniform", "erk"]
Epochs = (
    NonNegativeInt
    | Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$", json_schema_extra={"expected": "a share of the run such as 10%"})]
)
"""A length in whole epochs (`10`) or as a share of the run (`10%`)."""


def part_of(share: float | Fraction, whole: int) -> int:
    """share · whole to the nearest integer, halves up, in decimals: 0.35 of 90 is 31.5, never 31.4999…, so 32."""
    return floor(Fraction(str(share)) * whole + Fraction(1, 2))


def epochs_of(length: int | str, epochs: int) -> int:
    """Whole epochs of a length given as `10` or `10%`, halves rounded up."""
    if isinstance(length, int):
        return length
    return part_of(Fraction(length.removesuffix("%")) / 100, epochs)


EpochCount = Annotated[PositiveInt, at_most(1_000_000)]
Pixels = Annotated[PositiveInt, at_most(10_000)]
THREADS = at_most(1_000)


class Bears(Enum):
    """What a recipe key affects: `Annotated[..., Bears.NOTHING]` marks a field, and with it all fields of its block.
    A field without a mark affects the numbers. `recipe/bearing.py` says which classes may be ignored where."""

    NUMBERS = "numbers"
    NOTHING = "nothing"
    """Speed, reports, warnings and the location of files."""
    EXECUTION = "execution"
    """How the same computation is carried out and how often it is validated: equal up to rounding."""
    REPETITION = "repetition"
    """Which repetition of an experiment this is."""


@dataclass(frozen=True)
class RunSize:
    """The size of a run, which a block's keys must fit."""

    epochs: int
    steps_per_epoch: int | None = None
    """None if only the data set can tell."""
    batch_size: int | None = None


class Misfit(NamedTuple):
    key: str
    """A key of the block, such as `end` or `resolution.end`."""
    text: str
    stops: bool = True
    """Whether it stops the run; otherwise it is a warning."""


class Block(BaseModel):
    """Frozen, strict (no `"3"` for 3, no `true` for 1), and without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def check(self, run: RunSize) -> Iterator[Misfit]:
        """Everything of this block that does not fit a run of this size."""
        yield from ()

    def errors(self, run: RunSize) -> list[tuple[str, str]]:
        """(key, message) for everything that would stop the run."""
        return [(key, text) for key, text, stops in self.check(run) if stops]
