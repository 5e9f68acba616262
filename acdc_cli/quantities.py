"""Measured quantities in words: names and units, for tables and figures that serve every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    key: str
    """Key in an epoch's record and in what `acdc eval --json` prints."""
    name: str
    short: str
    """Name of at most six characters, for narrow columns."""
    unit: Literal["%", "nats"]
    """Shares are stored as fractions and shown in percent."""

    @property
    def scale(self) -> int:
        """Factor from the stored value to the shown one."""
        return 100 if self.unit == "%" else 1

    @property
    def digits(self) -> int:
        """Decimals in tables."""
        return 2 if self.unit == "%" else 4

    @property
    def head(self) -> str:
        """Head of a column: shares with their unit; other values have it in the table's caption."""
        return f"{self.name} %" if self.unit == "%" else self.name

    @property
    def axis(self) -> str:
        """Label of an axis."""
        return f"{self.name} ({self.unit})"

    def shown(self, value: float) -> str:
        """A stored value as tables show it, without its unit."""
        return f"{self.scale * value:.{self.digits}f}"

    def spelt(self, value: float) -> str:
        """A stored value with its unit."""
        return f"{value:.2%}" if self.unit == "%" else f"{value:.4f} nats"


@dataclass(frozen=True)
class Measures:
    """What a task measures on images."""

    headline: Quantity
    """The share of right answers, by which models are ranked: the more, the better."""
    confidence: Quantity
    """The third panel of P2's Figures C.1 and C.2: how undecided the predictions are; the less, the more decided."""
    more: tuple[Quantity, ...] = ()

    @property
    def all(self) -> tuple[Quantity, ...]:
        return self.headline, *self.more, self.confidence
