"""The training loop: one step is learning rate, forward, backward, gradients masked, optimiser, after the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from acdc_cli.data.batches import Batch, Loader
from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import Tracker
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.prunable import Layer, zero_counts
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.tasks.task import Task
from acdc_cli.training import checkpoint
from acdc_cli.training.evaluate import Forward, evaluate
from acdc_cli.training.optim import clip_gradients, set_learning_rate
from acdc_cli.training.precision import Precision
from acdc_cli.training.progress import RunProgress, print_epoch, print_header, print_phase_end


@dataclass(frozen=True)
class Settings:
    """What the loop itself is told."""

    epochs: int
    learning_rate: Callable[[float], float]
    """From epochs elapsed, fractions included, to the learning rate."""
    resolution: Callable[[int], int]
    """From the epoch to the side of the training crops, in pixels."""
    accumulate: int = 1
    clip_norm: float | None = None
    log_every: int = 50
    checkpoint_every: int = 1
    keep_phases: bool = False
    metadata: dict[str, Any] | None = None
    """Goes into the header of every saved model."""


class Ledger(Protocol):
    """Counts what the training takes: `cost.ledger.Measured`."""

    total: int
    """FLOPs so far."""

    def add(
        self, sparsifier: Sparsifier[Any], nonzero: Mapping[str, int], epoch: int, side: int, steps: int, images: int
    ) -> object:
        """An epoch that is over; nonzero: weights by parameter name, side: of the images, in pixels."""


@dataclass(frozen=True)
class Parts:
    """What is trained, on what, with what."""

    model: nn.Module
    forward: Forward
    optimizer: Optimizer
    sparsifier: Sparsifier[Any]
    layers: Sequence[Layer]
    task: Task
    precision: Precision
    train: Loader
    val: Loader
    ledger: Ledger | None = None
    """None where the model's operations cannot be counted."""


class Trainer:
    def __init__(self, parts: Parts, settings: Settings, run: RunDir, trackers: Sequence[Tracker]) -> None:
        self._parts = parts
        self._settings = settings
        self._run = run
        self._trackers = trackers
        self._ends: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0
        self._progress = RunProgress(settings.epochs, parts.train.steps, 0)
        parts.sparsifier.attach(parts.optimizer, self)

    def fit(self, first_epoch: int = 0) -> dict[str, Any]:
        """Train from `first_epoch` to the end; returns the summary.

        Raises RunError if the loss stops being a number.
        """
        settings = self._settings
        self._parts.train.warm_up()
        self._parts.val.warm_up()
        self._progress = RunProgress(settings.epochs, self._parts.train.steps, first_epoch)
        print_header()
        for epoch in range(first_epoch, settings.epochs):
            record = self._epoch(epoch)
            print_epoch(record)
            if self._parts.sparsifier.phases.ends(epoch):
                self._end_phase(record)
            for tracker in self._trackers:
                tracker.log(record)
            if (epoch + 1) % settings.checkpoint_every == 0 or epoch + 1 == settings.epochs:
                checkpoint.save_state(self._run.checkpoints, self.state_dict(epoch + 1))
        return {"status": "finished", "epochs": settings.epochs, "seconds": round(self._seconds, 3), **self._ends}

    def state_dict(self, epochs_done: int) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if nothing had happened."""
        parts = self._parts
        return {
            "epoch": epochs_done,
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "sparsifier": parts.sparsifier.state_dict(),
            "precision": parts.precision.state_dict(),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            },
            "ends": self._ends,
            "seconds": self._seconds,
            "train_flops": parts.ledger.total if parts.ledger else None,
            "metadata": self._settings.metadata,
        }

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Returns the epoch to go on with."""
        parts = self._parts
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.sparsifier.load_state_dict(state["sparsifier"])
        parts.precision.load_state_dict(state["precision"])
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random"]["cuda"])
        self._ends = state["ends"]
        self._seconds = state["seconds"]
        if parts.ledger:
            parts.ledger.total = state["train_flops"]
        return int(state["epoch"])

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """As `sparsity.sparsifier.Training` says."""
        # of several ranks each would see its own: they must be averaged before a method may choose by them
        assert not torch.distributed.is_initialized()
        parts = self._parts
        weights = parts.sparsifier.masked.parameters
        was_training = parts.model.training
        parts.model.eval()
        try:
            with parts.train.epoch(moment.epoch, resolution=self._settings.resolution(moment.epoch)) as loaded:
                for images, labels in islice(_pieces(loaded, batch_size), batches):
                    loss = parts.task.loss(parts.forward(images), labels)
                    yield dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        finally:
            parts.model.train(was_training)

    def snapshot(self) -> dict[str, Tensor]:
        """As `sparsity.sparsifier.Training` says."""
        return {name: value.detach().clone() for name, value in self._parts.model.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """As `sparsity.sparsifier.Training` says."""
        self._parts.model.load_state_dict(snapshot)
        for parameter in self._parts.model.parameters():
            for value in self._parts.optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    value.zero_()

    def _epoch(self, epoch: int) -> dict[str, Any]:
        parts, began = self._parts, time.perf_counter()
        loss, learning_rate, images = self._train(epoch)
        trained = time.perf_counter() - began
        if epoch + 1 == self._settings.epochs:
            parts.sparsifier.finish()
        metrics = evaluate(parts.model, parts.forward, parts.val, parts.task, parts.precision)
        last_step = (epoch + 1) * parts.train.steps - 1
        parts.sparsifier.on_epoch_end(Moment(epoch, last_step, self._settings.epochs, parts.train.steps), metrics)
        zeros = zero_counts(parts.layers)
        cost = self._charge(epoch, zeros, images)
        seconds = time.perf_counter() - began
        self._seconds += seconds
        return {
            "epoch": epoch,
            "step": (epoch + 1) * parts.train.steps,
            "phase": parts.sparsifier.phases.at(epoch).kind,
            "lr": learning_rate,
            "resolution": self._settings.resolution(epoch),
            "train_loss": loss,
            "val_loss": _number(metrics.pop("loss")),
            **{name: _number(value) for name, value in metrics.items() if name != "samples"},
            **parts.sparsifier.metrics(),
            **_sparsities(parts.layers, zeros),
            **cost,
            "images_per_second": round(images / trained, 1),
            "seconds": round(seconds, 3),
        }

    def _charge(self, epoch: int, zeros: Mapping[str, tuple[int, int]], images: int) -> dict[str, int]:
        """What the training has taken so far, this epoch included."""
        parts = self._parts
        if parts.ledger is None:
            return {}
        nonzero = {layer.parameter_name: zeros[layer.name][1] - zeros[layer.name][0] for layer in parts.layers}
        side = self._settings.resolution(epoch)
        parts.ledger.add(parts.sparsifier, nonzero, epoch, side, parts.train.steps, images)
        return {"train_flops": parts.ledger.total}

    def _train(self, epoch: int) -> tuple[float, float, int]:
        """One pass over the training set: mean loss in nats, the last learning rate, images seen."""
        parts, settings = self._parts, self._settings
        steps, learning_rate, images = parts.train.steps, 0.0, 0
        phase = parts.sparsifier.phases.at(epoch).kind
        moment = Moment(epoch, epoch * steps, settings.epochs, steps)
        parts.sparsifier.on_epoch_start(moment)
        parts.model.train()
        total = torch.zeros((), dtype=torch.float64, device=next(parts.model.parameters()).device)
        with (
            parts.train.epoch(epoch, resolution=settings.resolution(epoch)) as batches,
            self._progress.epoch(epoch, phase),
        ):
            for index, batch in enumerate(batches):
                moment = Moment(epoch, epoch * steps + index, settings.epochs, steps)
                learning_rate = settings.learning_rate(moment.progress)
                total += self._step(batch, moment, learning_rate)
                images += len(batch.labels)
                self._progress.advance(len(batch.labels))
                if (index + 1) % settings.log_every == 0 or index + 1 == steps:
                    mean = self._mean(total, index + 1, moment, learning_rate)
                    self._progress.show(mean, moment.step + 1)
        return self._mean(total, steps, moment, learning_rate), learning_rate, images

    def _step(self, batch: Batch, moment: Moment, learning_rate: float) -> Tensor:
        """One optimiser step; returns the batch's mean loss, still on the device."""
        parts, settings = self._parts, self._settings
        set_learning_rate(parts.optimizer, learning_rate)
        mean = torch.zeros((), device=batch.images.device)
        pieces = zip(batch.images.chunk(settings.accumulate), batch.labels.chunk(settings.accumulate), strict=True)
        for images, labels in pieces:
            with parts.precision.autocast():
                loss = parts.task.loss(parts.forward(images), labels)
            loss = loss * (len(labels) / len(batch.labels))
            parts.precision.backward(loss)
            mean += loss.detach()
        if (penalty := parts.sparsifier.penalty()) is not None:
            parts.precision.backward(penalty)
        parts.precision.unscale(parts.optimizer)
        if parts.sparsifier.on_gradients(moment):
            if settings.clip_norm is not None:
                clip_gradients(parts.optimizer, settings.clip_norm)
            parts.precision.step(parts.optimizer)
        else:
            parts.precision.end_step()
        parts.sparsifier.after_step(moment)
        parts.optimizer.zero_grad(set_to_none=True)
        return mean

    def _mean(self, total: Tensor, steps: int, moment: Moment, learning_rate: float) -> float:
        mean = total.item() / steps
        if not math.isfinite(mean):
            raise RunError(
                f"the training loss is no number any more: {mean} in epoch {moment.epoch}, step {moment.step}, "
                f"learning rate {learning_rate:.3g}. The last checkpoint is kept; lower optim.lr, set "
                "optim.clip_norm, or use precision bf16 or fp32"
            )
        return mean

    def _end_phase(self, record: dict[str, Any]) -> None:
        """Keep the phase's model and masks; the last sparse and the last dense one are the run's products."""
        kind, parts = record["phase"], self._parts
        label = f"epoch-{record['epoch']:04d}-{kind}"
        if kind != "dense":
            checkpoint.save_masks(self._run.masks / f"{label}.safetensors", parts.sparsifier.masked.masks)
        metadata = (self._settings.metadata or {}) | {"metrics": record}
        if self._settings.keep_phases:
            checkpoint.save_model(self._run.checkpoints / f"{label}.safetensors", parts.model, metadata)
        if kind in ("sparse", "dense"):
            checkpoint.save_model(self._run.model_file(kind), parts.model, metadata)
            self._ends[kind] = record
        print_phase_end(record)


def _pieces(batches: Iterator[Batch], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, exactly `size` at a time; what is left over of a batch falls away."""
    for batch in batches:
        for start in range(0, len(batch.labels) - size + 1, size):
            yield batch.images[start : start + size], batch.labels[start : start + size]


def sparsities(layers: Sequence[Layer]) -> dict[str, Any]:
    """Shares of weights that are exactly zero: over the pruned layers, over all conv and linear layers, and each."""
    return _sparsities(layers, zero_counts(layers))


def _sparsities(layers: Sequence[Layer], counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    pruned = [counts[layer.name] for layer in layers if layer.kept_dense is None]
    return {
        "sparsity": _share(pruned),
        "sparsity_all": _share(list(counts.values())),
        "layers": {name: zeros / total for name, (zeros, total) in counts.items()},
    }


def _number(value: float) -> float | None:
    """None for what is no number: JSON has no word for it."""
    return value if math.isfinite(value) else None


def _share(counts: list[tuple[int, int]]) -> float:
    return sum(zeros for zeros, _ in counts) / max(1, sum(total for _, total in counts))
