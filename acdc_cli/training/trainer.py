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
from acdc_cli.training.device_errors import mendable
from acdc_cli.training.distributed import ALONE, Ranks, Replica
from acdc_cli.training.ema import Average
from acdc_cli.training.evaluate import Forward, Probe, evaluate
from acdc_cli.training.optim import clip_gradients, set_learning_rate
from acdc_cli.training.precision import Precision
from acdc_cli.training.progress import RunProgress, print_epoch, print_header, print_phase_end, tell_compiled
from acdc_cli.training.random_state import random_state, set_random_state
from acdc_cli.training.running import Losses, Running, over_ranks

_CONTINUE, _SAVE, _STOP = range(3)
"""What a rank requests after a step; the strongest request of any rank wins."""


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
    eval_every: int = 1
    checkpoint_every: int = 1
    checkpoint_minutes: float | None = None
    keep_phases: bool = False
    keep_every: int | None = None
    metadata: dict[str, Any] | None = None
    """Goes into the header of every saved model."""


class Ledger(Protocol):
    """Counts what the training takes: `cost.training_cost.Measured`."""

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
        self._replica = Replica(parts.model, parts.forward, parts.ranks, settings.accumulate)
        self._settings = settings
        self._run = run
        self._trackers = trackers
        self._stop_asked = stop_asked
        self._epoch = 0
        self._step = 0
        """Steps of the epoch that are done."""
        self._finished = False
        """Has the method's `finish` been called?"""
        self._running = Running()
        self._ends: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0
        self._saved_at = time.monotonic()
        self._trained = [weight for group in parts.optimizer.param_groups for weight in group["params"]]
        self._progress = RunProgress(settings.epochs, parts.train.steps, 0)
        self._requested: Callable[[], float] = lambda: _CONTINUE
        """The strongest request of any rank, after the step before."""
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
            record |= tell_compiled()
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
        self._requested()
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
            # copies, because a CUDA graph writes its next gradients to the same memory
            own = [gradient.clone() for gradient in torch.autograd.grad(loss, list(weights.values()))]
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
        if epoch + 1 < self._settings.epochs:
            parts.train.prepare(epoch + 1, self._settings.resolution(epoch + 1))
        metrics, averaged = {}, {}
        if self._is_judged(epoch):
            metrics, averaged = self._validate(began), self._validate_average(began)
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
            **self._judgement(metrics),
            **parts.sparsifier.metrics(),
            **_sparsities(parts.layers, zeros),
            **averaged,
            **cost,
            "images_per_second": round(running.images / running.train_seconds, 1),
            "seconds": round(running.seconds, 3),
        }

    def _is_judged(self, epoch: int) -> bool:
        """Whether the epoch ends with a validation: every so many-th does, and each that ends a phase or is kept."""
        settings = self._settings
        if self._parts.sparsifier.phases.ends(epoch) or epoch + 1 == settings.epochs:
            return True
        return any(every and (epoch + 1) % every == 0 for every in (settings.eval_every, settings.keep_every))

    def _judgement(self, metrics: Mapping[str, float]) -> dict[str, float | None]:
        """Every measure's metrics by their names in the record; None for all of an epoch without validation."""
        measures = (self._parts.task, *(probe.measure for probe in self._parts.probes))
        names = [name for measure in measures for name in measure.names]
        return {"val_loss" if name == "loss" else name: _number(metrics.get(name, math.nan)) for name in names}

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
            with mendable(tried, "lower what the sparsity block asks for, or take a device with more memory"):
                parts.sparsifier.on_epoch_start(Moment(epoch, epoch * steps, settings.epochs, steps))
        parts.model.train()
        with (
            parts.train.epoch(epoch, self._step, side) as batches,
            self._progress.epoch(epoch, parts.sparsifier.phases.at(epoch).kind, self._step),
        ):
            for batch in self._watched(batches):
                moment = Moment(epoch, epoch * steps + self._step, settings.epochs, steps)
                learning_rate = settings.learning_rate(moment.progress)
                with mendable(self._tried(batch), "raise optim.accumulate, or lower data.batch_size"):
                    loss = self._take_step(batch, moment, learning_rate)
                images = len(batch.labels) * self._ranks.size
                running.add(loss, images, learning_rate)
                self._step += 1
                self._progress.advance(images)
                if self._step % settings.log_every == 0 or self._step == steps:
                    self._progress.show(self._look().mean, moment.step + 1)
                running.seconds = running.train_seconds = time.perf_counter() - began
                self._heed_requests()

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A signal that asks for the end and reaches the processes that draw images, too, ends them: no fault of the
        data. Several ranks have each other to wait for, and end."""
        try:
            yield from batches
        except DataError:
            if self._ranks.size == 1 and self._stop_asked():
                self._heed_requests()
            raise

    def _take_step(self, batch: Batch, moment: Moment, learning_rate: float) -> Tensor:
        """One optimiser step; returns the batch's mean loss, still on the device."""
        parts, settings = self._parts, self._settings
        set_learning_rate(parts.optimizer, learning_rate)
        mean = self._backward(batch.images, batch.labels) if settings.accumulate == 1 else self._accumulated(batch)
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
        for weight in self._trained:
            weight.grad = None
        return mean

    def _backward(self, images: Tensor, labels: Tensor, share: float = 1.0) -> Tensor:
        """The gradients of `share` times the mean loss, added to those that are there; returns that loss, detached."""
        parts = self._parts
        with parts.precision.autocast():
            loss = parts.task.loss(self._replica.forward(images), labels)
        if share != 1:
            loss = loss * share
        parts.precision.backward(loss)
        return loss.detach()

    def _accumulated(self, batch: Batch) -> Tensor:
        """The gradients of the batch's mean loss, part after part."""
        all_images, all_labels = (tensor.chunk(self._settings.accumulate) for tensor in (batch.images, batch.labels))
        mean = torch.zeros((), device=batch.images.device)
        for number, (images, labels) in enumerate(zip(all_images, all_labels, strict=True), 1):
            with self._replica.part(last=number == len(all_images)):
                mean += self._backward(images, labels, len(labels) / len(batch.labels))
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
            self._heed_requests()

        with mendable("a validation batch", "lower data.val_batch_size"):
            how = (probe.measure, parts.precision, probe.name, between, parts.ranks)
            return evaluate(parts.model, parts.forward, probe.loader, *how)

    def _tried(self, batch: Batch) -> str:
        images, side = batch.images.shape[0], batch.images.shape[-1]
        parts = f", {self._settings.accumulate} parts one after the other" if self._settings.accumulate > 1 else ""
        return f"a batch of {images} images of {side} pixels{parts}"

    def _heed_requests(self) -> None:
        """Save if it is time to, and end if any rank was asked to: all ranks do so after the same step.

        Of several ranks, one step after the request: none waits within a step for the others' answers.
        """
        if self._ranks.size == 1:
            self._requested = self._request
        self._carry_out(self._requested())
        if self._ranks.size > 1:
            self._requested = self._ranks.most_later(self._request())

    def _request(self) -> int:
        minutes = self._settings.checkpoint_minutes
        due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return _STOP if self._stop_asked() else _SAVE if due else _CONTINUE

    def _carry_out(self, request: float) -> None:
        if request == _STOP:
            self._save()
            raise Stopped(
                f"stopped and saved after step {self._step} of {self._parts.train.steps} of epoch {self._epoch}; "
                f"go on with: acdc train {self._run.path} --resume"
            )
        # while losses are not finite the last checkpoint may be the last good one
        if request == _SAVE and not self._look().bad:
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
                        metrics = record | {
                            key.removeprefix("ema_"): value for key, value in record.items() if key.startswith("ema_")
                        }
                        header = metadata | {"metrics": metrics}
                        checkpoint.save_model(self._run.model_file(f"{kind}-ema"), parts.model, header)
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
