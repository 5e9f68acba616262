"""How the sparsity rises over a run."""

from __future__ import annotations


def cubic(t: float, end: float, target: float) -> float:
    """GMP's sparsity s(t) = s_f (1 - (1 - t/T)^3), from 0 at t = 0 to exactly `target` from T = `end` on.

    arXiv 1710.01878, eq. 1, with initial sparsity 0.
    """
    if t >= end:
        return target
    return target * (1 - (1 - max(t, 0) / end) ** 3)
