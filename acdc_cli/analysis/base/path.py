"""Models on the straight lines between consecutive models, and the loss barriers along the way (P2 M)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from acdc_cli.analysis.base.batch_norm import re_estimate
from acdc_cli.analysis.base.evenly import Evenly
from acdc_cli.analysis.base.subject import Loaded
from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.data.batches import Batch, Loader
from acdc_cli.tasks.base.totals import combined, fetched

State = Mapping[str, Tensor]
"""A model's parameters and buffers by name."""


def walk(
    loaded: Loaded,
    states: Sequence[Callable[[], State]],
    images: Mapping[str, Loader],
    settle: Mapping[str, Callable[[], None]],
    points: int = 10,
    workspace: Workspace = UNSAVED,
) -> list[dict[str, Any]]:
    """The task's metrics of every model on the path, on each split, with each kind of batch norm statistics.

    loaded: a model of the architecture, whose weights are overwritten.  states: functions that load the models of the
    path; two models are in memory at a time.  settle: by the name of the statistics, what is done to a model before it
    is evaluated.  points: models between two neighbours.
    """
    state = lru_cache(maxsize=2)(lambda number: states[number]())
    last = (len(states) - 1) * (points + 1)
    rows = []
    for step in range(last + 1):
        number, beyond = divmod(step, points + 1)
        key = f"model {step + 1} of {last + 1}"
        if (judged := workspace.kept(key)) is None:
            share = beyond / (points + 1)
            here = between(state(number), state(number + 1), share) if beyond else state(number)
            judged = _judged(loaded, here, images, settle, workspace, key)
            workspace.keep(key, judged)
        for each in settle:
            for split in images:
                start = f"{each}/{split}/"
                metrics = {
                    name.removeprefix(start): float(judged[name]) for name in sorted(judged) if name.startswith(start)
                }
                rows.append({"position": step / (points + 1), "split": split, "statistics": each, **metrics})
    return rows


def _judged(
    loaded: Loaded,
    state: State,
    images: Mapping[str, Loader],
    settle: Mapping[str, Callable[[], None]],
    workspace: Workspace,
    key: str,
) -> dict[str, Tensor]:
    def add(batch: Batch) -> Mapping[str, Tensor]:
        with loaded.precision.autocast():
            return loaded.task.sums(loaded.forward(batch.inputs), batch.targets)

    judged: dict[str, Tensor] = {}
    for name, settled in settle.items():
        loaded.model.load_state_dict(state)
        loaded.model.eval()
        settled()
        for split, loader in images.items():
            description = f"{key}, {name} statistics, {split}"
            totals = workspace.sums(description, loader, add, description, combined)
            metrics = loaded.task.metrics(fetched(totals), loader.samples)
            judged |= {
                f"{name}/{split}/{each}": torch.tensor(value, dtype=torch.float64) for each, value in metrics.items()
            }
    return judged


def between(start: State, end: State, share: float) -> dict[str, Tensor]:
    """(1 - share)·start + share·end of every floating-point tensor; other tensors, such as batch norm's batch counters,
    come from the nearer model. share: 0 gives start and 1 gives end, bit for bit."""
    nearer = start if share < 0.5 else end
    return {
        name: torch.lerp(tensor, end[name], share) if tensor.is_floating_point() else nearer[name]
        for name, tensor in start.items()
    }


def estimate(loaded: Loaded, images: Evenly) -> None:
    """Sets batch norm's running statistics to their means over these images, in the model's precision."""
    with loaded.precision.autocast(), images.batches() as batches:
        re_estimate(loaded.model, loaded.forward, (shown for shown, _ in batches))


def barrier(losses: Sequence[float]) -> tuple[float, float]:
    """Largest rise of the loss above the straight line between its ends, and its position (NaN if none).

    max over t of L(t) - (1-t)·L(0) - t·L(1); 0 or more, because it is 0 at both ends.
    losses: of models at equal distances, ends included.
    """
    last = len(losses) - 1
    above = [loss - losses[0] - (losses[-1] - losses[0]) * step / last for step, loss in enumerate(losses)]
    inner = max(range(1, last), key=above.__getitem__, default=0)
    return (above[inner], inner / last) if inner and above[inner] > 0 else (0.0, math.nan)
