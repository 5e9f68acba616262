"""Steps on a batch that lies on the device: our loop, others', and formulations of the blur, in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from acdc_cli.errors import AcdcError
from acdc_cli.models import build as models
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from benchmarks.assemble import CLASSES, Resident, assemble
from benchmarks.bare import BareLoop
from benchmarks.gpu import loops
from benchmarks.gpu.loops import Blur
from benchmarks.gpu.trial import Trial, forget, told
from benchmarks.measure import Target
from benchmarks.sparse_step import brought_to_its_sparse_phase, settle, settled
from benchmarks.trainer import bar_drawn

OURS, SPARSE, EAGER = "ours, dense", "ours, AC/DC in a sparse phase", "ours, dense, eager"
BARE, FFCV, TIMM = "bare compiled loop", "as FFCV's rn50 script", "as timm's train.py"
GRAPHS = "ours, dense, reduce-overhead"
BLURS: dict[str, Blur | None] = {
    "blur at stride 1": loops.blur_at_stride_1,
    "blur at the stride": loops.blur_at_the_stride,
    "blur by shifts": loops.blur_by_shifts,
    "no blur": None,
}
"""In the bare compiled loop."""

Loop = Callable[[], object]
"""An epoch of the resident batch."""


@dataclass(frozen=True)
class Setting:
    """What all contestants share."""

    device: torch.device
    resident: Resident
    changes: tuple[str, ...]

    def recipe(self, name: str, *more: str) -> Recipe:
        # small, because images and labels are random: training must not diverge
        own = [f"device={self.device.type}", f"data.batch_size={len(self.resident.batch.targets)}", "optim.lr=0.001"]
        return load(name, [*own, *self.changes, *more])

    def ours(self, *more: str) -> Loop:
        assembly = assemble(self.recipe("resnet50_dense", *more), self.resident)
        return partial(assembly.train_epoch, 0)

    def sparse(self) -> Loop:
        assembly = assemble(self.recipe("resnet50_95"), self.resident)
        # not the phase's first epoch, which begins with a mask update
        return partial(assembly.train_epoch, brought_to_its_sparse_phase(assembly) + 1)

    def bare(self, model: nn.Module | None = None) -> Loop:
        return partial(
            BareLoop(self.recipe("resnet50_dense"), self.resident, self.device, CLASSES, model).train_epoch, 0
        )

    def variant(self, blur: Blur | None) -> Loop:
        return self.bare(loops.blurred(self.plain(), blur) if blur else self.plain())

    def plain(self) -> nn.Module:
        """Without a blur."""
        return models.build(self.recipe("resnet50_dense", "model.blurpool=false").model, CLASSES)

    def as_ffcv(self) -> Loop:
        return loops.as_ffcv(self.plain(), self.resident, self.device).train_epoch

    def as_timm(self) -> Loop:
        model = models.build(self.recipe("resnet50_dense").model, CLASSES)
        return loops.as_timm(model, self.resident, self.device).train_epoch

    def with_graphs(self) -> Loop:
        return self.ours("compile=reduce-overhead")


def run(trial: Trial) -> None:
    batch, small, side, steps = (4, 2, 32, 1) if trial.smoke else (1024, 256, 160, 6)
    changes = ("model.name=resnet20",) if trial.smoke else ()
    large = Setting(trial.device, Resident(batch, side, steps, trial.device), changes)
    makers: dict[str, Callable[[], Loop]] = {
        OURS: large.ours,
        BARE: large.bare,
        SPARSE: large.sparse,
        FFCV: large.as_ffcv,
        TIMM: large.as_timm,
        EAGER: partial(large.ours, "compile=false"),
        **{name: partial(large.variant, blur) for name, blur in BLURS.items()},
    }
    # first calls compile: whatever is reached by then takes part in the rounds
    Contest(trial, f"batch {batch}", large.resident, makers).run(trial.after(0.5), trial.after(0.8))
    forget()
    few = Setting(trial.device, Resident(small, side, 3 * steps, trial.device), changes)
    rest = {OURS: few.ours, BARE: few.bare, GRAPHS: few.with_graphs}
    Contest(trial, f"batch {small}", few.resident, rest).run(trial.after(0.92), trial.deadline)


class Contest:
    """Contestants that train on the same batch in turn; the error of one costs no other anything."""

    def __init__(self, trial: Trial, title: str, resident: Resident, makers: Mapping[str, Callable[[], Loop]]) -> None:
        self._trial, self._title, self._resident, self._makers = trial, title, resident, makers
        self._steps = resident.steps
        self._found: dict[str, dict[str, Any]] = {}
        self._speeds: dict[str, list[float]] = {}
        trial.record(**{title: self._found})

    def run(self, admit_until: float, until: float) -> None:
        """Both are moments: until when contestants are made, and until when they take turns."""
        made = {
            name: loop for name, make in self._makers.items() if (loop := self._first_call(name, make, admit_until))
        }
        # what stays alive is not looked through again at the collection before every turn
        gc.freeze()
        for _ in self._trial.rounds(until):
            for name, loop in list(made.items()):
                if not self._turn(name, loop):
                    del made[name]
        gc.unfreeze()

    def _first_call(self, name: str, make: Callable[[], Loop], admit_until: float) -> Loop | None:
        """None if it fails, or comes too late."""
        facts = self._found[name] = {}
        if time.monotonic() > admit_until:
            facts["error"] = "not run: no time left"
            return None
        forget_memory()
        before = torch.cuda.memory_allocated() if self._trial.cuda else 0
        try:
            began = time.perf_counter()
            loop = make()
            facts["made_seconds"] = round(time.perf_counter() - began, 2)
            began = time.perf_counter()
            self._train(loop, 1)
            facts["first_step_seconds"] = round(time.perf_counter() - began, 2)
            self._train(loop, self._steps)
        except Exception as error:
            facts["error"] = _reason(error)
            return None
        finally:
            self._trial.write()
        if self._trial.cuda:
            # alone: what the others keep (weights, momentum) is not counted
            facts["peak_GiB"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)
        self._trial.write()
        return loop

    def _turn(self, name: str, loop: Loop) -> bool:
        facts = self._found[name]
        try:
            # others' cached memory goes, and what it costs to get it back is not counted
            forget_memory()
            self._train(loop, 1)
            seconds = settled(partial(self._train, loop, self._steps)).wall
        except Exception as error:
            facts["error"] = told(error)
            self._trial.write()
            return False
        speeds = self._speeds.setdefault(name, [])
        speeds.append(self._resident.samples / seconds)
        facts["rounds"] = [float(f"{speed:.5g}") for speed in speeds]
        facts["images_per_second"] = float(f"{median(speeds):.5g}")
        self._tell()
        return True

    def _train(self, loop: Loop, steps: int) -> None:
        """All of it is done when this returns."""
        self._resident.steps = steps
        with bar_drawn():
            loop()
        settle()

    def _tell(self) -> None:
        for over, under, what, target in _COMPARED:
            self._trial.compare(f"{self._title}: {what}", "images/s", self._speeds, over, under, target)
        for name in (OURS, SPARSE):
            facts = self._found.get(name, {})
            if "rounds" in facts:
                self._trial.line(f"{self._title}: {name}", facts["images_per_second"], "images/s")
        if peak := self._found.get(OURS, {}).get("peak_GiB"):
            self._trial.line(f"{self._title}: peak memory", peak, "GiB")


_COMPARED = (
    (OURS, FFCV, "ours / as FFCV's script", Target("≥", 1.3)),
    (OURS, TIMM, "ours / as timm's train.py", Target("≥", 1.05)),
    (OURS, BARE, "ours / bare loop", Target("≥", 0.97)),
    # of times: a speed over another is the other's time over its own
    (OURS, SPARSE, "AC/DC step / dense step", Target("≤", 1.01)),
    (OURS, EAGER, "ours / ours, eager", None),
    (GRAPHS, OURS, "reduce-overhead / ours", None),
    *((name, "blur at stride 1", f"{name} / at stride 1", None) for name in BLURS if name != "blur at stride 1"),
)


def forget_memory() -> None:
    settle()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _reason(error: Exception) -> str:
    """A recipe key that this version does not know is no fault of the contestant's."""
    return f"not in this version: {told(error)}" if isinstance(error, AcdcError) else told(error)
