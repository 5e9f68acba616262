"""The batches of a set of sentences.

The inputs of a batch are (batch, 3, length), int64: the numbers of tokens, 1 where there is a token and 0 where there
is padding, and the types of tokens. Its length is that of the longest example of the batch over all ranks, rounded up
to a multiple of 8, so that all ranks have equal shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from acdc_cli.data.batches import Batch, moved
from acdc_cli.data.order import epoch_order
from acdc_cli.data.sentence_tokens import Encoded
from acdc_cli.data.shard import UNDIVIDED, Shard

_MULTIPLE = 8


@dataclass(frozen=True)
class Sentences:
    """A `Loader` of sentences."""

    encoded: Encoded
    targets: NDArray[Any]
    """Targets of the whole split."""
    used: NDArray[np.int64]
    """The positions of the examples that are used."""
    batch_size: int
    """In training, over all ranks, whose number divides it."""
    length: int
    """The longest that any batch may be."""
    padding: int
    device: torch.device
    shuffle_seed: int | None = None
    """For training: shuffled anew every epoch, in whole batches only."""
    shard: Shard = UNDIVIDED
    kind: Literal["sentences"] = "sentences"

    @property
    def samples(self) -> int:
        return len(self.used)

    @property
    def steps(self) -> int:
        return len(self._batches(self.used))

    def warm_up(self) -> None: ...

    def close(self) -> None: ...

    def prepare(self, epoch: int) -> None:
        """Nothing: a batch is cut from memory."""

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        order = self.used
        if self.shuffle_seed is not None:
            order = order[epoch_order(len(order), self.shuffle_seed, epoch)]
        yield (self._batch(own, whole) for own, whole in self._batches(order)[start_step:])

    def _batches(self, order: NDArray[np.int64]) -> Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """This rank's part of each of its batches, and the whole batch of all ranks."""
        size, shard = self.batch_size, self.shard
        if self.shuffle_seed is None:
            wholes = [order[start : start + size] for start in range(0, len(order), size)]
            return [(whole, whole) for whole in wholes[shard.rank :: shard.size]]
        wholes = [order[start : start + size] for start in range(0, len(order) // size * size, size)]
        part = size // shard.size
        return [(whole[shard.rank * part : (shard.rank + 1) * part], whole) for whole in wholes]

    def _batch(self, own: NDArray[np.int64], whole: NDArray[np.int64]) -> Batch:
        longest = int(self.encoded.lengths[whole].max())
        width = min(self.length, -(-longest // _MULTIPLE) * _MULTIPLE)
        inputs = np.zeros((len(own), 3, width), np.int64)
        inputs[:, 0] = self.padding
        for row, example in zip(inputs, own.tolist(), strict=True):
            begin, end = self.encoded.starts[example : example + 2]
            row[0, : end - begin] = self.encoded.tokens[begin:end]
            row[1, : end - begin] = 1
            row[2, : end - begin] = self.encoded.types[begin:end]
        return Batch(moved(inputs, self.device), moved(self.targets[own], self.device), torch.from_numpy(own))
