"""Exact metrics of a model over a whole split: each image once, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acdc_cli import console, memory
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import Preparation
from acdc_cli.tasks.base.task import Measure
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
    """Further images on which a model is evaluated during training."""

    name: str
    loader: Loader
    """A loader that does not shuffle."""
    measure: Measure


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
    totals: dict[str, Tensor] = {}
    samples, rounds = 0, int(ranks.largest(loader.steps))
    with (
        mendable("a batch that is loaded", _LOWER),
        memory.aside(model),
        torch.inference_mode(),
        loader.epoch(0) as batches,
        console.progress(description, COMPILING) as bar,
    ):
        shown = bar.add_task(description, total=loader.steps, compiling=LOG)
        for batch in batches:
            with mendable(in_words(batch.inputs, 1), _LOWER):
                with precision.autocast():
                    logits = forward(batch.inputs)
                for name, value in measure.sums(logits, batch.targets).items():
                    totals[name] = totals[name] + value if name in totals else value
            samples += len(batch.targets)
            bar.advance(shown)
            between()
        for _ in range(rounds - loader.steps):
            between()
    model.train(was_training)
    values = torch.stack(list(totals.values())).tolist() if totals else []
    everyone = ranks.gather((samples, dict(zip(totals, values, strict=True))))
    judged = sum(count for count, _ in everyone)
    if judged != loader.samples:
        raise AssertionError(f"evaluated {judged} of {loader.samples} samples")
    # a process may have had no batch
    names = next(sums for count, sums in everyone if count)
    return measure.metrics({name: sum(sums.get(name, 0.0) for _, sums in everyone) for name in names}, judged) | {
        "samples": judged
    }
