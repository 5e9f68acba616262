"""Counts of weights that stay."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.sparsity.distributions import erk_shares, kept_count, kept_erk, kept_per_layer


@pytest.mark.parametrize(
    ("weights", "sparsity", "kept"),
    [
        (100, 0.95, 5),
        (10, 0.0, 10),
        (10, 0.95, 1),  # 0.5, rounded up
        (5, 0.9, 1),  # 0.5 again, where 1 - 0.9 is 0.09999999999999998
        (50, 0.95, 3),  # 2.5, where rounding half to even says 2
        (4, 0.9, 0),
        (1, 0.999999, 0),
        (0, 0.5, 0),
        (3, Fraction(1, 3), 2),
        (25_502_912, 0.95, 1_275_146),  # ResNet-50: 1275145.6
    ],
)
def test_the_kept_count_is_exact_and_rounds_half_up(weights: int, sparsity: float, kept: int) -> None:
    assert kept_count(weights, sparsity) == kept


def test_uniform_rounds_in_every_layer_for_itself() -> None:
    assert kept_per_layer({"a": 10, "b": 100, "c": 4, "d": 5}, 0.9) == {"a": 1, "b": 10, "c": 0, "d": 1}


def test_erk_shares_weights_out_by_the_sum_of_dimensions() -> None:
    # 8 × 12 and 16 × 4 × 3 × 3: 46 weights of the 672 over 20 and 26 dimensions
    assert erk_shares({"a": 20, "b": 26}, {"a": 96, "b": 576}, 46) == {"a": 20, "b": 26}
    assert kept_erk({"a": 20, "b": 26}, {"a": 96, "b": 576}, 0.5) == {"a": 96, "b": 240}


def test_erk_solves_eps_again_until_no_layer_would_keep_more_than_it_has() -> None:
    # 2 × 4, 5 × 10 and 30 × 30. All three: eps = 100/81, a keeps 7.4 of 8.
    dimensions, sizes = {"a": 6, "b": 15, "c": 60}, {"a": 8, "b": 50, "c": 900}
    assert erk_shares(dimensions, sizes, 100)["a"] == Fraction(600, 81)
    # Of 280, eps = 280/81: a would keep 20.7 of 8, and b 51.9 of 50: both are dense at once, 222 are left for c.
    assert erk_shares(dimensions, sizes, 280) == {"a": 8, "b": 50, "c": 222}
    # Of 265, eps = 265/81: b would keep 49.07 of 50. Without a, eps = 257/75, and b would keep 51.4: dense only then.
    assert erk_shares(dimensions, sizes, 265) == {"a": 8, "b": 50, "c": 207}


def test_erk_clipped_once_misses_the_total() -> None:
    dimensions, sizes = {"a": 6, "b": 15, "c": 60}, {"a": 8, "b": 50, "c": 900}
    sparsity = 1 - Fraction(265, 958)
    eps = Fraction(265, 81)
    clipped_once = sum(min(eps * dimensions[name], sizes[name]) for name in sizes)
    assert round(clipped_once) == 253
    second = Fraction(265 - 8, 75)  # eps solved once more, b's excess cut off
    assert 8 + 50 + second * 60 == Fraction("263.6")
    assert kept_erk(dimensions, sizes, sparsity) == {"a": 8, "b": 50, "c": 207}


def test_erk_gives_and_takes_single_weights_where_the_proportions_suffer_least() -> None:
    # 5 of 30 over 1 : 1 : 1 are 1⅔ each, rounded to 2; the last of equals gives way
    assert kept_erk(dict.fromkeys("abc", 7), dict.fromkeys("abc", 10), 1 - Fraction(5, 30)) == {"a": 2, "b": 2, "c": 1}
    # 4 are 1⅓ each, rounded to 1; the first of equals gets one more
    assert kept_erk(dict.fromkeys("abc", 7), dict.fromkeys("abc", 10), 1 - Fraction(4, 30)) == {"a": 2, "b": 1, "c": 1}


def test_erk_of_nothing_and_of_single_weights() -> None:
    assert kept_erk({}, {}, 0.5) == {}
    assert kept_erk({"a": 2, "b": 2}, {"a": 1, "b": 1}, 0.5) == {"a": 1, "b": 0}
    assert kept_erk({"a": 2, "b": 12}, {"a": 1, "b": 36}, 0.0) == {"a": 1, "b": 36}
    assert kept_erk({"a": 2, "b": 12}, {"a": 1, "b": 36}, 0.999999) == {"a": 0, "b": 0}


def by_the_seat(dimensions: dict[str, int], sizes: dict[str, int], total: int) -> dict[str, int]:
    """Weight by weight to the layer with the highest dimensions / (count + 1/2) that is not full."""
    counts = dict.fromkeys(sizes, 0)
    for _ in range(total):
        claims = {name: dimensions[name] / (counts[name] + Fraction(1, 2)) for name in sizes}
        counts[max((name for name in sizes if counts[name] < sizes[name]), key=lambda name: claims[name])] += 1
    return counts


networks = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])), min_size=1, max_size=6
).map(
    lambda shapes: (
        {str(number): out + into + 2 * kernel for number, (out, into, kernel) in enumerate(shapes)},
        {str(number): out * into * kernel**2 for number, (out, into, kernel) in enumerate(shapes)},
    )
)
sparsities = st.sampled_from([0.0, 0.5, 0.9, 0.98, 0.999999]) | st.floats(0, 1, exclude_max=True)


@given(network=networks, sparsity=sparsities)
def test_erk_agrees_with_handing_out_one_weight_after_another(
    network: tuple[dict[str, int], dict[str, int]], sparsity: float
) -> None:
    dimensions, sizes = network
    total = kept_count(sum(sizes.values()), sparsity)
    counts = kept_erk(dimensions, sizes, sparsity)
    assert sum(counts.values()) == total
    assert counts == by_the_seat(dimensions, sizes, total)


@given(network=networks, sparsity=sparsities)
def test_erk_shares_add_up_and_are_proportional_wherever_a_layer_is_not_dense(
    network: tuple[dict[str, int], dict[str, int]], sparsity: float
) -> None:
    dimensions, sizes = network
    total = kept_count(sum(sizes.values()), sparsity)
    shares = erk_shares(dimensions, sizes, total)
    assert sum(shares.values()) == total
    eps = {shares[name] / dimensions[name] for name in sizes if shares[name] < sizes[name]}
    assert len(eps) <= 1
    dense = [name for name in sizes if shares[name] == sizes[name]]
    assert all(each * dimensions[name] >= sizes[name] for each in eps for name in dense)


def test_no_layer_gains_a_weight_when_the_sparsity_rises() -> None:
    dimensions, sizes = {"a": 12, "b": 80, "c": 116, "d": 2}, {"a": 32, "b": 1600, "c": 9000, "d": 1}
    counts = [kept_erk(dimensions, sizes, step / 500) for step in range(500)]
    assert all(later[name] <= earlier[name] for earlier, later in pairwise(counts) for name in sizes)
