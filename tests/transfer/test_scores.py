"""Accuracy by class, AIE and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.transfer import scores
from acdc_cli.transfer.scores import Judged, average_increase_in_error, interval, judged

LABELS = np.array([0, 0, 0, 1, 3, 3])
PREDICTED = np.array([0, 0, 1, 1, 3, 0])


def test_top_1_counts_images_and_mean_per_class_counts_classes_that_occur() -> None:
    assert scores.top1(LABELS, PREDICTED) == 4 / 6
    assert scores.mean_per_class(LABELS, PREDICTED) == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_weights_repeat_images() -> None:
    weights = np.array([1, 0, 2, 0, 1, 1], float)
    right = (LABELS == PREDICTED).astype(float)
    assert scores.weighted("top1", LABELS, right, weights) == 2 / 5
    assert scores.weighted("mean_per_class", LABELS, right, weights) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_aie_is_equation_5() -> None:
    # (0.3 - 0.2) / 0.2 = 0.5 and (0.45 - 0.5) / 0.5 = -0.1
    assert average_increase_in_error({"a": 0.3, "b": 0.45}, {"a": 0.2, "b": 0.5}) == pytest.approx(0.2)


def test_aie_is_undefined_if_the_baseline_makes_no_error_or_there_is_no_set() -> None:
    assert average_increase_in_error({"a": 0.3, "b": 0.4}, {"a": 0.2, "b": 0.0}) is None
    assert average_increase_in_error({}, {}) is None


@given(st.dictionaries(st.text(max_size=3), st.floats(0.001, 1), min_size=1), st.floats(0.5, 3))
def test_a_model_with_a_multiple_of_every_error_has_that_increase(errors: dict[str, float], factor: float) -> None:
    raised = {task: factor * error for task, error in errors.items()}
    assert average_increase_in_error(raised, errors) == pytest.approx(factor - 1, abs=1e-9)


def test_repetitions_are_averaged_per_image() -> None:
    answers = [np.array([[0, 1, 1], [0, 1, 0]]), np.array([[0, 1, 1], [0, 0, 0]])]
    assert judged("top1", answers).right.tolist() == [1, 0.5, 0]


def test_the_interval_draws_the_same_images_for_both_models() -> None:
    labels = np.arange(200) % 4
    right = (np.arange(200) % 5 > 0).astype(float)
    same = {"set": Judged("top1", labels, right)}
    assert interval(same, same, draws=20) == (0, 0)
    worse = {"set": Judged("top1", labels, right * (np.arange(200) % 3 > 0))}
    bounds = interval(worse, same, draws=200)
    assert bounds is not None
    error, base = 1 - worse["set"].right.mean(), 0.2
    assert bounds[0] < (error - base) / base < bounds[1]
    assert bounds[1] - bounds[0] < 4


def test_the_interval_is_undefined_where_a_draw_makes_no_error() -> None:
    labels = np.zeros(3, np.int64)
    one_wrong = {"set": Judged("top1", labels, np.array([1.0, 1, 0]))}
    assert interval(one_wrong, one_wrong, draws=50) is None
