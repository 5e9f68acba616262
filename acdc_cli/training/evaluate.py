"""Exact metrics of a model over a whole split: each image once, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acdc_cli import console, memory
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet, Preparation
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.tasks.base.abstract_task import Measure, Task
from acdc_cli.tasks.base.further import OnSplit
from acdc_cli.tasks.base.totals import combined, fetched, over_ranks
from acdc_cli.training.compiling import COMPILING, LOG
from acdc_cli.training.device_errors import in_words, mendable
from acdc_cli.training.distributed import ALONE, Ranks
from acdc_cli.training.precision import Precision

Forward = Callable[[Tensor], Tensor]
"""The inputs of a batch to logits: images (batch, 3, height, width), uint8, to (batch, classes)."""

_LOWER = "lower data.val_batch_size (--batch-size of acdc eval)"


def forward_of(model: nn.Module, prepared: Preparation) -> Forward:
    """The model with what is done to its inputs on the device."""

    def forward(inputs: Tensor) -> Tensor:
        logits: Tensor = model(*prepared(inputs, model.training))
        return logits

    return forward


@dataclass(frozen=True)
class Probe:
    """Further samples on which a model is evaluated during training."""

    name: str
    loader: Loader
    """A loader that does not shuffle."""
    measure: Measure


def further_probes(data: DataSet, task: Task, device: torch.device, shard: Shard = UNDIVIDED) -> list[Probe]:
    """The task on the set's further splits."""
    return [Probe(split, data.val_loader(device, split, shard), OnSplit(task, split)) for split in data.further]


def evaluate(
    model: nn.Module,
    forward: Forward,
    loader: Loader,
    measure: Measure,
    precision: Precision,
    description: str = "validation",
    between: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """The measure's metrics, and `samples`; the host waits for the device once, at the end.

    between: called after every batch, equally often in all processes; an exception from it ends the evaluation.
    ranks: the processes that evaluate the model together, each on part of the batches.
    Raises RunError with the size of a batch for which the memory does not suffice.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    samples, rounds = 0, int(ranks.largest(loader.steps))
    with (
        mendable("a batch that is loaded", _LOWER),
        memory.set_aside(model),
        torch.inference_mode(),
        loader.epoch(0) as batches,
        console.progress(description, COMPILING) as bar,
    ):
        shown = bar.add_task(description, total=loader.steps, compiling=LOG)
        for batch in batches:
            with mendable(in_words(batch.inputs, 1), _LOWER):
                with precision.autocast():
                    logits = forward(batch.inputs)
                sums = combined(sums, measure.sums(logits, batch.targets))
            samples += len(batch.targets)
            bar.advance(shown)
            between()
        for _ in range(rounds - loader.steps):
            between()
    model.train(was_training)
    everyone = ranks.gather((samples, fetched(sums)))
    judged = sum(count for count, _ in everyone)
    if judged != loader.samples:
        raise AssertionError(f"evaluated {judged} of {loader.samples} samples")
    return {**measure.metrics(over_ranks([own for _, own in everyone]), judged), "samples": judged}
