"""A model's memory of preceding tokens: begun anew, laid aside, split into parts, saved and restored."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from acdc_cli.memory import Memory, disabled, part, remembered, restore, set_aside
from acdc_cli.models.transformer_xl import TransformerXL


def tiny() -> TransformerXL:
    torch.manual_seed(0)
    return TransformerXL(9, layers=2, d_model=4, heads=2, inner=4, memory=5, dropout=0.0, init_std=0.5)


def text(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(9, (rows, length), generator=torch.Generator().manual_seed(seed))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_only_the_rows_that_begin_forget_their_text() -> None:
    model, other = tiny(), tiny()
    alone = other(text(2, 4, 1))
    model(text(2, 4))
    mixed = model(text(2, 4, 1), begins=torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], alone[0])
    assert not torch.allclose(mixed[1], alone[1])
    # of the row that began, the memory is still young: three tokens later it does not reach into the first text
    assert remembered(model)["known"].tolist() == [4, 5]
    torch.testing.assert_close(model(text(2, 3, 2))[0], other(text(2, 3, 2))[0])


def test_what_happens_aside_leaves_the_memory_as_it_was() -> None:
    model = tiny()
    first = model(text(2, 4))
    before = remembered(model)
    with part(model, 3), set_aside(model):
        assert torch.equal(model(text(2, 4)), first)
        model(text(2, 3))
    assert same(remembered(model), before)
    assert model.memory.part == 0


def test_an_exception_aside_brings_the_memory_back() -> None:
    model = tiny()
    model(text(2, 4))
    before = remembered(model)
    with pytest.raises(IndexError), part(model, 1), set_aside(model):
        model(torch.tensor([[9]]))
    assert same(remembered(model), before)
    assert model.memory.part == 0


def test_a_memory_that_is_off_is_neither_read_nor_written() -> None:
    model = tiny()
    first = model(text(2, 4))
    before = remembered(model)
    with disabled(model):
        assert torch.equal(model(text(2, 4)), first)
    assert same(remembered(model), before)


def test_each_part_of_a_batch_has_its_own_memory() -> None:
    whole, parted = tiny(), tiny()
    for seed in range(3):
        expected = whole(text(5, 2, seed))
        outputs = []
        for number, rows in enumerate(text(5, 2, seed).chunk(2)):
            with part(parted, number):
                outputs.append(parted(rows))
        torch.testing.assert_close(torch.cat(outputs), expected)
    assert {number: tuple(held.states.shape) for number, held in parted.memory.parts.items()} == {
        0: (2, 5, 3, 4),
        1: (2, 5, 2, 4),
    }
    torch.testing.assert_close(remembered(parted), remembered(whole))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_restored_memory_goes_on_bit_for_bit_in_any_number_of_parts(parts: int) -> None:
    model, resumed = tiny(), tiny()
    model(text(4, 3))
    model(text(4, 3, 1))
    saved = remembered(model)
    assert saved["states"].device.type == "cpu"
    restore(resumed, [saved], 0, 1, parts)
    saved["states"].zero_()
    outputs = []
    for number, rows in enumerate(text(4, 3, 2).chunk(parts)):
        with part(resumed, number):
            outputs.append(resumed(rows))
    expected = model(text(4, 3, 2))
    if parts == 1:
        assert torch.equal(outputs[0], expected)
    torch.testing.assert_close(torch.cat(outputs), expected)
    torch.testing.assert_close(remembered(resumed), remembered(model))


def test_the_memories_of_two_ranks_serve_one_or_four() -> None:
    whole, ranks = tiny(), [tiny(), tiny()]
    expected = whole(text(4, 3))
    torch.testing.assert_close(
        torch.cat([rank(rows) for rank, rows in zip(ranks, text(4, 3).chunk(2), strict=True)]), expected
    )
    saved = [remembered(rank) for rank in ranks]
    for size in (1, 4):
        resumed = [tiny() for _ in range(size)]
        for number, each in enumerate(resumed):
            restore(each, saved, number, size, 1)
        then = torch.cat([each(rows) for each, rows in zip(resumed, text(4, 3, 1).chunk(size), strict=True)])
        with set_aside(whole):
            restore(whole, saved, 0, 1, 1)
            torch.testing.assert_close(then, whole(text(4, 3, 1)))


def test_restoring_nothing_forgets() -> None:
    model = tiny()
    model(text(2, 2))
    restore(model, [], 0, 1, 3)
    assert remembered(model) == {}


def test_weights_hold_no_memory() -> None:
    model = tiny()
    names, before = list(model.state_dict()), copy.deepcopy(model)
    model(text(2, 4))
    assert list(model.state_dict()) == names
    assert list(model.buffers()) == []
    # a copy remembers for itself
    before(text(2, 4, 1))
    after = copy.deepcopy(model)
    after(text(2, 4, 1))
    assert not same(remembered(after), remembered(model))


def test_another_number_of_rows_begins_new_texts() -> None:
    model, other = tiny(), tiny()
    model(text(2, 4))
    torch.testing.assert_close(model(text(3, 4)), other(text(3, 4)))


def test_a_memory_within_another_module_is_reached() -> None:
    inner = tiny()
    model = nn.Sequential(inner)
    inner(text(2, 4))
    assert remembered(model)["known"].tolist() == [4, 4]


def test_a_model_without_memory_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    restore(model, [{"states": torch.zeros(1, 1, 1, 1), "known": torch.zeros(1)}], 0, 1, 2)
    with set_aside(model), part(model, 2), disabled(model):
        assert remembered(model) == {}


def test_a_memory_keeps_the_last_states_of_short_and_long_segments() -> None:
    memory, continues = Memory(), torch.tensor([False])
    states = torch.arange(1.0, 8.0).view(1, 7, 1)
    kept = []
    for start, end in ((0, 2), (2, 3), (3, 7)):
        memory.store([states[:, start:end]], memory.recall(continues, limit=3), limit=3)
        kept.append(memory.parts[0].states.flatten().tolist())
    assert kept == [[1, 2], [1, 2, 3], [5, 6, 7]]
    recalled = memory.recall(continues, limit=2)
    assert recalled.states.flatten().tolist() == [6, 7]
    assert recalled.unknown.tolist() == [[False, False]]
    assert memory.recall(~continues, limit=2).unknown.tolist() == [[True, True]]
    assert memory.recall(continues, limit=0) is None
