"""Means and bootstrap intervals, by hand and against NumPy."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest

from acdc_cli.statistics import mean, mean_of_known, percentile_interval


def test_the_mean_of_no_values_is_nan_and_of_no_known_ones_none() -> None:
    assert mean(value for value in (1.0, 2.0, 6.0)) == 3.0
    assert isnan(mean([]))
    assert mean_of_known([None, 1.0, None, 3.0]) == 2.0
    assert mean_of_known([None]) is None


def test_an_interval_lies_between_percentiles_of_the_finite_samples() -> None:
    assert percentile_interval([*map(float, range(41)), nan]) == pytest.approx((1.0, 39.0))
    assert percentile_interval(np.array([4.0, 0.0, 8.0]), (0.25, 0.5)) == (2.0, 4.0)
    assert percentile_interval([nan]) is None
