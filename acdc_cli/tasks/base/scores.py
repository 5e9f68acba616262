"""Scores of answers that no sum over batches gives, as scikit-learn and SciPy define them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[Any]


def accuracy(answers: Values, truth: Values) -> float:
    """The share of right answers."""
    return float(np.mean(np.equal(answers, truth)))


def f1(answers: Values, truth: Values) -> float:
    """2 TP / (2 TP + FP + FN) of class 1; 0 where it is 0 / 0."""
    return _f1(answers, truth, 1)


def macro_f1(answers: Values, truth: Values) -> float:
    """The mean of `f1` over all classes that are answered or true."""
    return float(np.mean([_f1(answers, truth, each) for each in sorted({*answers, *truth})]))


def _f1(answers: Values, truth: Values, positive: float) -> float:
    said, true = np.equal(answers, positive), np.equal(truth, positive)
    counted = int(said.sum() + true.sum())
    return 2 * int((said & true).sum()) / counted if counted else 0.0


def matthews(answers: Values, truth: Values) -> float:
    """The Matthews correlation of two classes, (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)).

    0 where one side has one class only.
    """
    said, true = np.equal(answers, 1), np.equal(truth, 1)
    tp, tn = int((said & true).sum()), int((~said & ~true).sum())
    fp, fn = int((said & ~true).sum()), int((~said & true).sum())
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below if below else 0.0


def pearson(answers: Values, truth: Values) -> float:
    """The linear correlation; NaN where one side is constant."""
    return _pearson(np.asarray(answers, np.float64), np.asarray(truth, np.float64))


def spearman(answers: Values, truth: Values) -> float:
    """The correlation of ranks, where equal values share the mean of their ranks; NaN where one side is constant."""
    # here because it takes half a second to import
    from scipy.stats import rankdata

    return _pearson(rankdata(answers), rankdata(truth))


def _pearson(one: NDArray[Any], other: NDArray[Any]) -> float:
    one, other = one - one.mean(), other - other.mean()
    below = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    return float(one @ other) / below if below else math.nan
