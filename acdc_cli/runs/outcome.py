"""A run's final numbers, from the files in its directory; reads no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import safetensors

from acdc_cli import files
from acdc_cli.errors import RunError
from acdc_cli.quantities import Measures
from acdc_cli.runs.run_dir import RunDir


@dataclass(frozen=True)
class Outcome:
    finished: bool
    epochs: int
    """Number of finished epochs."""
    values: Mapping[str, float | None]
    """None means unknown. The task's headline (`top1`) and so on belong to the run's main model, `sparse_top1` and
    `dense_top1` to its two models. `nonzero` counts conv and linear weights. FLOPs are those planned (`nominal`) and
    those counted with the actual weights (`measured`); inference FLOPs are for one image."""


def outcome(run: RunDir, measures: Measures, kind: Literal["sparse", "dense"] | None = None) -> Outcome:
    """The final numbers, or for an unfinished run those of its latest epoch of each kind.

    measures: those of the run's task.
    kind: the model that `top1` and so on describe; None: the sparse one, if the run makes one.
    Raises RunError if a file is damaged.
    """
    records, summary = run.records(), run.final() or {}
    judged = (measures.headline.key, "val_loss", measures.confidence.key)
    ends = {each: summary[each] for each in ("sparse", "dense") if summary.get(each)}
    last = ends.get("sparse") or ends.get("dense") or {}
    if not summary:
        validated = [record for record in records if record.get(measures.headline.key) is not None] or records
        ends = {record["phase"]: record for record in validated}
        last = validated[-1] if validated else {}
    if kind:
        last = ends.get(kind, {})
    values = {key: last.get(key) for key in (*judged, "train_loss", "train_cross_entropy", "sparsity", "sparsity_all")}
    for each in ("sparse", "dense"):
        values |= {f"{each}_{key}": ends.get(each, {}).get(key) for key in judged}
    values["nonzero"] = _nonzero(run, "sparse" if last is ends.get("sparse") else "dense", last) if summary else None
    cost = summary.get("cost") or {}
    for book in ("nominal", "measured"):
        values |= {f"{key}_{book}": (cost.get(book) or {}).get(key) for key in ("inference_flops", "train_flops")}
    values["seconds"] = summary.get("seconds", math.fsum(record["seconds"] for record in records))
    return Outcome(bool(summary), len(records), values)


def _nonzero(run: RunDir, kind: str, last: Mapping[str, Any]) -> int | None:
    """Nonzero conv and linear weights; None if the file with the weights, needed for their shapes, is missing."""
    file = run.model_file(kind)
    if not last or not file.exists():
        return None
    try:
        files.open_regular(file).close()
        with safetensors.safe_open(file, framework="numpy") as tensors:
            names, count = set(tensors.keys()), 0
            for layer, sparsity in last["layers"].items():
                # torch's attention holds its projection weights itself
                name = f"{layer}.weight" if f"{layer}.weight" in names else f"{layer}_weight"
                count += round((1 - sparsity) * math.prod(tensors.get_slice(name).get_shape()))
            return count
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{file} is damaged ({error}); restore a copy") from error
