"""Rates of models over a group of images, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acdc_cli.analysis.base.judgements import Columns
from acdc_cli.statistics import percentile_interval

_AT_ONCE = 1 << 22
"""Most draws of images in memory."""
_RATES = {
    "accuracy": ("right", None),
    "false_positive_rate": ("false_positive", "negative"),
    "false_negative_rate": ("false_negative", "positive"),
    "undecided": ("undecided", None),
}
"""Numerator and denominator of each rate, as names of columns; None: the number of images."""
Rates = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    """Percentile of the bootstrap samples in which the rate is defined."""
    high: float


def estimates(
    models: Mapping[str, Columns], images: int, resamples: int, level: float, draws: np.random.Generator
) -> dict[str, tuple[dict[str, list[Estimate | None]], dict[str, list[Estimate | None]]]]:
    """For each model its rates and their differences from the first model's, each a list of estimates: the mean over
    the decisions, then, if there are several, each decision's own. None: undefined, without such images.

    A bootstrap sample draws as many images as the group has, with replacement. It is the same for all models and
    decisions, so that differences are paired.
    """
    once = np.ones((1, images))
    whole = {name: rates(columns, once) for name, columns in models.items()}
    samples: dict[str, dict[str, list[NDArray[np.float64]]]] = {
        name: {key: [] for key in each} for name, each in whole.items()
    }
    chunk = max(1, _AT_ONCE // images)
    for begin in range(0, resamples, chunk):
        weights = _weights(images, min(chunk, resamples - begin), draws)
        for name, columns in models.items():
            for key, values in rates(columns, weights).items():
                samples[name][key].append(values)
    drawn = {name: {key: np.concatenate(each) for key, each in of.items()} for name, of in samples.items()}
    first = next(iter(models))
    results = {}
    for name in models:
        own = {key: _estimates(whole[name][key][0], drawn[name][key], level) for key in whole[name]}
        minus = {
            key: _estimates(whole[name][key][0] - whole[first][key][0], drawn[name][key] - drawn[first][key], level)
            for key in (whole[name] if name != first else ())
        }
        results[name] = (own, minus)
    return results


def rates(columns: Columns, weights: NDArray[np.float64]) -> Rates:
    """Each rate in each sample, (samples, 1 + decisions): the mean over the decisions where it is defined, then each.

    weights: (samples, images), how often each image is in the sample.  With one decision: (samples, 1).
    """
    results = {}
    for name, (part, of) in _RATES.items():
        if part not in columns or (of is not None and of not in columns):
            continue
        counts = weights @ columns[part]
        total = weights.sum(axis=1, keepdims=True) if of is None else weights @ columns[of]
        each = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
        defined = np.isfinite(each)
        mean = np.where(defined, each, 0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)
        mean[~defined.any(axis=1)] = np.nan
        results[name] = mean[:, None] if each.shape[1] == 1 else np.concatenate([mean[:, None], each], axis=1)
    return results


def _weights(images: int, samples: int, draws: np.random.Generator) -> NDArray[np.float64]:
    """(samples, images): how often each image is drawn."""
    chosen = draws.integers(images, size=(samples, images))
    places = chosen + images * np.arange(samples)[:, None]
    return np.bincount(places.ravel(), minlength=samples * images).reshape(samples, images).astype(np.float64)


def _estimates(values: NDArray[np.float64], samples: NDArray[np.float64], level: float) -> list[Estimate | None]:
    """values: (places,).  samples: (resamples, places)."""
    ends = (1 - level) / 2, (1 + level) / 2
    results: list[Estimate | None] = []
    for value, drawn in zip(values.tolist(), samples.T, strict=True):
        between = percentile_interval(drawn, ends) if np.isfinite(value) else None
        results.append(Estimate(value, *between) if between else None)
    return results
