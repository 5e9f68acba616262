"""What a transfer is worth: top-1 or mean accuracy per class, and AIE over several sets (P2 E, eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["top1", "mean_per_class"]


def top1(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    return float((labels == predicted).mean())


def mean_per_class(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The mean over the classes that occur of the share of their images that are classified correctly."""
    return weighted("mean_per_class", labels, labels == predicted, np.ones(len(labels)))


def weighted(
    metric: Metric, labels: NDArray[np.int64], right: NDArray[np.float64 | np.bool_], weights: NDArray[np.float64]
) -> float:
    """The accuracy where images count `weights` times; right: per image, the share of repetitions that are correct."""
    if metric == "top1":
        return float((right * weights).sum() / weights.sum())
    images = np.bincount(labels, weights)
    hits = np.bincount(labels, right * weights)
    return float((hits[images > 0] / images[images > 0]).mean())


def average_increase_in_error(errors: Mapping[str, float], baseline: Mapping[str, float]) -> float | None:
    """(1 / |T|) Σ (Err model - Err baseline) / Err baseline over the sets T (eq. 5).

    None where it is undefined: if the baseline makes no error on a set, or there is no set.
    Both must have the same sets.
    """
    assert errors.keys() == baseline.keys()
    if not errors or not all(baseline.values()):
        return None
    return float(np.mean([(errors[task] - baseline[task]) / baseline[task] for task in baseline]))


@dataclass(frozen=True)
class Judged:
    """A model's answers on the validation images of a set."""

    metric: Metric
    labels: NDArray[np.int64]
    right: NDArray[np.float64]
    """Per image, the share of the repetitions that classify it correctly."""

    def error(self, weights: NDArray[np.float64]) -> float:
        return 1 - weighted(self.metric, self.labels, self.right, weights)


def interval(
    model: Mapping[str, Judged], baseline: Mapping[str, Judged], draws: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of AIE over validation images: each set's are drawn anew, the same for both models.

    None if AIE is undefined in any draw.
    """
    random = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(draws):
        drawn = {task: _redrawn(len(each.labels), random) for task, each in baseline.items()}
        errors = {task: model[task].error(drawn[task]) for task in baseline}
        value = average_increase_in_error(errors, {task: baseline[task].error(drawn[task]) for task in baseline})
        if value is None:
            return None
        values.append(value)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def judged(metric: Metric, answers: Sequence[NDArray[np.int64]]) -> Judged:
    """answers: (labels, predictions) of each repetition, all of the same images."""
    labels = answers[0][0]
    assert all(np.array_equal(each[0], labels) for each in answers)
    return Judged(metric, labels, np.mean([each[1] == labels for each in answers], axis=0))


def _redrawn(images: int, random: np.random.Generator) -> NDArray[np.float64]:
    """How often each image is drawn."""
    return np.bincount(random.integers(images, size=images), minlength=images).astype(np.float64)
