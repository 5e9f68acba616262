"""The training loop: one step is learning rate, forward, backward, gradients masked, optimiser, after the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from acdc_cli.data.batches import Batch, Loader
from acdc_cli.errors import DataError, RunError, Stopped
from acdc_cli.runs.run_dir import Kept, RunDir
from acdc_cli.runs.tracker import Tracker
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.prunable import Layer, zero_counts
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.tasks.task import Task
from acdc_cli.training import checkpoint
from acdc_cli.training.distributed import ALONE, Ranks, Replica
from acdc_cli.training.ema import Average
from acdc_cli.training.evaluate import Forward, Probe, evaluate
from acdc_cli.training.memory import out_of_memory
from acdc_cli.training.optim import clip_gradients, set_learning_rate
from acdc_cli.training.precision import Precision
from acdc_cli.training.progress import RunProgress, print_epoch, print_header, print_phase_end
from acdc_cli.training.random_state import random_state, set_random_state
from acdc_cli.training.running import Losses, Running, over_ranks

_GO_ON, _SAVE, _STOP = range(3)
"""What a process wishes to do after a step; the largest of all processes' wishes is done."""


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
    nan_patience: int = 10
    checkpoint_every: int = 1
    checkpoint_minutes: float | None = None
    keep_phases: bool = False
    keep_every: int | None = None
    metadata: dict[str, Any] | None = None
    """Goes into the header of every saved model."""


class Ledger(Protocol):
    """Counts what the training takes: `cost.ledger.Measured`."""

    total: int
    """FLOPs so far."""

    def probe(self, sparsifier: Sparsifier[Any], nonzero: Mapping[str, int], epoch: int, side: int) -> None:
        """An epoch is about to begin in which the method asks for gradients besides its steps'."""

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
    probes: Sequence[Probe] = ()
    """Judged at every epoch's end, after validation; what they measure stands in its record."""
    average: Average | None = None
    """Of the weights; judged after the model, and saved beside it."""
    ledger: Ledger | None = None
    """None where the model's operations cannot be counted."""
    ranks: Ranks = ALONE
    """The processes that train together; the loaders give each its part."""


class Trainer:
    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        run: RunDir,
        trackers: Sequence[Tracker],
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """stop_asked: shall the run be saved and end here? Asked after every step."""
        self._parts = parts
        self._ranks = parts.ranks
        self._replica = Replica(parts.model, parts.forward, parts.ranks)
        self._settings = settings
        self._run = run
        self._trackers = trackers
        self._stop_asked = stop_asked
        self._epoch = 0
        self._step = 0
        """Steps of the epoch that are done."""
        self._finished = False
        """Has the method's `finish` been called?"""
        self._running = Running(next(parts.model.parameters()).device)
        self._ends: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0
        self._saved_at = time.monotonic()
        self._progress = RunProgress(settings.epochs, parts.train.steps, 0)
        parts.sparsifier.attach(parts.optimizer, self)

    def fit(self) -> dict[str, Any]:
        """Train to the end, from the start or from where the loaded state was saved; returns the summary.

        Raises RunError if the loss stays no number, or if memory runs out, and Stopped when the end was asked for.
        """
        settings, steps = self._settings, self._parts.train.steps
        self._parts.train.warm_up()
        self._parts.val.warm_up()
        for probe in self._parts.probes:
            probe.loader.warm_up()
        self._progress = RunProgress(settings.epochs, steps, self._epoch * steps + self._step)
        self._saved_at = time.monotonic()
        print_header()
        for epoch in range(self._epoch, settings.epochs):
            record = self._run_epoch()
            print_epoch(record)
            phase_ends = self._parts.sparsifier.phases.ends(epoch)
            if self._ranks.first:
                self._keep(record, phase_ends)
            for tracker in self._trackers:
                tracker.log(record)
            self._epoch, self._step = epoch + 1, 0
            self._running.begin()
            due = phase_ends or self._epoch % settings.checkpoint_every == 0
            # as within an epoch: two that are saved while losses are no numbers would leave no good one
            if due and not self._look().bad:
                self._save()
        return {"status": "finished", "epochs": settings.epochs, "seconds": round(self._seconds, 3), **self._ends}

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if nothing had happened; to be asked for by all ranks."""
        parts = self._parts
        parts.sparsifier.masked.verify()
        return {
            "epoch": self._epoch,
            "step": self._step,
            "finished": self._finished,
            "processes": self._ranks.gather({"running": self._running.state_dict(), "random": random_state()}),
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "sparsifier": parts.sparsifier.state_dict(),
            "ema": parts.average.state_dict() if parts.average else None,
            "precision": parts.precision.state_dict(),
            "ends": self._ends,
            "seconds": self._seconds,
            "train_flops": parts.ledger.total if parts.ledger else None,
            "metadata": self._settings.metadata,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. On more processes than there were, the new ones keep the random states they have."""
        parts, processes = self._parts, state["processes"]
        self._epoch, self._step, self._finished = state["epoch"], state["step"], state["finished"]
        self._running.load_state_dict(processes[min(self._ranks.rank, len(processes) - 1)]["running"])
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.sparsifier.load_state_dict(state["sparsifier"])
        if parts.average:
            parts.average.load_state_dict(state["ema"])
        parts.precision.load_state_dict(state["precision"])
        if self._ranks.rank < len(processes):
            set_random_state(processes[self._ranks.rank]["random"])
        self._ends = state["ends"]
        self._seconds = state["seconds"]
        if parts.ledger:
            parts.ledger.total = state["train_flops"]

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """As `sparsity.sparsifier.Training` says."""
        parts, ranks = self._parts, self._ranks
        ranks.broadcast_(parts.model.buffers())
        was_training = parts.model.training
        parts.model.eval()
        try:
            with parts.train.epoch(moment.epoch, resolution=self._settings.resolution(moment.epoch)) as loaded:
                whole = ((ranks.whole(batch.images), ranks.whole(batch.labels)) for batch in loaded)
                pieces = islice(_pieces(whole, batch_size), batches)
                while turn := list(islice(pieces, ranks.size)):
                    yield from self._in_turn(turn)
        finally:
            parts.model.train(was_training)

    def _in_turn(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The gradients of as many pieces as there are ranks, or fewer: each rank works out one, and shows all."""
        parts, ranks = self._parts, self._ranks
        weights = parts.sparsifier.masked.parameters
        own: Sequence[Tensor] = ()
        if ranks.rank < len(pieces):
            images, labels = pieces[ranks.rank]
            loss = parts.task.loss(parts.forward(images), labels)
            own = torch.autograd.grad(loss, list(weights.values()))
        for source in range(len(pieces)):
            mine = source == ranks.rank
            shown = own if mine else [torch.empty_like(weight) for weight in weights.values()]
            ranks.broadcast_(shown, source)
            yield dict(zip(weights, shown, strict=True))

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
        if self._parts.average:
            self._parts.average.restart()

    def _run_epoch(self) -> dict[str, Any]:
        parts, epoch, running = self._parts, self._epoch, self._running
        began = time.perf_counter() - running.seconds
        self._train(began)
        if epoch + 1 == self._settings.epochs and not self._finished:
            parts.sparsifier.finish()
            self._finished = True
        metrics = self._validate(began)
        averaged = self._validate_average(began)
        last_step = (epoch + 1) * parts.train.steps - 1
        parts.sparsifier.on_epoch_end(Moment(epoch, last_step, self._settings.epochs, parts.train.steps), metrics)
        zeros = zero_counts(parts.layers)
        cost = self._charge(epoch, zeros, running.images)
        running.seconds = time.perf_counter() - began
        self._seconds += running.seconds
        return {
            "epoch": epoch,
            "step": (epoch + 1) * parts.train.steps,
            "phase": parts.sparsifier.phases.at(epoch).kind,
            "lr": running.learning_rate,
            "resolution": self._settings.resolution(epoch),
            "train_loss": _number(self._losses().mean),
            "val_loss": _number(metrics.pop("loss")),
            **{name: _number(value) for name, value in metrics.items() if name != "samples"},
            **parts.sparsifier.metrics(),
            **_sparsities(parts.layers, zeros),
            **averaged,
            **cost,
            "images_per_second": round(running.images / running.train_seconds, 1),
            "seconds": round(running.seconds, 3),
        }

    def _charge(self, epoch: int, zeros: Mapping[str, tuple[int, int]], images: int) -> dict[str, int]:
        """What the training has taken so far, this epoch included."""
        parts = self._parts
        if parts.ledger is None:
            return {}
        side = self._settings.resolution(epoch)
        parts.ledger.add(parts.sparsifier, self._nonzero(zeros), epoch, side, parts.train.steps, images)
        return {"train_flops": parts.ledger.total}

    def _charge_probes(self, epoch: int) -> None:
        parts = self._parts
        # zeros are counted only where they bear on something: the host waits for it
        if parts.ledger is not None and parts.sparsifier.probed_images(epoch):
            nonzero = self._nonzero(zero_counts(parts.layers))
            parts.ledger.probe(parts.sparsifier, nonzero, epoch, self._settings.resolution(epoch))

    def _nonzero(self, zeros: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """By parameter name."""
        return {layer.parameter_name: zeros[layer.name][1] - zeros[layer.name][0] for layer in self._parts.layers}

    def _train(self, began: float) -> None:
        """The steps that are left of the epoch. began: when it did, by the performance counter."""
        parts, settings, running, epoch = self._parts, self._settings, self._running, self._epoch
        steps, side = parts.train.steps, settings.resolution(epoch)
        if self._step == steps:
            return
        if self._step == 0:
            self._charge_probes(epoch)
            tried = f"what {parts.sparsifier.config.method} does at the start of epoch {epoch}"
            with out_of_memory(tried, "lower what the sparsity block asks for, or take a device with more memory"):
                parts.sparsifier.on_epoch_start(Moment(epoch, epoch * steps, settings.epochs, steps))
        parts.model.train()
        with (
            parts.train.epoch(epoch, self._step, side) as batches,
            self._progress.epoch(epoch, parts.sparsifier.phases.at(epoch).kind, self._step),
        ):
            for batch in self._watched(batches):
                moment = Moment(epoch, epoch * steps + self._step, settings.epochs, steps)
                learning_rate = settings.learning_rate(moment.progress)
                with out_of_memory(self._tried(batch), "raise optim.accumulate, or lower data.batch_size"):
                    loss = self._take_step(batch, moment, learning_rate)
                images = len(batch.labels) * self._ranks.size
                running.add(loss, images, learning_rate)
                self._step += 1
                self._progress.advance(images)
                if self._step % settings.log_every == 0 or self._step == steps:
                    self._progress.show(self._look().mean, moment.step + 1)
                running.seconds = running.train_seconds = time.perf_counter() - began
                self._heed()

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A signal that asks for the end and reaches the processes that draw images, too, ends them: no fault of the
        data. Several ranks have each other to wait for, and end."""
        try:
            yield from batches
        except DataError:
            if self._ranks.size == 1 and self._stop_asked():
                self._heed()
            raise

    def _take_step(self, batch: Batch, moment: Moment, learning_rate: float) -> Tensor:
        """One optimiser step; returns the batch's mean loss, still on the device."""
        parts, settings = self._parts, self._settings
        set_learning_rate(parts.optimizer, learning_rate)
        mean = torch.zeros((), device=batch.images.device)
        all_images, all_labels = (tensor.chunk(settings.accumulate) for tensor in (batch.images, batch.labels))
        for number, (images, labels) in enumerate(zip(all_images, all_labels, strict=True), 1):
            with self._replica.part(last=number == len(all_images)):
                with parts.precision.autocast():
                    loss = parts.task.loss(self._replica.forward(images), labels)
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
        if parts.average:
            parts.average.update(moment.epoch)
        parts.optimizer.zero_grad(set_to_none=True)
        return mean

    def _validate(self, began: float) -> dict[str, float]:
        parts = self._parts
        self._ranks.broadcast_(parts.model.buffers())
        metrics: dict[str, float] = {}
        for probe in (Probe("validation", parts.val, parts.task), *parts.probes):
            # `samples` stays that of the validation
            metrics = self._judge(probe, began) | metrics
        return metrics

    def _validate_average(self, began: float) -> dict[str, float | None]:
        """Of the average what the record holds of the model, with `ema_` before each name; nothing before it begins."""
        parts = self._parts
        if parts.average is None or not parts.average.begun:
            return {}
        self._ranks.broadcast_(parts.average.statistics)
        with parts.average.installed():
            metrics = self._judge(Probe("validation of the average", parts.val, parts.task), began)
            found = {"val_loss": metrics.pop("loss")} | metrics | sparsities(parts.layers)
        return {f"ema_{key}": _number(value) for key, value in found.items() if key not in ("samples", "layers")}

    def _judge(self, probe: Probe, began: float) -> dict[str, float]:
        parts = self._parts

        def between() -> None:
            self._running.seconds = time.perf_counter() - began
            self._heed()

        with out_of_memory("a validation batch", "lower data.val_batch_size"):
            how = (probe.measure, parts.precision, probe.name, between, parts.ranks)
            return evaluate(parts.model, parts.forward, probe.loader, *how)

    def _tried(self, batch: Batch) -> str:
        images, side = batch.images.shape[0], batch.images.shape[-1]
        parts = f", {self._settings.accumulate} parts one after the other" if self._settings.accumulate > 1 else ""
        return f"a batch of {images} images of {side} pixels{parts}"

    def _heed(self) -> None:
        """Save if it is time to, and end if that was asked for: of one process, and all do so at the same step."""
        minutes = self._settings.checkpoint_minutes
        due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        wish = self._ranks.most(_STOP if self._stop_asked() else _SAVE if due else _GO_ON)
        if wish == _STOP:
            self._save()
            raise Stopped(
                f"stopped and saved after step {self._step} of {self._parts.train.steps} of epoch {self._epoch}; "
                f"go on with: acdc train {self._run.path} --resume"
            )
        # while losses are no numbers the last checkpoint may be the last good one
        if wish == _SAVE and not self._look().bad:
            self._save()

    def _save(self) -> None:
        average = self._parts.average
        with average.aside() if average else nullcontext():
            state = self.state_dict()
            if self._ranks.first:
                checkpoint.save_state(self._run.checkpoints, state)
        self._saved_at = time.monotonic()

    def _losses(self) -> Losses:
        return over_ranks([Losses(*each) for each in self._ranks.gather(astuple(self._running.look()))])

    def _look(self) -> Losses:
        losses = self._losses()
        if losses.most_bad >= self._settings.nan_patience:
            raise RunError(
                f"the training loss was no number for {losses.most_bad} steps in a row: epoch {self._epoch}, step "
                f"{self._step} of {self._parts.train.steps}, learning rate {self._running.learning_rate:.3g}, "
                f"last finite loss {losses.last_finite:.4g}. The last good checkpoint is kept; lower optim.lr, set "
                "optim.clip_norm, or use precision bf16 or fp32"
            )
        return losses

    def _keep(self, record: dict[str, Any], phase_ends: bool) -> None:
        """The models and masks that are asked for; the last sparse and the last dense model are the run's products."""
        kind, parts, settings = record["phase"], self._parts, self._settings
        name = Kept.name(record["epoch"], kind)
        metadata = (settings.metadata or {}) | {"metrics": record}
        every = settings.keep_every is not None and (record["epoch"] + 1) % settings.keep_every == 0
        if kind != "dense" and (phase_ends or every):
            checkpoint.save_masks(self._run.masks / name, parts.sparsifier.masked.masks)
        if every or (phase_ends and settings.keep_phases):
            checkpoint.save_model(self._run.checkpoints / name, parts.model, metadata)
        if phase_ends:
            if kind in ("sparse", "dense"):
                checkpoint.save_model(self._run.model_file(kind), parts.model, metadata)
                if parts.average and parts.average.begun:
                    with parts.average.installed():
                        checkpoint.save_model(self._run.model_file(f"{kind}-ema"), parts.model, metadata)
                self._ends[kind] = record
            print_phase_end(record)


def _pieces(batches: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, exactly `size` at a time; what is left over of a batch falls away."""
    for images, labels in batches:
        for start in range(0, len(labels) - size + 1, size):
            yield images[start : start + size], labels[start : start + size]


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
