"""Nested blocks as one mapping from dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim.lr": 0.1}` from `{"optim": {"lr": 0.1}}`."""
    values: dict[str, Any] = {}
    for key, value in block.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
