"""The paired t-test: whether two ways to train differ by more than their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Paired:
    """A paired t-test of how far one group lies above another, over the seeds that both have once."""

    seeds: list[int]
    mean: float | None = None
    std: float | None = None
    """Of the differences; the sample's (n - 1)."""
    t: float | None = None
    p: float | None = None
    """Two-sided: how often differences whose true mean is zero would give a t as far from zero."""
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
    # what rounding leaves of none
    if std <= 1e-12 * max(abs(value) for value in [*above.values(), *below.values()]):
        return Paired(seeds, mean, std, why_not="the differences are all equal")
    # here, because it takes half a second
    from scipy import stats

    # not `ttest_rel`, whose variances of tiny differences vanish
    student, error = stats.t(len(seeds) - 1), std / math.sqrt(len(seeds))
    t, reach = mean / error, float(student.ppf(0.975)) * error
    return Paired(seeds, mean, std, t, float(2 * student.sf(abs(t))), mean - reach, mean + reach)
