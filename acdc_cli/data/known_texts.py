"""The running texts known by name. Each file of `sets/` names some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from acdc_cli.recipe.discovery import DATA_SETS


@dataclass(frozen=True)
class KnownText:
    """A text known by name."""

    description: str
    tokeniser: str = "words"
    """The default of --tokenizer."""
    at_least: int = 1
    """The default of --at-least."""
    files: Sequence[str] = ("{}.txt",)
    """What its files may be called, with {} for the split."""
    vocabulary: int | None = None
    """Tokens of its vocabulary; None: known once it is written."""
    train_tokens: int | None = None


@cache
def known_texts() -> dict[str, KnownText]:
    """The texts by name: each file of `sets/` names some in a dictionary `TEXTS`."""
    return DATA_SETS.table("TEXTS")
