"""An epoch's record, one line of metrics.jsonl, and what the epoch adds to the run's measured cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from acdc_cli.sparsity.prunable import Layer, extent, zero_counts
from acdc_cli.training.parts import Parts
from acdc_cli.training.running import Losses, Running


def epoch_record(
    parts: Parts,
    epoch: int,
    running: Running,
    losses: Losses,
    metrics: Mapping[str, float],
    average_metrics: Mapping[str, float | None],
) -> dict[str, Any]:
    """The record of an epoch that has just ended. Charges its steps, and stops its clock.

    losses: of the whole epoch.  metrics: of the validation, empty if there was none.
    average_metrics: those of the average by their names in the record, empty if there was no validation of it.
    """
    zeros = zero_counts(parts.layers)
    cost = {}
    if parts.cost is not None:
        side, steps = parts.resolution(epoch), parts.train.steps
        parts.cost.add(parts.sparsifier, nonzero_weights(parts.layers, zeros), epoch, side, steps, running.images)
        cost = {"train_flops": parts.cost.total}
    running.tick()
    return {
        "epoch": epoch,
        "step": (epoch + 1) * parts.train.steps,
        "phase": parts.sparsifier.phases.at(epoch).kind,
        "lr": running.learning_rate,
        parts.samples.size_key: parts.resolution(epoch),
        "train_loss": finite_or_none(losses.mean),
        "train_cross_entropy": finite_or_none(losses.unsmoothed),
        **_metrics_by_name(parts, metrics),
        **parts.sparsifier.metrics(),
        **asdict(extent(parts.layers)),
        **_sparsities(parts.layers, zeros),
        **average_metrics,
        **cost,
        parts.samples.speed_key(): round(running.images / running.train_seconds, 1),
        "seconds": round(running.seconds, 3),
    }


def charge_probes(parts: Parts, epoch: int) -> None:
    """Charge the gradients that the method is about to ask for at the start of this epoch."""
    # zeros are counted only where they affect the cost: the host waits for the count
    images = parts.sparsifier.cost(epoch, parts.train.steps).probed_images
    if parts.cost is not None and images:
        nonzero = nonzero_weights(parts.layers, zero_counts(parts.layers))
        parts.cost.probe(images, nonzero, parts.resolution(epoch))


def nonzero_weights(layers: Sequence[Layer], zeros: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Nonzero weights by parameter name.  zeros: from `zero_counts`, by layer name."""
    return {layer.parameter_name: zeros[layer.name][1] - zeros[layer.name][0] for layer in layers}


def sparsities(layers: Sequence[Layer]) -> dict[str, Any]:
    """Zero fractions: `sparsity` over the pruned layers, `sparsity_all` over all layers, `layers` of each by name."""
    return _sparsities(layers, zero_counts(layers))


def finite_or_none(value: float) -> float | None:
    """None for NaN and infinity, which JSON cannot write."""
    return value if math.isfinite(value) else None


def _metrics_by_name(parts: Parts, metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics of the task and of all probes by their names in the record; None where they were not measured."""
    measures = (parts.task, *(probe.measure for probe in parts.probes))
    names = [name for measure in measures for name in measure.names]
    return {"val_loss" if name == "loss" else name: finite_or_none(metrics.get(name, math.nan)) for name in names}


def _sparsities(layers: Sequence[Layer], zeros: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    pruned = [zeros[layer.name] for layer in layers if layer.kept_dense is None]
    return {
        "sparsity": _fraction(pruned),
        "sparsity_all": _fraction(list(zeros.values())),
        "layers": {name: count / total for name, (count, total) in zeros.items()},
    }


def _fraction(zeros: Sequence[tuple[int, int]]) -> float:
    return sum(count for count, _ in zeros) / max(1, sum(total for _, total in zeros))
