"""Signs of a collapse in a run's records: a layer without weights, or weights that explode within a phase.

Behind batch norm, a filter that returns from all zeros gets a gradient multiplied by up to 1/sqrt(eps). A global
ranking then ranks its weights as the most important and empties other layers (docs/results).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GROWTH = 100
"""Growth of the largest weight within a phase that counts as an explosion."""
REMEDY = "set sparsity.revive: clipped (acdc, dpf) or optim.clip_norm: 1; docs/results explains why"


def sign_of_collapse(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The first sign in these records, one per epoch from the first on; None if there is none.

    Records without `largest_weight`, from acdc before 0.2, show no growth.
    """
    start = None
    for number, record in enumerate(records):
        before = records[number - 1] if number else record
        if empty := [name for name, share in record.get("layers", {}).items() if share == 1]:
            more = f" and {len(empty) - 1} more have" if len(empty) > 1 else " has"
            return f"{empty[0]}{more} no weight left after epoch {record['epoch']}"
        if number == 0 or record["phase"] != before["phase"]:
            start = before.get("largest_weight")
        largest = record.get("largest_weight")
        if start and largest and largest >= GROWTH * start:
            return (
                f"the largest weight grew from {start:.3g} to {largest:.3g} in the {record['phase']} phase of epoch "
                f"{record['epoch']}"
            )
    return None
