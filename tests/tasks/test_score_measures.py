"""Scores that no sum over batches gives, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from acdc_cli.tasks.base import scores, totals

ANSWERS = [1.0, 1, 1, 0, 0, 0, 0, 1]
TRUTH = [1.0, 1, 0, 0, 0, 1, 0, 0]
"""True positives 2, false positives 2, false negatives 1, true negatives 3."""


def test_scores_of_two_classes() -> None:
    assert scores.accuracy(ANSWERS, TRUTH) == 5 / 8
    assert scores.f1(ANSWERS, TRUTH) == 4 / 7
    # of class 0: 2·3 / (4 + 5)
    assert scores.macro_f1(ANSWERS, TRUTH) == pytest.approx((4 / 7 + 2 / 3) / 2)
    assert scores.matthews(ANSWERS, TRUTH) == pytest.approx((2 * 3 - 2 * 1) / math.sqrt(4 * 3 * 5 * 4))


def test_a_model_that_always_says_the_same_has_no_correlation() -> None:
    assert scores.matthews([0.0] * 8, TRUTH) == 0
    assert scores.f1([0.0] * 8, [0.0] * 8) == 0
    assert math.isnan(scores.pearson([2.0] * 8, TRUTH))
    assert math.isnan(scores.spearman([2.0] * 8, TRUTH))


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4: deviations -1.5, 0, 0, 1.5 and -.5, -1.5, .5, 1.5
    assert scores.spearman([1.0, 2, 2, 30], [2.0, 1, 3, 4]) == pytest.approx(3 / math.sqrt(4.5 * 5))


def test_pearson_of_a_line_is_one() -> None:
    assert scores.pearson([0.5, 1, 3], [2.0, 3, 7]) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30))
def test_they_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    answers, truth = ([float(each) for each in side] for side in zip(*pairs, strict=True))
    assume({*answers} | {*truth} == {0, 1})
    assert scores.f1(answers, truth) == pytest.approx(metrics.f1_score(truth, answers, zero_division=0))
    assert scores.macro_f1(answers, truth) == pytest.approx(
        metrics.f1_score(truth, answers, average="macro", zero_division=0)
    )
    assert scores.matthews(answers, truth) == pytest.approx(metrics.matthews_corrcoef(truth, answers))


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=3, max_size=30))
def test_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    answers, truth = ([float(each) for each in side] for side in zip(*pairs, strict=True))
    assume(len(set(answers)) > 1 and len(set(truth)) > 1)
    assert scores.pearson(answers, truth) == pytest.approx(stats.pearsonr(answers, truth)[0])
    assert scores.spearman(answers, truth) == pytest.approx(stats.spearmanr(answers, truth)[0])


def test_scalars_are_added_and_vectors_concatenated_over_batches_and_ranks() -> None:
    first = {"loss": torch.tensor(1.0), "answers": torch.tensor([1.0, 2.0])}
    second = {"loss": torch.tensor(0.5), "answers": torch.tensor([3.0])}
    merged = totals.fetched(totals.combined(totals.combined({}, first), second))
    assert merged == {"loss": 1.5, "answers": [1.0, 2.0, 3.0]}
    assert totals.over_ranks([merged, {}, {"loss": 2.0, "answers": [4.0]}]) == {
        "loss": 3.5,
        "answers": [1.0, 2.0, 3.0, 4.0],
    }
