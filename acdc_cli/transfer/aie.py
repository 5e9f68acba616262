"""What a transfer is worth: the set's own metric, and AIE over several sets (P2 E, eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acdc_cli.statistics import mean, percentile_interval
from acdc_cli.tasks.base import scores

Answers = NDArray[Any]
"""(samples,): classes, int64, or scores, float32."""


@dataclass(frozen=True)
class Metric:
    name: str
    score: Callable[[Any, Any], float]
    """(answers, truth) -> at most 1."""
    weighted: Callable[[Answers, NDArray[np.float64], NDArray[np.float64]], float] | None = None
    """(truth, right, weights) -> the metric where samples count `weights` times; right: per sample, the share of
    repetitions that are right. None for a metric that is no mean of these."""


def _share(truth: Answers, right: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float((right * weights).sum() / weights.sum())


def _mean_share(truth: Answers, right: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The mean over the classes that occur."""
    samples, hits = np.bincount(truth, weights), np.bincount(truth, right * weights)
    return float((hits[samples > 0] / samples[samples > 0]).mean())


def _weighted_metric(
    weighted: Callable[[Answers, NDArray[np.float64], NDArray[np.float64]], float], name: str
) -> Metric:
    def score(answers: Answers, truth: Answers) -> float:
        return weighted(truth, np.equal(answers, truth).astype(float), np.ones(len(truth)))

    return Metric(name, score, weighted)


_Score = Callable[[Any, Any], float]


def _or_zero(correlation: _Score) -> _Score:
    """0 where one side is constant and the correlation undefined, as of a model whose answers are all the same."""

    def score(answers: Answers, truth: Answers) -> float:
        constant = any(each.min() == each.max() for each in (answers, truth))
        return 0.0 if constant else correlation(answers, truth)

    return score


METRICS = {
    "top1": _weighted_metric(_share, "top-1"),
    "mean_per_class": _weighted_metric(_mean_share, "mean per class"),
    "accuracy": _weighted_metric(_share, "accuracy"),
    "f1": Metric("F1", scores.f1),
    "macro_f1": Metric("macro F1", scores.macro_f1),
    "matthews": Metric("Matthews", scores.matthews),
    "pearson": Metric("Pearson", _or_zero(scores.pearson)),
    "spearman": Metric("Spearman", _or_zero(scores.spearman)),
}
"""By the names that tasks give them; accuracies and F1 are shares, the others correlations."""


def average_increase_in_error(errors: Mapping[str, float], baseline: Mapping[str, float]) -> float | None:
    """(1 / |T|) Σ (Err model - Err baseline) / Err baseline over the sets T (eq. 5).

    None where it is undefined: if the baseline makes no error on a set, or there is no set.
    Both must have the same sets.
    """
    assert errors.keys() == baseline.keys()
    if not errors or not all(baseline.values()):
        return None
    return mean((errors[task] - baseline[task]) / baseline[task] for task in baseline)


@dataclass(frozen=True)
class Judged:
    """A model's answers on the validation samples of a set."""

    metric: str
    truth: Answers
    answers: Sequence[Answers]
    """One for each repetition."""

    @cached_property
    def right(self) -> NDArray[np.float64]:
        """Per sample, the share of the repetitions that answer it correctly."""
        return np.asarray(np.mean([np.equal(each, self.truth) for each in self.answers], axis=0))

    def error(self, weights: NDArray[np.int64]) -> float:
        """1 - the metric, a mean over repetitions, where each sample counts so many times."""
        metric = METRICS[self.metric]
        if metric.weighted is not None:
            return 1 - metric.weighted(self.truth, self.right, weights.astype(float))
        truth = np.repeat(self.truth, weights)
        return 1 - mean(metric.score(np.repeat(each, weights), truth) for each in self.answers)


def interval(
    model: Mapping[str, Judged], baseline: Mapping[str, Judged], draws: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of AIE over validation samples: each set's are drawn anew, the same for both models.

    None if AIE is undefined in any draw.
    """
    random = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(draws):
        drawn = {task: _redrawn(len(each.truth), random) for task, each in baseline.items()}
        errors = {task: model[task].error(drawn[task]) for task in baseline}
        value = average_increase_in_error(errors, {task: baseline[task].error(drawn[task]) for task in baseline})
        if value is None:
            return None
        values.append(value)
    return percentile_interval(values)


def judged(metric: str, answers: Sequence[Answers]) -> Judged:
    """answers: (2, samples), truth and answers of each repetition, all of the same samples."""
    truth = answers[0][0]
    assert all(np.array_equal(each[0], truth) for each in answers)
    return Judged(metric, truth, [each[1] for each in answers])


def _redrawn(samples: int, random: np.random.Generator) -> NDArray[np.int64]:
    """How often each sample is drawn."""
    return np.bincount(random.integers(samples, size=samples), minlength=samples)
