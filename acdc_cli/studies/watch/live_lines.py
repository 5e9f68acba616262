"""Watched runs as lines of text: progress, the latest numbers, and curves drawn with block characters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from acdc_cli.quantities import Quantity
from acdc_cli.runs.run_table import percent, result, since, span
from acdc_cli.statistics import mean_of_known
from acdc_cli.studies.watch.state import Watched

_BLOCKS = " ▁▂▃▄▅▆▇█"
_PHASES = {"dense": "·", "ramp": "░", "sparse": "▓"}
_LABEL = 11
_LOSSES = (("train loss", "train_loss", 1.0), ("val loss", "val_loss", 1.0))


def lines(watched: Sequence[Watched], gpus: Sequence[str], width: int, now: float) -> list[str]:
    """width: columns of the terminal."""
    shown = [line for each in watched for line in (*_of_run(each, width, now), "")]
    return [*shown, *gpus] if gpus else shown[:-1]


def _of_run(run: Watched, width: int, now: float) -> list[str]:
    seen = run.seen
    facts = [
        seen.status,
        f"epoch {seen.epoch} of {seen.epochs or '?'}",
        *([f"{seen.phase} phase"] if seen.phase else []),
        f"changed {since(seen.seen, now)} ago",
        *([f"about {span(run.left)} left"] if run.left is not None else []),
    ]
    head = [str(seen.path), "  " + " · ".join(facts), *([f"  {seen.note}"] if seen.note else [])]
    if not run.records:
        return head
    last = run.records[-1]
    loss, rate = last["train_loss"], last.get("lr")
    numbers = [
        f"loss {'NaN' if loss is None else format(loss, '.4f')}",
        f"{seen.headline.common.name} {result(seen)}{' %' if seen.headline.unit == '%' else ''}",
        f"zeros {percent(last['sparsity'])} %",
        *([f"lr {rate:.2e}"] if rate else []),
        f"{span(last['seconds'])} an epoch",
    ]
    return [*head, "  " + " · ".join(numbers), *_curves(run.records, seen.headline, width - _LABEL - 22)]


def _curves(records: Sequence[Mapping[str, Any]], headline: Quantity, width: int) -> list[str]:
    drawn = []
    for label, key, scale in (*_LOSSES, (_label(headline), headline.key, headline.scale)):
        values = [None if record.get(key) is None else scale * record[key] for record in records]
        known = [value for value in values if value is not None]
        if known:
            # an epoch without validation shows the one before
            held = values if key == "train_loss" else list(accumulate(values, lambda a, b: a if b is None else b))
            drawn.append(f"  {label:<{_LABEL}}{blocks(held, width)}  {known[0]:.4g} → {known[-1]:.4g}")
    phases = "".join(_PHASES.get(record["phase"], "·") for record in _sampled(records, width))
    return [*drawn, f"  {'phase':<{_LABEL}}{phases}  · dense ▓ sparse"]


def _label(headline: Quantity) -> str:
    names = (headline.head, headline.common.head, headline.short)
    return next((name for name in names if len(name) < _LABEL), headline.short)


def blocks(values: Sequence[float | None], width: int) -> str:
    """One character for each value, or for the mean of neighbours if there are more than `width`; a blank for none.

    The lowest block is the smallest of the drawn values, the highest the largest.
    """
    means = [mean_of_known(part) for part in _parts(values, width)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return " " * len(means)
    low, high = min(known), max(known)
    steps = len(_BLOCKS) - 2
    spread = high - low or math.inf
    return "".join(" " if mean is None else _BLOCKS[1 + round(steps * (mean - low) / spread)] for mean in means)


def _parts(values: Sequence[Any], width: int) -> list[Sequence[Any]]:
    """Consecutive parts of nearly equal length, at most `width` of them."""
    count = min(len(values), max(1, width))
    edges = [len(values) * number // count for number in range(count + 1)]
    return [values[start:end] for start, end in pairwise(edges)]


def _sampled(values: Sequence[Any], width: int) -> list[Any]:
    return [part[0] for part in _parts(values, width)]
