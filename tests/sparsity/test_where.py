"""Which weights stay: exact counts, ties by position, under every distribution and pattern."""

from decimal import ROUND_HALF_UP, Decimal
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from acdc_cli.errors import ModelError
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.sparsity import where
from acdc_cli.sparsity.distributions import kept_erk
from acdc_cli.sparsity.where import Selector, largest

Place = tuple[str, int]


def selector(target: float = 0.5, **keys: Any) -> Selector:
    return Selector.of(TargetBlock(method="any", target=target, **keys))


def shapes_of(scores: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: score.shape for name, score in scores.items()}


def test_the_largest_of_a_vector_are_as_many_as_asked_for_the_first_among_equals() -> None:
    scores = torch.tensor([1.0, 2.0, 1.0, 1.0])
    assert largest(scores, 3).tolist() == [True, True, True, False]
    assert [int(largest(scores, count).sum()) for count in range(5)] == [0, 1, 2, 3, 4]


def test_the_largest_stay_wherever_they_lie() -> None:
    masks = selector().masks({"a": torch.tensor([[1.0, 9.0], [3.0, 4.0]]), "b": torch.tensor([8.0, 2.0])}, 0.5)
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [True, False]


def test_uniform_keeps_the_same_share_of_every_layer() -> None:
    masks = selector(distribution="uniform").masks({"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([2.0, 1.0])}, 0.5)
    assert [mask.tolist() for mask in masks.values()] == [[True, False], [True, False]]


def test_erk_keeps_more_of_small_dimensions() -> None:
    # 2 × 2 and 6 × 6 with 10 of 40 weights: eps = 10/16, 2.5 and 7.5 both round up; of equal claims the last gives way
    scores = {"a": torch.arange(4.0).view(2, 2), "b": torch.arange(100.0, 136.0).view(6, 6)}
    erk = selector(0.75, distribution="erk")
    assert erk.counts(shapes_of(scores), 0.75) == {"a": 3, "b": 7}
    masks = erk.masks(scores, 0.75)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert places({"b": masks["b"]}) == {("b", position) for position in range(29, 36)}


def test_erk_is_solved_once_for_each_sparsity_and_set_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[Any] = []

    def counted(dimensions: dict[str, int], sizes: dict[str, int], sparsity: float) -> dict[str, int]:
        solved.append((sizes, sparsity))
        return kept_erk(dimensions, sizes, sparsity)

    monkeypatch.setattr(where, "kept_erk", counted)
    erk, other = selector(0.75, distribution="erk"), selector(0.75, distribution="erk")
    shapes = {"a": torch.Size((2, 2)), "b": torch.Size((6, 6))}
    for _ in range(3):
        assert erk.counts(shapes, 0.75) == {"a": 3, "b": 7}
        assert erk.density(shapes, 0.75) == 10 / 40
    assert solved == [({"a": 4, "b": 36}, 0.75)]
    assert erk.density(shapes, 0.5) == 20 / 40
    assert erk.counts({"b": torch.Size((6, 6))}, 0.75) == {"b": 9}
    assert other.counts(shapes, 0.75) == {"a": 3, "b": 7}
    assert solved[1:] == [({"a": 4, "b": 36}, 0.5), ({"b": 36}, 0.75), ({"a": 4, "b": 36}, 0.75)]


def test_exactly_k_stay_when_scores_tie_the_first_ones() -> None:
    masks = selector().masks({"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 1.0, 0.0])}, 0.5)
    assert masks["a"].tolist() == [True, True, True]
    assert masks["b"].tolist() == [False, False, False]


def test_layers_of_zeros_keep_their_first_weights() -> None:
    masks = selector().masks({"a": torch.zeros(2, 2), "b": torch.zeros(6)}, 0.5)
    assert masks["a"].all()
    assert masks["b"].tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"distribution": "uniform"},
        {"distribution": "erk"},
        {"pattern": "1:2", "target": 0.5},
        {"pattern": "block3"},
    ],
)
def test_position_does_not_depend_on_the_memory_layout(keys: dict[str, Any]) -> None:
    score = torch.randint(0, 3, (4, 6, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    chooser = selector(**{"target": 0.7} | keys)
    plain = chooser.masks({"a": score}, chooser.target)["a"]
    assert torch.equal(plain, chooser.masks({"a": score.to(memory_format=torch.channels_last)}, chooser.target)["a"])
    # 0.3 · 216 = 64.8 weights, 0.3 · 72 = 21.6 blocks of 3
    assert plain.sum() == {"1:2": 108, "block3": 66}.get(keys.get("pattern", ""), 65)


LAYERS = {
    "layer1.conv.weight": torch.Size([2, 5]),
    "layer2.conv.weight": torch.Size([4, 5]),
    "fc.weight": torch.Size([4, 10]),
}


def test_layers_may_have_sparsities_of_their_own_and_the_first_pattern_that_matches_holds() -> None:
    chooser = selector(0.5, layers={"layer2*": 0.9, "layer*": 0.2}, distribution="uniform")
    assert chooser.counts(LAYERS, 0.5) == {"layer1.conv.weight": 8, "layer2.conv.weight": 2, "fc.weight": 20}
    assert chooser.density(LAYERS, 0.5) == 30 / 70


def test_on_the_way_to_the_target_their_own_sparsities_rise_in_proportion() -> None:
    chooser = selector(0.8, layers={"fc": 0.4}, distribution="uniform")
    kept = [chooser.counts(LAYERS, sparsity) for sparsity in (0.0, 0.2, 0.4, 0.8)]
    assert [counts["fc.weight"] for counts in kept if counts] == [40, 36, 32, 24]


def test_the_ranking_of_all_weights_passes_over_layers_with_a_sparsity_of_their_own() -> None:
    scores = {
        "a.weight": torch.tensor([[9.0, 8.0]]),
        "b.weight": torch.tensor([[1.0, 2.0]]),
        "c.weight": torch.tensor([[7.0, 6.0]]),
    }
    chooser = selector(0.5, layers={"a": 0.5})
    masks = chooser.masks(scores, 0.5)
    assert [mask.tolist() for mask in masks.values()] == [[[True, False]], [[False, False]], [[True, True]]]
    assert list(masks) == list(scores)
    assert chooser.counts(shapes_of(scores), 0.5) is None
    assert chooser.density(shapes_of(scores), 0.5) == 0.5


def test_counts_are_known_where_every_layer_has_its_own() -> None:
    assert selector(layers={"*": 0.9}).counts(LAYERS, 0.5) == {
        "layer1.conv.weight": 1,
        "layer2.conv.weight": 2,
        "fc.weight": 4,
    }


def test_patterns_of_layers_that_match_nothing_are_told_with_near_names() -> None:
    selector(layers={"layer2.*": 0.9, "*": 0.1}).check(LAYERS)
    with pytest.raises(ModelError) as error:
        selector(layers={"layer2.*": 0.9, "layr1.conv": 0.9}).check(LAYERS)
    assert str(error.value).startswith("sparsity.layers: 'layr1.conv' matches no pruned layer; nearest: layer1.conv")
    with pytest.raises(
        ModelError, match=r"'fc', 'layer1\*' comes after a pattern that matches its layers; put it first"
    ):
        selector(layers={"*": 0.9, "fc": 0.5, "layer1*": 0.1}).check(LAYERS)


def test_a_layer_that_the_pattern_does_not_fit_stays_dense() -> None:
    scores = {"stem.weight": torch.rand(2, 3, 1, 1), "fc.weight": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    shapes = shapes_of(scores)
    for chooser, kept in ((selector(pattern="2:4"), 2), (selector(pattern="block2"), 2)):
        chooser.check(shapes)
        assert chooser.left_dense(shapes) == ["stem.weight"]
        masks = chooser.masks(scores, 0.5)
        assert masks["stem.weight"].all()
        assert masks["fc.weight"].tolist() == [[False, False, True, True]]
        assert chooser.density(shapes, 0.5) == (6 + kept) / 10
    assert selector().left_dense(shapes) == []
    assert selector(pattern="2:4").counts(shapes, 0.5) == {"stem.weight": 6, "fc.weight": 2}
    assert selector(pattern="block2", distribution="erk").counts(shapes, 0.5) == {"stem.weight": 6, "fc.weight": 2}


def test_a_pattern_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="no layer's input channels are a multiple of 4, so nothing would be pruned"):
        selector(pattern="2:4").check({"stem.weight": torch.Size([8, 3, 7, 7])})


def test_two_of_four_is_what_every_group_keeps_whatever_the_ranking() -> None:
    scores = {"a.weight": torch.tensor([[9.0, 8.0, 7.0, 6.0]]), "b.weight": torch.zeros(1, 4)}
    masks = selector(pattern="2:4").masks(scores, 0.5)
    assert [mask.tolist() for mask in masks.values()] == [[[True, True, False, False]]] * 2


def test_blocks_are_ranked_whole_and_counted_in_blocks() -> None:
    scores = {
        "a.weight": torch.tensor([[9.0, 0.0, 3.0, 3.0]]),  # means 4.5, 3
        "b.weight": torch.tensor([[5.0, 5.0], [1.0, 6.0]]),  # means 5, 3.5
    }
    masks = selector(pattern="block2").masks(scores, 0.5)
    assert masks["a.weight"].tolist() == [[True, True, False, False]]
    assert masks["b.weight"].tolist() == [[True, True], [False, False]]
    # 0.4 of 4 blocks is 1.6: to the nearest block, 2
    assert selector(pattern="block2").density(shapes_of(scores), 0.6) == 0.5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pattern": "4:4", "target": 0.0}, "pattern: 4:4 prunes nothing; N of N:M must be smaller than M"),
        ({"layers": {"a": 0.9}, "target": 0.0}, "layers: needs a target above 0; name layers that sta"),
        ({"pattern": "block1"}, "String should match pattern"),
        ({"pattern": "0:4"}, "String should match pattern"),
    ],
)
def test_an_impossible_pair_is_refused_with_the_reason(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        selector(**keys)
    assert said in str(error.value)


def test_a_third_may_be_rounded() -> None:
    assert selector(0.667, pattern="1:3").counts({"a": torch.Size([2, 3])}, 0.667) == {"a": 2}


def ranked_places(scores: dict[str, Tensor], count: int) -> set[Place]:
    ranked = sorted(
        (-value, layer, position)
        for layer, score in enumerate(scores.values())
        for position, value in enumerate(score.flatten().tolist())
    )
    names = list(scores)
    return {(names[layer], position) for _, layer, position in ranked[:count]}


def rounded(sparsity: float, count: int) -> int:
    return int(((1 - Decimal(str(sparsity))) * count).quantize(Decimal(1), ROUND_HALF_UP))


def places(masks: dict[str, Tensor]) -> set[Place]:
    return {
        (name, position) for name, mask in masks.items() for position in mask.flatten().nonzero().flatten().tolist()
    }


@st.composite
def layers_of_scores(draw: st.DrawFn, channels: int = 1) -> dict[str, Tensor]:
    """channels: what the second dimension of every weight is a multiple of."""
    shape = st.tuples(st.integers(1, 4), st.integers(1, 4).map(channels.__mul__), *[st.integers(1, 3)] * 2)
    shapes = draw(st.lists(shape.flatmap(lambda dims: st.sampled_from([dims[:2], dims])), min_size=1, max_size=4))
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
    masks = selector().masks(scores, sparsity)
    total = sum(score.numel() for score in scores.values())
    assert places(masks) == ranked_places(scores, rounded(sparsity, total))
    assert shapes_of(masks) == shapes_of(scores)
    assert selector().density(shapes_of(scores), sparsity) == rounded(sparsity, total) / total


@given(scores=layers_of_scores(), sparsity=sparsities)
def test_uniform_agrees_with_a_sorted_list_of_each_layer(scores: dict[str, Tensor], sparsity: float) -> None:
    counts = {name: rounded(sparsity, score.numel()) for name, score in scores.items()}
    check_layer_by_layer(selector(distribution="uniform"), scores, sparsity, counts)


@given(scores=layers_of_scores(), sparsity=sparsities)
def test_erk_agrees_with_a_sorted_list_of_each_layer(scores: dict[str, Tensor], sparsity: float) -> None:
    dimensions = {name: sum(score.shape) for name, score in scores.items()}
    counts = kept_erk(dimensions, {name: score.numel() for name, score in scores.items()}, sparsity)
    check_layer_by_layer(selector(distribution="erk"), scores, sparsity, counts)


def check_layer_by_layer(chooser: Selector, scores: dict[str, Tensor], sparsity: float, counts: dict[str, int]) -> None:
    expected = set().union(*(ranked_places({name: score}, counts[name]) for name, score in scores.items()))
    assert places(chooser.masks(scores, sparsity)) == expected
    assert chooser.counts(shapes_of(scores), sparsity) == counts
    total = sum(score.numel() for score in scores.values())
    assert chooser.density(shapes_of(scores), sparsity) == sum(counts.values()) / total


@given(scores=layers_of_scores(channels=4), sparsity=sparsities)
@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_blocks_live_or_die_whole_and_as_many_as_the_weights_would(
    distribution: str, scores: dict[str, Tensor], sparsity: float
) -> None:
    chooser = selector(pattern="block4", distribution=distribution)
    masks = chooser.masks(scores, sparsity)
    blocks = {name: torch.stack([mask[:, member::4] for member in range(4)]) for name, mask in masks.items()}
    assert all((block == block[0]).all() for block in blocks.values())
    total = sum(score.numel() for score in scores.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept / total == chooser.density(shapes_of(scores), sparsity)
    if distribution != "uniform":
        assert kept == 4 * rounded(sparsity, total // 4)
    counts = chooser.counts(shapes_of(scores), sparsity)
    assert counts is None or counts == {name: int(mask.sum()) for name, mask in masks.items()}
