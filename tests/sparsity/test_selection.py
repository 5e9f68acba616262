"""Top-k by magnitude: exact counts, ties by position."""

from decimal import ROUND_HALF_UP, Decimal
from math import prod
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acdc_cli.sparsity.selection import keep_largest

Place = tuple[str, int]


def test_the_largest_stay_wherever_they_lie() -> None:
    masks = keep_largest({"a": torch.tensor([[1.0, 9.0], [3.0, 4.0]]), "b": torch.tensor([8.0, 2.0])}, 0.5, "global")
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [True, False]


def test_uniform_keeps_the_same_share_of_every_layer() -> None:
    masks = keep_largest({"a": torch.tensor([[1.0, 9.0], [3.0, 4.0]]), "b": torch.tensor([8.0, 2.0])}, 0.5, "uniform")
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [True, False]
    masks = keep_largest({"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([2.0, 1.0])}, 0.5, "uniform")
    assert [mask.tolist() for mask in masks.values()] == [[True, False], [True, False]]


def test_exactly_k_stay_when_scores_tie_the_first_ones() -> None:
    masks = keep_largest({"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 1.0, 0.0])}, 0.5, "global")
    assert masks["a"].tolist() == [True, True, True]
    assert masks["b"].tolist() == [False, False, False]


def test_layers_of_zeros_keep_their_first_weights() -> None:
    masks = keep_largest({"a": torch.zeros(2, 2), "b": torch.zeros(6)}, 0.5, "global")
    assert masks["a"].all()
    assert masks["b"].tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("distribution", ["global", "uniform"])
def test_position_does_not_depend_on_the_memory_layout(distribution: Literal["global", "uniform"]) -> None:
    score = torch.randint(0, 3, (4, 6, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    plain = keep_largest({"a": score}, 0.7, distribution)["a"]
    assert torch.equal(plain, keep_largest({"a": score.to(memory_format=torch.channels_last)}, 0.7, distribution)["a"])
    assert plain.sum() == 65  # 0.3 · 216 = 64.8


def sorted_reference(scores: dict[str, Tensor], sparsity: float) -> set[Place]:
    ranked = sorted(
        (-value, layer, position)
        for layer, score in enumerate(scores.values())
        for position, value in enumerate(score.flatten().tolist())
    )
    count = ((1 - Decimal(str(sparsity))) * len(ranked)).quantize(Decimal(1), ROUND_HALF_UP)
    names = list(scores)
    return {(names[layer], position) for _, layer, position in ranked[: int(count)]}


def places(masks: dict[str, Tensor]) -> set[Place]:
    return {
        (name, position) for name, mask in masks.items() for position in mask.flatten().nonzero().flatten().tolist()
    }


@st.composite
def layers_of_scores(draw: st.DrawFn) -> dict[str, Tensor]:
    shapes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4))
    few_values = st.integers(-1, 3).map(float)
    values = draw(st.sampled_from([few_values, st.just(0.0), st.floats(0, 2.0**99, width=32)]))
    return {
        f"layer{number}": torch.tensor(
            draw(st.lists(values, min_size=prod(shape), max_size=prod(shape))), dtype=torch.float32
        ).view(shape)
        for number, shape in enumerate(shapes)
    }


sparsities = st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.98, 0.999999]) | st.floats(0, 1, exclude_max=True)


@given(scores=layers_of_scores(), sparsity=sparsities)
def test_global_agrees_with_a_sorted_list(scores: dict[str, Tensor], sparsity: float) -> None:
    masks = keep_largest(scores, sparsity, "global")
    assert places(masks) == sorted_reference(scores, sparsity)
    assert {name: mask.shape for name, mask in masks.items()} == {name: score.shape for name, score in scores.items()}


@given(scores=layers_of_scores(), sparsity=sparsities)
def test_uniform_agrees_with_a_sorted_list_of_each_layer(scores: dict[str, Tensor], sparsity: float) -> None:
    expected = set().union(*(sorted_reference({name: score}, sparsity) for name, score in scores.items()))
    assert places(keep_largest(scores, sparsity, "uniform")) == expected
