"""The training loop, from the top down: a run, an epoch, a step.

Run: epoch after epoch, each followed by its record, its products and, where due, a checkpoint.
Epoch: the method's `on_epoch_start`, the steps, validation, the method's `on_epoch_end`.
Step: learning rate, forward, backward, unscaled gradients, the method's `on_gradients`, clipping, the optimiser, the
method's `after_step`, the average of the weights.

After every step and every validation batch the run is saved or stopped if that was requested; it resumes there. The
host waits for the device only where it fetches the losses: every `log_every` steps, at an epoch's end, before a save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from acdc_cli.data.batches import Batch
from acdc_cli.errors import DataError, Stopped
from acdc_cli.recipe.blocks.base import epochs_of
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import Tracker
from acdc_cli.schedule.time import Moment
from acdc_cli.training.background_saves import BackgroundSaves
from acdc_cli.training.backward import Backward
from acdc_cli.training.device_errors import in_words, mendable
from acdc_cli.training.epoch_record import charge_probes, epoch_record
from acdc_cli.training.method_services import MethodServices
from acdc_cli.training.optimizers import clip_gradients, set_learning_rate
from acdc_cli.training.parts import Parts
from acdc_cli.training.products import Products
from acdc_cli.training.progress import RunProgress, print_epoch, print_header, tell_compiled, warn_of_collapse
from acdc_cli.training.random_state import set_random_state
from acdc_cli.training.requests import Request, Requests
from acdc_cli.training.running import Losses, Running
from acdc_cli.training.validation import Validation


class Trainer:
    def __init__(
        self,
        parts: Parts,
        run: RunDir,
        trackers: Sequence[Tracker] = (),
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """stop_asked: whether the run should be saved and stopped; called after every step and every validation
        batch."""
        self._parts = parts
        self._run = run
        self._trackers = trackers
        self._epoch = 0
        self._step = 0
        """Steps completed in this epoch."""
        self._finished = False
        """Whether the method's `finish` has been called."""
        self._seconds = 0.0
        self._running = Running()
        self._backward = Backward(parts)
        self._trained = [weight for group in parts.optimizer.param_groups for weight in group["params"]]
        self._validation = Validation(parts, self._carry_out_requests)
        self._products = Products(parts, run)
        self._saves = BackgroundSaves()
        self._requests = Requests(parts.ranks, parts.checkpoint.every_minutes, stop_asked)
        self._progress = RunProgress(parts.epochs, parts.train.steps, 0, parts.samples)
        self._kept_states = {epochs_of(length, parts.epochs) for length in parts.checkpoint.keep_states}
        parts.sparsifier.attach(parts.optimizer, MethodServices(parts))

    def fit(self) -> dict[str, Any]:
        """Train to the end, from the start or from where the loaded state was saved; returns the summary.

        Raises RunError if the loss stays NaN or infinite, or if memory runs out, and Stopped if a stop was requested.
        """
        parts, steps = self._parts, self._parts.train.steps
        with self._saves:
            with self._stopping():
                for loader in (parts.train, parts.val, *(probe.loader for probe in parts.probes)):
                    loader.warm_up()
            self._progress = RunProgress(parts.epochs, steps, self._epoch * steps + self._step, parts.samples)
            self._requests.saved()
            print_header(parts.task.measures, parts.samples)
            while self._epoch < parts.epochs:
                record = self._run_epoch()
                print_epoch(record, parts.task.measures, parts.samples)
                record |= tell_compiled()
                self._products.save(record)
                for tracker in self._trackers:
                    tracker.log(record)
                warn_of_collapse(self._run, self._trackers)
                phase_ends = parts.sparsifier.phases.ends(self._epoch)
                self._epoch, self._step = self._epoch + 1, 0
                self._running.begin()
                if self._epoch in self._kept_states:
                    self._save(self._run.kept_state(self._epoch))
                if phase_ends or self._epoch % parts.checkpoint.every_epochs == 0:
                    self._save_if_finite()
        self._requests.settle()
        seconds = round(self._seconds, 3)
        return {"status": "finished", "epochs": parts.epochs, "seconds": seconds, **self._products.phase_ends}

    def _run_epoch(self) -> dict[str, Any]:
        """Runs the remaining steps of the epoch and its end; returns its record."""
        parts, epoch, running = self._parts, self._epoch, self._running
        running.start_clock()
        self._train()
        if epoch + 1 < parts.epochs:
            parts.train.prepare(epoch + 1)
        elif not self._finished:
            parts.sparsifier.finish()
            self._finished = True
        metrics, average_metrics = self._validation.at_end_of(epoch)
        parts.sparsifier.on_epoch_end(self._moment(parts.train.steps - 1), metrics)
        record = epoch_record(parts, epoch, running, self._latest_losses(), metrics, average_metrics)
        self._seconds += running.seconds
        return record

    def _train(self) -> None:
        """Runs the remaining steps of the epoch."""
        parts, epoch, running, steps = self._parts, self._epoch, self._running, self._parts.train.steps
        if self._step == steps:
            return
        if self._step == 0:
            self._start_epoch()
        self._backward.begin(epoch)
        parts.model.train()
        with (
            self._stopping(),
            parts.train.epoch(epoch, self._step) as batches,
            self._progress.epoch(epoch, parts.sparsifier.phases.at(epoch).kind, self._step),
        ):
            for batch in batches:
                moment = self._moment(self._step)
                learning_rate = parts.learning_rate(moment.progress)
                attempt = in_words(batch.inputs, parts.optim.accumulate)
                with mendable(attempt, "raise optim.accumulate, or lower data.batch_size"):
                    losses = self._take_step(batch, moment, learning_rate)
                images = len(batch.targets) * parts.ranks.size
                running.add(losses, images, learning_rate)
                self._step += 1
                parts.ranks.reached(self._epoch, self._step)
                self._progress.advance(images)
                if self._step % parts.log_every == 0 or self._step == steps:
                    self._progress.show(self._latest_losses().mean, moment.step + 1)
                running.tick_step()
                self._carry_out_requests()

    def _start_epoch(self) -> None:
        parts = self._parts
        charge_probes(parts, self._epoch)
        if parts.teacher:
            parts.teacher.on_epoch_start(parts.sparsifier.phases, self._epoch, parts.model, parts.ranks)
        attempt = f"the mask update of {parts.sparsifier.config.method} at the start of epoch {self._epoch}"
        with mendable(attempt, "lower the sizes in the sparsity block, or use a device with more memory"):
            parts.sparsifier.on_epoch_start(self._moment(0))

    def _take_step(self, batch: Batch, moment: Moment, learning_rate: float) -> Tensor:
        """One optimiser step; returns the batch's `Running.add` losses, on the device."""
        parts = self._parts
        set_learning_rate(parts.optimizer, learning_rate)
        losses = self._backward(batch)
        parts.precision.unscale(parts.optimizer)
        if parts.sparsifier.on_gradients(moment):
            if parts.optim.clip_norm is not None:
                clip_gradients(parts.optimizer, parts.optim.clip_norm)
            parts.precision.step(parts.optimizer)
        else:
            parts.precision.end_step()
        parts.sparsifier.after_step(moment)
        if parts.average:
            parts.average.update(moment.epoch)
        for weight in self._trained:
            weight.grad = None
        return losses

    def _moment(self, step: int) -> Moment:
        """step: counted within this epoch."""
        epochs, steps = self._parts.epochs, self._parts.train.steps
        return Moment(self._epoch, self._epoch * steps + step, epochs, steps)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """A signal to stop may also end the processes that load images, which is not an error of the data."""
        try:
            yield
        except DataError:
            # several ranks would wait for each other
            if self._parts.ranks.size == 1 and self._requests.stop_asked():
                self._carry_out_requests()
            raise

    def _carry_out_requests(self) -> None:
        """Saves if due, and stops if any rank was asked to: all ranks do so after the same step."""
        self._running.tick()
        self._saves.check()
        request = self._requests.strongest()
        if request == Request.STOP:
            self._save()
            raise Stopped(
                f"stopped and saved after step {self._step} of {self._parts.train.steps} of epoch {self._epoch}; "
                f"resume with: acdc train {self._run.path} --resume"
            )
        if request == Request.SAVE:
            self._save_if_finite()
        self._requests.send()

    def _save_if_finite(self) -> None:
        """Saving twice while the losses are NaN or infinite would replace the last two good checkpoints."""
        if not self._latest_losses().bad:
            self._save()

    def _save(self, folder: Path | None = None) -> None:
        """folder: for a state to keep; None: the place of the latest checkpoint."""
        average = self._parts.average
        with average.set_aside() if average else nullcontext():
            state = self.state_dict()
            if self._parts.ranks.first:
                if folder:
                    self._products.copy_models(folder)
                self._saves.save(folder or self._run.checkpoints, state)
        if folder is None:
            self._requests.saved()

    def _latest_losses(self) -> Losses:
        """The epoch's losses so far, over all ranks; the host waits for the device.

        Raises RunError if too many in a row were NaN or infinite.
        """
        with self._parts.ranks.waiting():
            losses = self._running.fetch(self._parts.ranks)
        place = f"epoch {self._epoch}, step {self._step} of {self._parts.train.steps}"
        losses.check(self._parts.optim.nan_patience, f"{place}, learning rate {self._running.learning_rate:.3g}")
        return losses

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to resume as if never interrupted; all ranks must call it."""
        parts = self._parts
        parts.sparsifier.masked.verify()
        return {
            "epoch": self._epoch,
            "step": self._step,
            "finished": self._finished,
            "processes": parts.ranks.gather({"running": self._running.state_dict(), **parts.own_state_dict()}),
            "ends": self._products.phase_ends,
            "seconds": self._seconds,
            **parts.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from this state. Ranks beyond those that saved it keep their own random states."""
        parts, processes = self._parts, state["processes"]
        self._epoch, self._step, self._finished = state["epoch"], state["step"], state["finished"]
        self._running.load_state_dict(processes[min(parts.ranks.rank, len(processes) - 1)]["running"])
        parts.load_state_dict(state)
        if parts.ranks.rank < len(processes):
            set_random_state(processes[parts.ranks.rank]["random"])
        self._products.phase_ends = state["ends"]
        self._seconds = state["seconds"]
