"""Measured quantities in words: names, units and directions, for tables and figures that serve every task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

_DIGITS = {"%": 2, "nats": 4, "bits": 4, "": 3}


class Words(NamedTuple):
    """How texts describe better and worse values."""

    best: str
    behind: str
    """The side of a value on which worse ones lie."""
    improves: str
    improved: str


_WORDS = {"more": Words("highest", "below", "rises", "rose"), "less": Words("lowest", "above", "falls", "fell")}


@dataclass(frozen=True)
class Quantity:
    key: str
    """Key in an epoch's record and in what `acdc eval --json` prints."""
    name: str
    short: str
    """Name of at most six characters, for narrow columns."""
    unit: Literal["%", "nats", "bits", ""]
    """Shares are stored as fractions and shown in percent; perplexities and correlations have no unit."""
    better: Literal["more", "less"] = "more"
    """Which values are better; of a headline, by which models are ranked."""
    counts_answers: bool = True
    """Whether a share is one of answers; F1 is none."""

    @property
    def scale(self) -> int:
        """Factor from the stored value to the shown one."""
        return 100 if self.unit == "%" else 1

    @property
    def digits(self) -> int:
        """Decimals in tables."""
        return _DIGITS[self.unit]

    @property
    def head(self) -> str:
        """Head of a column: shares with their unit; other values have it in the table's caption or their name."""
        return f"{self.name} %" if self.unit == "%" else self.name

    @property
    def axis(self) -> str:
        """Label of an axis, or head of a column without a caption."""
        return self.name if not self.unit or self.unit in self.name.split() else f"{self.name} ({self.unit})"

    def shown(self, value: float) -> str:
        """A stored value as tables show it, without its unit."""
        return f"{self.scale * value:.{self.digits}f}"

    def spelt(self, value: float) -> str:
        """A stored value with its unit."""
        return f"{value:.2%}" if self.unit == "%" else f"{self.shown(value)} {self.unit}".rstrip()

    def rank(self, value: float | None) -> float:
        """The larger, the better; a missing value is worse than any other."""
        if value is None:
            return -math.inf
        return value if self.better == "more" else -value

    def gain(self, new: float, old: float) -> float:
        """By how much `new` is better than `old`; negative if it is worse."""
        return self.rank(new) - self.rank(old)

    def best(self, values: Iterable[float]) -> float:
        return max(values, key=self.rank)

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of right answers."""
        return self.unit == "%" and self.better == "more" and self.counts_answers

    @property
    def common(self) -> Quantity:
        """`accuracy` for any share of right answers, so that tasks can share a column; otherwise itself."""
        return ACCURACY if self.is_accuracy else self

    @property
    def title(self) -> str:
        """Its name at the beginning of a sentence."""
        return f"{self.name[0].upper()}{self.name[1:]}"

    @property
    def words(self) -> Words:
        return _WORDS[self.better]

    @property
    def adjective(self) -> str:
        """What a model with a good value is."""
        return "accurate" if self.is_accuracy else "good"

    @property
    def comparative(self) -> str:
        return "more accurate" if self.is_accuracy else "better"

    @property
    def superlative(self) -> str:
        return "most accurate" if self.is_accuracy else "best"


ACCURACY = Quantity("accuracy", "accuracy", "acc.", "%")


@dataclass(frozen=True)
class Measures:
    """What a task measures on images."""

    headline: Quantity
    """By which models are ranked. An accuracy is the share of right answers."""
    confidence: Quantity
    """The third panel of P2's Figures C.1 and C.2: how undecided the predictions are; the less, the more decided."""
    more: tuple[Quantity, ...] = ()

    @property
    def all(self) -> tuple[Quantity, ...]:
        return self.headline, *self.more, self.confidence

    @property
    def right_answers(self) -> Quantity:
        """The share of right answers, which analyses of single answers compute themselves."""
        return self.headline if self.headline.is_accuracy else ACCURACY
