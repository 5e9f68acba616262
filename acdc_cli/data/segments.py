"""The batches of a running text: the text is cut into rows, and a batch is the next segment of each row.

The inputs of a batch are (rows, 2 + length), int64: 1 where the row begins here and 0 where it continues the row of the
batch before, then the segment's tokens and the one after them. Its targets are (rows, length), int64: the next token at
each position, `IGNORED` behind the end of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from acdc_cli.data.batches import Batch, moved
from acdc_cli.data.order import spread
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.data.token_files import Tokens
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.text import IGNORED


@dataclass(frozen=True)
class Row:
    """A part of the text that is read in order: its tokens from `start` on, of which the first is not predicted."""

    start: int
    predicted: int


@dataclass(frozen=True)
class Segments:
    """A `Loader` of a text."""

    tokens: Tokens
    name: str
    """What errors call the text."""
    vocabulary: int
    length: int
    groups: tuple[tuple[Row, ...], ...]
    """Rows that are read at the same time, group after group. In training there is one group, of equally long rows."""
    device: torch.device
    roll_seed: int | None = None
    """Shift each row cyclically by a random number of tokens, drawn from (seed, epoch, row)."""
    whole: bool = False
    """Drop a last segment that is shorter than `length`."""
    shard: Shard = UNDIVIDED
    kind: Literal["text"] = "text"

    def _steps(self, group: tuple[Row, ...]) -> int:
        longest = max(row.predicted for row in group)
        return longest // self.length if self.whole else -(-longest // self.length)

    def _own(self, group: tuple[Row, ...]) -> tuple[Row, ...]:
        """This rank's rows."""
        ends = [len(group) * rank // self.shard.size for rank in (self.shard.rank, self.shard.rank + 1)]
        return group[slice(*ends)]

    @property
    def steps(self) -> int:
        return sum(self._steps(group) for group in self.groups if self._own(group))

    @property
    def samples(self) -> int:
        return sum(self._steps(group) * len(group) for group in self.groups)

    def warm_up(self) -> None: ...

    def close(self) -> None: ...

    def prepare(self, epoch: int) -> None:
        """Nothing: a batch is a view of the text."""

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        yield self._batches(epoch, start_step)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        before, first = 0, 0
        for group in self.groups:
            if own := self._own(group):
                number, steps = first + group.index(own[0]), self._steps(group)
                shifts = self._shifts(own, number, epoch)
                for step in range(max(0, start_step - before), steps):
                    yield self._batch(shifts, own, step, number)
                before += steps
            first += len(group)

    def _shifts(self, rows: tuple[Row, ...], first: int, epoch: int) -> list[int]:
        """By how many tokens each row is shifted to the right in this epoch.  first: the number of the first row."""
        if self.roll_seed is None:
            return [0] * len(rows)
        return [_shift(row.predicted + 1, self.roll_seed, epoch, first + at) for at, row in enumerate(rows)]

    def _batch(self, shifts: list[int], rows: tuple[Row, ...], step: int, first: int) -> Batch:
        begin, length = step * self.length, self.length
        inputs = np.zeros((len(rows), 2 + length), np.int64)
        inputs[:, 0] = step == 0
        targets = np.full((len(rows), length), IGNORED, np.int64)
        for at, (shift, row) in enumerate(zip(shifts, rows, strict=True)):
            places = np.arange(begin, min(begin + length, row.predicted) + 1)
            shown = self.tokens[row.start + (places - shift) % (row.predicted + 1)]
            inputs[at, 1 : 1 + len(shown)] = shown
            if (count := min(length, row.predicted - begin)) > 0:
                targets[at, :count] = shown[1 : 1 + count]
        if inputs.max() >= self.vocabulary:
            raise DataError(
                f"{self.name} has token {inputs.max()}, and its vocabulary {self.vocabulary} tokens; write it again"
            )
        return Batch(moved(inputs, self.device), moved(targets, self.device), torch.arange(first, first + len(rows)))


def equal_rows(tokens: int, rows: int) -> tuple[Row, ...]:
    """The rows of the training text, all equally long; the text's last tokens are left out."""
    length = tokens // rows
    return tuple(Row(row * length, length - 1) for row in range(rows))


def all_rows(tokens: int, rows: int) -> tuple[Row, ...]:
    """Rows that predict every token but the text's first once; the first ones may be a token longer."""
    predicted, longer = divmod(tokens - 1, rows)
    return tuple(Row(row * predicted + min(row, longer), predicted + (row < longer)) for row in range(rows))


def single_segments(tokens: int, length: int, count: int) -> tuple[Row, ...]:
    """So many segments, evenly spread over the text, each on its own."""
    stored = max(1, (tokens - 1) // length)
    starts = spread(min(count, stored), stored)
    return tuple(Row(int(start) * length, min(length, tokens - 1)) for start in starts)


def grouped(rows: tuple[Row, ...], size: int) -> tuple[tuple[Row, ...], ...]:
    """`size` rows at a time."""
    return tuple(rows[at : at + size] for at in range(0, len(rows), size))


def _shift(length: int, seed: int, epoch: int, row: int) -> int:
    key = np.array([seed, epoch], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, row], np.uint64)))
    return int(generator.integers(length))
