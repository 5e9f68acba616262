"""The block `data` of recipes whose tasks judge sentences or pairs of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from acdc_cli.recipe.blocks.base import Bears, at_most
from acdc_cli.recipe.blocks.data import DataBlock


class SentencesBlock(DataBlock):
    """Sentences, or pairs of them, each with a class or a score."""

    inputs: ClassVar[str] = "sentences"
    noun: ClassVar[str] = "examples"
    one: ClassVar[str] = "an example"
    size_key: ClassVar[str] = "length"
    size_unit: ClassVar[str] = "tokens"
    short_words: ClassVar[tuple[str, str]] = ("tok", "ex/s")
    size_keys: ClassVar[str] = "examples have at most data.length tokens"

    path: Annotated[str | None, Bears.NOTHING] = None
    """Folder with `train.tsv` and `dev.tsv`, as GLUE publishes its sets. Default: `data/<name>`."""
    length: Annotated[int, Field(ge=8), at_most(100_000)]
    """Tokens of the longest example. Longer ones are cut, the longer sentence of a pair first; batches are padded to
    their own longest example."""
    tokenizer: str
    """The tokenizer that the model was trained with: a folder with its `tokenizer.json`, or OWNER/NAME of the Hugging
    Face Hub."""
    examples: PositiveInt | None = None
    """Train on this many examples only, spread evenly over the set: for a quick trial. Default: all."""
    val_examples: PositiveInt | None = None
    """Validate on this many examples only, spread evenly over the set. Default: all."""

    def shown(self) -> dict[str, Any]:
        return {"length": self.length}

    @property
    def train_size(self) -> int:
        return self.length

    @property
    def val_size(self) -> int:
        return self.length
