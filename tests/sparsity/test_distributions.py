"""Counts of weights that stay."""

import pytest

from acdc_cli.sparsity.distributions import density, kept_count, kept_per_layer


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
        (25_502_912, 0.95, 1_275_146),  # ResNet-50: 1275145.6
    ],
)
def test_the_kept_count_is_exact_and_rounds_half_up(weights: int, sparsity: float, kept: int) -> None:
    assert kept_count(weights, sparsity) == kept


def test_uniform_rounds_in_every_layer_for_itself() -> None:
    sizes = {"a": 10, "b": 100, "c": 4}
    assert kept_per_layer(sizes, 0.9) == {"a": 1, "b": 10, "c": 0}
    assert density(sizes, 0.9, "uniform") == 11 / 114
    assert density(sizes, 0.9, "global") == 11 / 114
    assert density({"a": 5, "b": 5}, 0.9, "uniform") == 0.2
    assert density({"a": 5, "b": 5}, 0.9, "global") == 0.1
