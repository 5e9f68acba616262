"""The block `data` of a recipe: the keys that every kind of inputs has. The recipe's task picks the kind."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

from pydantic import PositiveInt

from acdc_cli.recipe.blocks.base import Bears, Block
from acdc_cli.recipe.blocks.course import SizeCourse


class DataBlock(Block):
    inputs: ClassVar[str] = ""
    """The kind of inputs: a file of `data/inputs`."""
    noun: ClassVar[str] = "samples"
    """What a sample is called, in the plural."""
    one: ClassVar[str] = "a sample"
    size_key: ClassVar[str] = "size"
    """What the size of a sample is called in records."""
    size_unit: ClassVar[str] = ""
    short_words: ClassVar[tuple[str, str]] = ("", "")
    """`size_unit` and samples in a second, for narrow columns."""
    size_keys: ClassVar[str] = ""
    """Which keys set the sizes, for errors."""

    name: str
    """A data set of `acdc data list`."""
    path: Annotated[str | None, Bears.NOTHING] = None
    """Folder of the set. Default: `data/<name>`."""
    batch_size: PositiveInt
    """Samples in one optimiser step, over all devices and accumulated parts."""
    val_batch_size: Annotated[PositiveInt | None, Bears.EXECUTION] = None
    """Samples in a rank's validation batch; results do not depend on it. Default: its part of `batch_size`."""

    @classmethod
    def speed_key(cls) -> str:
        """What the speed of training is called in records."""
        return f"{cls.noun}_per_second"

    @property
    @abstractmethod
    def train_size(self) -> SizeCourse:
        """Size of the training samples: the side of crops in pixels, the length of text in tokens."""

    @property
    @abstractmethod
    def val_size(self) -> int:
        """Size of the validation samples."""

    @abstractmethod
    def shown(self) -> dict[str, Any]:
        """The keys with which an exported model sees its samples."""

    def settled(self, size: int) -> dict[str, Any]:
        """The keys with which another training sees its samples as this one does at its end, at this size."""
        return {}

    def notes(self) -> list[str]:
        """What `acdc plan` should say of the samples."""
        return []
