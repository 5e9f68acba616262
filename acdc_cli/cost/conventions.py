"""What counts as a FLOP: the named conventions behind the papers' cost columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from acdc_cli.cost.count import Operation

Convention = Literal["A", "B", "C"]
CONVENTION: Convention = "A"
"""The default convention."""

NAMES: dict[Convention, str] = {"A": "weights", "B": "all operations", "C": "RigL"}
"""A: 2 FLOPs for each use of a nonzero weight, of convolutions and linear layers only.

B: A, and attention's products and blurs at 2 per multiply-accumulate, biases of linear layers, 2 per normalised
element, 1 per element of an activation, k² per pooled element. A blur counts the values that it computes: before a
1x1 convolution with stride 2, a quarter of its input (`models.blurpool`).

C: 2L+1 FLOPs per output of convolutions and linear layers, L being the nonzero weights that the output depends on; the
image's padding counts as pixels if the first convolution is strided (RigL's counter, arXiv 1911.11134).
"""


def forward_flops(
    operations: Sequence[Operation], kept: Mapping[str, int | Fraction] | None, convention: Convention
) -> int | Fraction:
    """FLOPs of one image's forward pass, exact.

    kept: nonzero weights by parameter name; layers that it does not name are dense, as are all if it is None.
    """
    count = _COUNTS[convention]
    return exact(sum(count(operation, _macs(operation, kept or {})) for operation in operations))


def _macs(operation: Operation, kept: Mapping[str, int | Fraction]) -> int | Fraction:
    """Multiply-accumulates by nonzero weights."""
    if operation.parameter_name is None or operation.parameter_name not in kept:
        return operation.macs
    return exact(Fraction(operation.macs * kept[operation.parameter_name], operation.weights))


def exact(number: int | Fraction) -> int | Fraction:
    """Whole numbers as `int`, which adds many times faster."""
    return number.numerator if number.denominator == 1 else number


def _of_weights(operation: Operation, macs: int | Fraction) -> int | Fraction:
    return 2 * macs if operation.kind in ("conv", "linear") else 0


def _of_all(operation: Operation, macs: int | Fraction) -> int | Fraction:
    match operation.kind:
        case "conv" | "attention" | "blur":
            return 2 * macs
        case "linear":
            return 2 * macs + operation.elements * operation.bias
        case "norm":
            return 2 * operation.elements
        case "activation":
            return operation.elements
        case "pool":
            return operation.taps * operation.elements


def _of_rigl(operation: Operation, macs: int | Fraction) -> int | Fraction:
    if operation.kind not in ("conv", "linear"):
        return 0
    return exact(Fraction(operation.same_positions, operation.positions) * (2 * macs + operation.elements))


_COUNTS = {"A": _of_weights, "B": _of_all, "C": _of_rigl}
