"""Accuracy by class, AIE and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.tasks.base import scores
from acdc_cli.transfer.aie import METRICS, Judged, average_increase_in_error, interval, judged

LABELS = np.array([0, 0, 0, 1, 3, 3])
PREDICTED = np.array([0, 0, 1, 1, 3, 0])


def test_top_1_counts_images_and_mean_per_class_counts_classes_that_occur() -> None:
    assert METRICS["top1"].score(PREDICTED, LABELS) == 4 / 6
    assert METRICS["mean_per_class"].score(PREDICTED, LABELS) == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_weights_repeat_samples() -> None:
    weights = np.array([1, 0, 2, 0, 1, 1])
    assert Judged("top1", LABELS, [PREDICTED]).error(weights) == pytest.approx(1 - 2 / 5)
    assert Judged("mean_per_class", LABELS, [PREDICTED]).error(weights) == pytest.approx(1 - (1 / 3 + 1 / 2) / 2)


@given(
    st.sampled_from(sorted(METRICS)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1), st.integers(0, 3)), min_size=1),
)
def test_an_error_with_weights_is_that_of_repeated_samples(
    metric: str, samples: list[tuple[int, int, int, int]]
) -> None:
    truth, *answers, weights = np.array(samples).T
    if not weights.any():
        return
    by_hand = [METRICS[metric].score(np.repeat(each, weights), np.repeat(truth, weights)) for each in answers]
    assert Judged(metric, truth, answers).error(weights) == pytest.approx(1 - np.mean(by_hand))


def test_metrics_of_sentences_are_those_of_their_tasks() -> None:
    answers, truth = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
    # 2 true positives, 1 false one, 2 true negatives
    assert METRICS["f1"].score(answers, truth) == pytest.approx(4 / 5)
    assert METRICS["matthews"].score(answers, truth) == pytest.approx(4 / 36**0.5)
    given, wanted = np.array([0.5, 1.5, 4], np.float32), np.array([0, 1, 5], np.float32)
    assert METRICS["pearson"].score(given, wanted) == pytest.approx(scores.pearson([0.5, 1.5, 4], [0, 1, 5]))
    assert METRICS["spearman"].score(given, wanted) == pytest.approx(1)


def test_answers_that_are_all_the_same_do_not_correlate() -> None:
    assert METRICS["pearson"].score(np.ones(3), np.arange(3)) == 0
    assert METRICS["spearman"].score(np.ones(3), np.arange(3)) == 0


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
    right = np.arange(200) % 5 > 0
    same = {"set": Judged("top1", labels, [np.where(right, labels, 9)])}
    assert interval(same, same, draws=20) == (0, 0)
    worse = {"set": Judged("top1", labels, [np.where(right & (np.arange(200) % 3 > 0), labels, 9)])}
    bounds = interval(worse, same, draws=200)
    assert bounds is not None
    error, base = 1 - worse["set"].right.mean(), 0.2
    assert bounds[0] < (error - base) / base < bounds[1]
    assert bounds[1] - bounds[0] < 4


def test_the_interval_is_undefined_where_a_draw_makes_no_error() -> None:
    labels = np.zeros(3, np.int64)
    one_wrong = {"set": Judged("top1", labels, [np.array([0, 0, 1])])}
    assert interval(one_wrong, one_wrong, draws=50) is None
