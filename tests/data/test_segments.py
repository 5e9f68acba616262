"""The segments of a text: every token in its place and predicted once, whatever the batch, the ranks and the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.data.batches import Batch
from acdc_cli.data.segments import Segments, all_rows, equal_rows, grouped, single_segments
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.text import IGNORED

CPU = torch.device("cpu")
TEXT = np.arange(23, dtype="<u2")


def drawn(loader: Segments, epoch: int = 0, start: int = 0) -> list[Batch]:
    with loader.epoch(epoch, start) as batches:
        return list(batches)


def training(rows: int = 2, length: int = 4, seed: int | None = None, shard: Shard = UNDIVIDED) -> Segments:
    return Segments(TEXT, "text", 23, length, (equal_rows(len(TEXT), rows),), CPU, seed, True, shard)


def validation(rows: int, length: int, at_once: int | None = None, shard: Shard = UNDIVIDED) -> Segments:
    cut = all_rows(len(TEXT), rows)
    return Segments(TEXT, "text", 23, length, grouped(cut, (at_once or rows) * shard.size), CPU, shard=shard)


def test_a_batch_is_the_next_segment_of_each_row() -> None:
    # 23 tokens in two rows of 11, the last token left out; two segments of 4 each predict tokens 1 to 8 of a row
    first, second = drawn(training())
    assert first.inputs.tolist() == [[1, 0, 1, 2, 3, 4], [1, 11, 12, 13, 14, 15]]
    assert first.targets.tolist() == [[1, 2, 3, 4], [12, 13, 14, 15]]
    assert second.inputs.tolist() == [[0, 4, 5, 6, 7, 8], [0, 15, 16, 17, 18, 19]]
    assert (training().steps, training().samples) == (2, 4)


def test_a_last_segment_of_the_validation_is_shorter_and_its_rest_ignored() -> None:
    # 22 predicted tokens in 3 rows: 8, 7 and 7
    *_, last = drawn(validation(3, 5))
    assert last.inputs[:, 0].tolist() == [0, 0, 0]
    assert last.targets.tolist() == [
        [6, 7, 8, IGNORED, IGNORED],
        [14, 15, IGNORED, IGNORED, IGNORED],
        [21, 22, IGNORED, IGNORED, IGNORED],
    ]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
def test_every_token_but_the_first_is_predicted_once_from_the_token_before(
    rows: int, length: int, at_once: int, ranks: int
) -> None:
    loaders = [validation(rows, length, at_once, Shard(rank, ranks)) for rank in range(ranks)]
    batches = [batch for loader in loaders for batch in drawn(loader)]
    pairs = [
        (int(before), int(target))
        for batch in batches
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
        for before, target in zip(inputs[1:-1], targets, strict=True)
        if target != IGNORED
    ]
    assert sorted(pairs) == [(token - 1, token) for token in range(1, 23)]
    assert sum(len(batch.targets) for batch in batches) == loaders[0].samples


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_from_any_step_on_are_those_of_the_whole_epoch(seed: int | None) -> None:
    whole, rest = drawn(training(length=2, seed=seed), 1), drawn(training(length=2, seed=seed), 1, 3)
    assert len(whole) == 5
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


def test_ranks_together_read_what_one_reads() -> None:
    alone = drawn(training(rows=4, seed=1))
    parts = [drawn(training(rows=4, seed=1, shard=Shard(rank, 2))) for rank in range(2)]
    for one, shards in zip(alone, zip(*parts, strict=True), strict=True):
        assert torch.equal(one.inputs, torch.cat([part.inputs for part in shards]))
        assert torch.equal(one.indices, torch.cat([part.indices for part in shards]))


def test_rolling_turns_each_row_by_its_own_step_in_each_epoch() -> None:
    rows = equal_rows(1000, 4)
    loader = Segments(np.arange(1000, dtype="<u2"), "text", 1000, 249, (rows,), CPU, 0, True)
    starts = []
    for epoch in range(3):
        (batch,) = drawn(loader, epoch)
        for number, row in enumerate(batch.inputs[:, 1:].tolist()):
            assert row == [250 * number + (row[0] + step) % 250 for step in range(250)] or row[0] >= 250
            assert sorted(row) == list(range(250 * number, 250 * number + 250))
        starts += [first % 250 for first in batch.inputs[:, 1].tolist()]
    assert len(set(starts)) > 9
    (again,) = drawn(loader, 2)
    assert torch.equal(again.inputs, batch.inputs)


def test_single_segments_each_begin_a_text() -> None:
    loader = Segments(TEXT, "text", 23, 4, grouped(single_segments(23, 4, 2), 1), CPU)
    batches = drawn(loader)
    assert [batch.inputs.tolist() for batch in batches] == [[[1, 0, 1, 2, 3, 4]], [[1, 8, 9, 10, 11, 12]]]


def test_a_token_beyond_the_vocabulary_is_an_error_that_names_the_file() -> None:
    loader = Segments(TEXT, "data/x/train.tokens", 20, 22, (equal_rows(23, 1),), CPU)
    with pytest.raises(DataError, match=r"data/x/train\.tokens has token 22, and its vocabulary 20 tokens"):
        drawn(loader)
