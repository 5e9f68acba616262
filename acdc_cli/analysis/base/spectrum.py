"""Eigenvalues and trace of a symmetric matrix of which only its products with vectors are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.errors import RunError
from acdc_cli.statistics import Spread

Product = Callable[[Tensor], Tensor]
"""What the matrix makes of a vector: (entries,) to (entries,), float64."""


@dataclass(frozen=True)
class Eigenvalue:
    history: list[float]
    """The Rayleigh quotient v·Hv after each iteration."""
    residual: float
    """‖Hv-λv‖/|λ|: an eigenvalue of H lies no further from λ than this share of it."""
    converged: bool

    @property
    def value(self) -> float:
        return self.history[-1]

    def numbers(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "iterations": len(self.history),
            "converged": self.converged,
            "residual": self.residual,
            "history": self.history,
        }


def largest_eigenvalue(
    product: Product,
    start: Tensor,
    iterations: int = 20,
    tolerance: float = 1e-3,
    workspace: Workspace = UNSAVED,
    key: str = "eigenvalue",
) -> tuple[Eigenvalue, Eigenvalue]:
    """(the largest, that of largest modulus). Where the latter, λ, is negative, the largest of H + |λ|I is sought too:
    it is H's largest plus |λ|, and none is larger in modulus.

    start: (entries,), float64.
    """
    dominant = power_iteration(product, start, iterations, tolerance, 0.0, workspace, f"{key}: dominant eigenvalue")
    if dominant.value >= 0:
        return dominant, dominant
    shift = -dominant.value
    return power_iteration(
        product, start, iterations, tolerance, shift, workspace, f"{key}: largest eigenvalue"
    ), dominant


def power_iteration(
    product: Product,
    start: Tensor,
    iterations: int = 20,
    tolerance: float = 1e-3,
    shift: float = 0.0,
    workspace: Workspace = UNSAVED,
    key: str = "eigenvalue",
) -> Eigenvalue:
    """The eigenvalue λ of H with the largest |λ + shift|: v <- (Hv + shift·v) / ‖Hv + shift·v‖.

    Converged where the quotient's relative change and the square of its residual are at most the tolerance: the two
    are about equal where the iteration converges, but between eigenvalues of opposite sign a quotient may stand still.
    Raises RunError where H is not finite.
    """
    vector, history, residual = start / start.norm(), list[float](), math.inf
    if (state := workspace.kept(key)) is not None:
        vector, history, residual = (
            state["vector"].to(start.device),
            state["history"].tolist(),
            float(state["residual"]),
        )
    while len(history) < iterations and not _is_converged(history, residual, tolerance):
        image = product(vector)
        following = image + shift * vector
        quotient = vector @ image
        # fetched together, because the host waits for the device each time
        found = torch.stack([quotient, (image - quotient * vector).norm(), following.norm()])
        value, error, length = found.tolist()
        if not math.isfinite(length):
            raise RunError(f"{key}: the loss's curvature is not finite; have the weights diverged?")
        residual = error / abs(value) if value else (math.inf if error else 0.0)
        vector = following / length if length else vector
        history.append(value)
        workspace.keep(key, {"vector": vector, "history": _double(history), "residual": _double(residual)})
    return Eigenvalue(history, residual, _is_converged(history, residual, tolerance))


def _is_converged(history: Sequence[float], residual: float, tolerance: float) -> bool:
    if len(history) < 2:
        return False
    return abs(history[-1] - history[-2]) <= tolerance * abs(history[-1]) and residual**2 <= tolerance


def hutchinson(
    product: Product, mask: Tensor, samples: int = 10, seed: int = 0, workspace: Workspace = UNSAVED, key: str = "model"
) -> tuple[float, float]:
    """The trace of H as the mean of z·Hz over random z of ±1 where the mask is set, and that mean's standard error.

    mask: (entries,), bool.  samples: 0 gives NaN twice, 1 no error.
    """
    key = f"{key}: trace"
    state = workspace.kept(key)
    found: list[float] = [] if state is None else state["found"].tolist()
    for index in range(len(found), samples):
        signs = 2.0 * torch.randint(2, mask.shape, generator=generator(seed, index), dtype=torch.float64) - 1
        signs = signs.to(mask.device) * mask
        found.append(float(signs @ product(signs)))
        workspace.keep(key, {"found": _double(found)})
    if not found:
        return math.nan, math.nan
    products = Spread(tuple(found))
    return products.mean, math.nan if products.standard_error is None else products.standard_error


def generator(*seed: int) -> torch.Generator:
    """On the CPU, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _double(values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
