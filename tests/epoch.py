"""An epoch's record, as far as readers rely on it."""

from __future__ import annotations

from typing import Any

_LEAST = {
    "phase": "sparse",
    "train_loss": 0.5,
    "top1": 0.9,
    "sparsity": 0.9,
    "mask_sparsity": 0.9,
    "seconds": 30.0,
}


def recorded(epoch: int, **values: Any) -> dict[str, Any]:
    return {"epoch": epoch, **_LEAST, **values}
