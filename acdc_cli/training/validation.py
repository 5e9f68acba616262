"""Validation at an epoch's end: of the model, also on the probes, and of the average of its weights."""

from __future__ import annotations

from collections.abc import Callable

from acdc_cli.training.epoch_record import finite_or_none, sparsities
from acdc_cli.training.evaluate import Probe, evaluate
from acdc_cli.training.parts import Parts


class Validation:
    def __init__(self, parts: Parts, between: Callable[[], None]) -> None:
        """between: called after every batch; an exception from it ends the validation."""
        self._parts = parts
        self._between = between

    def at_end_of(self, epoch: int) -> tuple[dict[str, float], dict[str, float | None]]:
        """`of_model` and `of_average`; both are empty after an epoch without validation."""
        return (self.of_model(), self.of_average()) if self._is_due(epoch) else ({}, {})

    def _is_due(self, epoch: int) -> bool:
        """Every `eval_every` epochs, at the end of a phase or of the run, and when the model is saved."""
        parts = self._parts
        if parts.sparsifier.phases.ends(epoch) or epoch + 1 == parts.epochs:
            return True
        return any(every and (epoch + 1) % every == 0 for every in (parts.eval_every, parts.checkpoint.keep_every))

    def of_model(self) -> dict[str, float]:
        """Metrics of the task and of all probes."""
        parts = self._parts
        parts.ranks.broadcast_(parts.model.buffers())
        metrics: dict[str, float] = {}
        for probe in (Probe("validation", parts.val, parts.task), *parts.probes):
            # the count `samples` stays that of the validation
            metrics = self._evaluate(probe) | metrics
        return metrics

    def of_average(self) -> dict[str, float | None]:
        """The record's entries for the average, each prefixed with `ema_`; empty before the average begins."""
        parts = self._parts
        if parts.average is None or not parts.average.begun:
            return {}
        parts.ranks.broadcast_(parts.average.statistics)
        with parts.average.installed():
            metrics = self._evaluate(Probe("validation of the average", parts.val, parts.task))
            values = {"val_loss": metrics.pop("loss")} | metrics | sparsities(parts.layers)
        del values["samples"], values["layers"]
        return {f"ema_{key}": finite_or_none(value) for key, value in values.items()}

    def _evaluate(self, probe: Probe) -> dict[str, float]:
        parts = self._parts
        how = (probe.measure, parts.precision, probe.name, self._between, parts.ranks)
        return evaluate(parts.model, parts.forward, probe.loader, *how)
