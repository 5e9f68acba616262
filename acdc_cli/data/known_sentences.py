"""The sets of sentences known by name. Each file of `sets/` names some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from acdc_cli.recipe.discovery import DATA_SETS


@dataclass(frozen=True)
class CachedForm:
    """How the library datasets names a set of which its cache may hold a copy."""

    repositories: Sequence[str]
    """The set is a configuration of its own name of one of these; the first is where it is today."""
    columns: Sequence[str] = ()
    """Names of the columns that hold sentences; empty: named as in the tables."""
    splits: Mapping[str, str] = field(default_factory=lambda: {"val": "validation"})
    """Its names of splits, by ours, where they differ."""


@dataclass(frozen=True)
class KnownSentences:
    """Tables of sentences, or pairs of them, whose columns are separated by tabs, without quoting."""

    description: str
    text: Sequence[str | int]
    """The columns with the sentence, or the two, by their names in the header, or by their numbers from 0 where there
    is none."""
    label: str | int
    classes: Mapping[str, str] | None = None
    """Names of the classes by what the label's column has; None: the labels of the training table."""
    scores: tuple[float, float] | None = None
    """The range of the label where it is a score."""
    train_examples: int | None = None
    """As published."""
    files: Mapping[str, str] = field(default_factory=lambda: {"train": "train.tsv", "val": "dev.tsv"})
    """The tables by split. The model is also validated on any but `train`, `val` and `test`."""
    has_broken_rows: bool = False
    """Whether the published tables have rows with too few columns, which are left out, and empty sentences."""
    cached: CachedForm | None = None
    """The set in the cache of the library datasets, from where `acdc data write` takes it."""

    @property
    def is_generic(self) -> bool:
        """Whether any table may be one."""
        return self.classes is None and self.scores is None


@cache
def known_sentences() -> dict[str, KnownSentences]:
    """The sets by name: each file of `sets/` names some in a dictionary `SENTENCES`."""
    return DATA_SETS.table("SENTENCES")
