"""The blocks `data` of recipes whose tasks are on text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import PositiveInt

from acdc_cli.recipe.blocks.base import Bears, at_most
from acdc_cli.recipe.blocks.data import DataBlock

IGNORED = -100
"""The target of a position that is not predicted, torch's own number for it."""

Tokens = Annotated[PositiveInt, at_most(1_000_000)]


class TextBlock(DataBlock):
    """A running text, for tasks that predict each token from those before it."""

    inputs: ClassVar[str] = "text"
    noun: ClassVar[str] = "segments"
    one: ClassVar[str] = "a segment"
    size_key: ClassVar[str] = "length"
    size_unit: ClassVar[str] = "tokens"
    short_words: ClassVar[tuple[str, str]] = ("tok", "seg/s")
    size_keys: ClassVar[str] = "training segments have data.length tokens, validation segments data.val_length"

    path: Annotated[str | None, Bears.NOTHING] = None
    """Folder that `acdc data write` made of the text. Default: `data/<name>`."""
    batch_size: PositiveInt
    """Rows into which the training text is cut, over all devices and accumulated parts: a batch is the next segment of
    each row."""
    length: Tokens
    """Tokens of a training segment."""
    val_length: Tokens | None = None
    """Tokens of a validation segment. Default: `length`."""
    val_rows: PositiveInt = 1
    """Rows into which the validation text is cut. Every token but the text's first is predicted once; the first
    segments of a row have less context, so that the perplexity depends slightly on their number."""
    val_batch_size: Annotated[PositiveInt | None, Bears.EXECUTION] = None
    """Validation rows that are read at the same time on each rank; results do not depend on it. Default: all."""
    roll: bool = False
    """Shift each row of the training text cyclically by a random number of tokens in each epoch."""
    tokens: PositiveInt | None = None
    """Train on the first N tokens only, for a quick trial. Default: all."""
    val_tokens: PositiveInt | None = None
    """Validate on the first N tokens only. Default: all."""

    def shown(self) -> dict[str, Any]:
        return {"val_length": self.val_size}

    @property
    def train_size(self) -> int:
        return self.length

    @property
    def val_size(self) -> int:
        return self.val_length or self.length
