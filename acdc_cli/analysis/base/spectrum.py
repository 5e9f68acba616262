"""Eigenvalues and trace of a symmetric matrix that is known only by its products with vectors."""

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
"""The matrix-vector product: (entries,) to (entries,), float64."""


@dataclass(frozen=True)
class Eigenvalue:
    history: list[float]
    """The Rayleigh quotient v·Hv after each iteration."""
    residual: float
    """‖Hv-λv‖/|λ|: some eigenvalue of H is within this fraction of λ."""
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
    """(the largest eigenvalue, the one of largest modulus, λ). If λ is negative, a second iteration finds the largest
    eigenvalue of H + |λ|I, which is H's largest plus |λ| and its own largest in modulus.

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

    Converged if the relative change of the quotient and the square of its residual are at most the tolerance. The two
    are about equal when the iteration converges; between eigenvalues of opposite sign the quotient may stand still
    although the residual is large.
    Raises RunError if H is not finite.
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
        # fetched together, because each fetch waits for the device
        fetched = torch.stack([quotient, (image - quotient * vector).norm(), following.norm()])
        value, error, length = fetched.tolist()
        if not math.isfinite(length):
            raise RunError(f"{key}: the loss's curvature is NaN or infinite; check whether the weights diverged")
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
    """The trace of H: the mean of z·Hz over random z of ±1 where the mask is True, and its standard error.

    mask: (entries,), bool.  samples: 0 gives NaN for both, 1 gives NaN for the error.
    """
    key = f"{key}: trace"
    state = workspace.kept(key)
    quadratic_forms: list[float] = [] if state is None else state["found"].tolist()
    for index in range(len(quadratic_forms), samples):
        signs = 2.0 * torch.randint(2, mask.shape, generator=generator(seed, index), dtype=torch.float64) - 1
        signs = signs.to(mask.device) * mask
        quadratic_forms.append(float(signs @ product(signs)))
        workspace.keep(key, {"found": _double(quadratic_forms)})
    if not quadratic_forms:
        return math.nan, math.nan
    products = Spread(tuple(quadratic_forms))
    return products.mean, math.nan if products.standard_error is None else products.standard_error


def generator(*seed: int) -> torch.Generator:
    """A generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _double(values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
