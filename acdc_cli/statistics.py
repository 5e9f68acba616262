"""Statistics over runs: mean, sample deviation, pooled deviation, the paired t-test, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev, variance
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of no values."""
    given = list(values)
    return fmean(given) if given else nan


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True)
class Spread:
    """Values of runs that differ in their seed alone; at least one."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None for one value."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean; None for one value."""
        return None if self.std is None else self.std / sqrt(self.n)


def pooled_std(*samples: Spread) -> float | None:
    """The standard deviation of the samples around their own means; None if no sample has two values."""
    known = [sample for sample in samples if sample.n > 1]
    if not known:
        return None
    squares = sum((sample.n - 1) * variance(sample.values) for sample in known)
    return sqrt(squares / sum(sample.n - 1 for sample in known))


def distance(sample: Spread, reference: Spread) -> float | None:
    """How far the mean lies above the reference's, in pooled standard deviations.

    None if either has fewer than two values, or if all values of each are equal.
    """
    pooled = pooled_std(sample, reference) if min(sample.n, reference.n) > 1 else None
    return (sample.mean - reference.mean) / pooled if pooled else None


def rises(before: Sequence[float], last: Sequence[float]) -> bool:
    """Whether the mean of `last` exceeds that of `before` by more than one pooled standard deviation.

    False if either has fewer than two values: one seed proves nothing.
    """
    if min(len(before), len(last)) < 2:
        return False
    pooled = pooled_std(Spread(tuple(before)), Spread(tuple(last)))
    assert pooled is not None
    return mean(last) - mean(before) > pooled


@dataclass(frozen=True)
class Paired:
    """The difference between two groups over the seeds that they share."""

    seeds: list[int]
    mean: float | None = None
    std: float | None = None
    """The sample standard deviation (n - 1) of the differences."""
    t: float | None = None
    p: float | None = None
    """Two-sided: the probability of a t at least as far from zero if the true mean difference is zero."""
    low: float | None = None
    high: float | None = None
    """The 95 % confidence interval of the mean difference."""
    why_not: str | None = None
    """Why there is no test."""


def paired(above: Mapping[int, float], below: Mapping[int, float]) -> Paired:
    """The paired t-test of `above` minus `below`, values by seed."""
    seeds = sorted(above.keys() & below.keys())
    if len(seeds) < 2:
        few = "one seed" if seeds else "no seed"
        return Paired(seeds, mean=above[seeds[0]] - below[seeds[0]] if seeds else None, why_not=f"{few} in common")
    differences = [above[seed] - below[seed] for seed in seeds]
    mean, std = fmean(differences), stdev(differences)
    # equal differences, up to rounding
    if std <= 1e-12 * max(abs(value) for value in [*above.values(), *below.values()]):
        return Paired(seeds, mean, std, why_not="the differences are all equal")
    # here, because it takes half a second
    from scipy import stats

    # not `ttest_rel`, whose variances of tiny differences vanish
    student, error = stats.t(len(seeds) - 1), std / sqrt(len(seeds))
    t, reach = mean / error, float(student.ppf(0.975)) * error
    return Paired(seeds, mean, std, t, float(2 * student.sf(abs(t))), mean - reach, mean + reach)


def percentile_interval(
    samples: NDArray[np.float64] | Sequence[float], ends: tuple[float, float] = (0.025, 0.975)
) -> tuple[float, float] | None:
    """The percentiles of bootstrap samples, of those that are finite (Efron and Tibshirani 1993, 13.3); None without
    any.

    ends: as fractions; by default those of the 95 % interval.
    """
    # here, because commands that need no interval start without it
    import numpy as np

    defined = np.asarray(samples)[np.isfinite(samples)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, ends).tolist()
    return low, high
