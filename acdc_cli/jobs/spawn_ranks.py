"""`acdc train --gpus N`: starts N processes through torch's elastic agent, and restarts them when one dies."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from acdc_cli import console
from acdc_cli.errors import RESUME_ME, RunError
from acdc_cli.jobs.opening import Resume, recipe_and_run
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import distributed

_TRIES = 3
_DONE, _MENDABLE, _INTERRUPTED = 0, 2, 130
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def launch(gpus: int, source: str, overrides: Sequence[str], out: Path | None, resume: Resume) -> int:
    """Train in `gpus` processes on this machine; returns the exit code.

    When one dies, all restart from the last checkpoint, unless three attempts in a row made no progress. The processes
    report errors that the user can fix themselves.
    """
    if distributed.is_joining():
        raise RunError(
            "--gpus starts processes itself, but torchrun or srun already started this one; leave out --gpus"
        )
    _, recipe, run = recipe_and_run(source, overrides, out)
    _require_gpus(recipe, gpus)
    tries = 0
    while True:
        before = _progress(run)
        agent = _Agent(gpus, [*_command(source, overrides, out), *_resume_option(resume)])
        with agent.forwarding_signals():
            codes = agent.exit_codes()
        if (known := _known(codes, agent.asked_to_stop)) is not None:
            return known
        tries = 1 if _progress(run) != before else tries + 1
        lost = f"a process was lost (exit codes {', '.join(map(str, sorted(codes)))})"
        if tries > _TRIES:
            console.error(f"{lost}, {tries} times without a new checkpoint; its output is above")
            return 1
        console.warn(f"{lost}; all processes restart from the last checkpoint, attempt {tries} of {_TRIES}")
        resume = "auto"


def _known(codes: set[int], asked_to_stop: bool) -> int | None:
    """The exit code that tells how the run ended; None if a process was lost."""
    if not codes:
        return _DONE
    worst = next((code for code in (_MENDABLE, RESUME_ME) if code in codes), None)
    if worst is None and asked_to_stop:
        # stopped before there was anything to save, or interrupted twice
        return _INTERRUPTED
    return worst


def _require_gpus(recipe: Recipe, gpus: int) -> None:
    there = torch.cuda.device_count()
    on_gpus = recipe.device == "cuda" or (recipe.device == "auto" and there > 0)
    if on_gpus and gpus > there:
        raise RunError(distributed.too_few_gpus(gpus, there))
    if not on_gpus and recipe.device == "auto":
        raise RunError(distributed.too_few_gpus(gpus, 0))


def _progress(run: RunDir) -> int:
    """A number that changes whenever a checkpoint is written."""
    last = run.checkpoints / "last.pt"
    return last.stat().st_mtime_ns if last.exists() else 0


def _command(source: str, overrides: Sequence[str], out: Path | None) -> list[str]:
    changes = [word for each in overrides for word in ("--set", each)]
    place = [] if out is None else ["--out", str(out)]
    return ["-m", "acdc_cli", "train", source, *changes, *place]


def _resume_option(resume: Resume) -> list[str]:
    if resume == "auto":
        return ["--resume", "auto"]
    return ["--resume"] if resume else []


class _Agent(LocalElasticAgent):
    """torch's own agent, except that it forwards signals and keeps waiting while the processes save."""

    def __init__(self, processes: int, command: Sequence[str]) -> None:
        # acdc reports its messages in its own words
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        # the agent would end the processes at these signals; the others are forwarded
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
        meeting = RendezvousParameters(
            backend="c10d",
            endpoint="localhost:0",
            run_id=uuid.uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            local_addr="localhost",
        )
        spec = WorkerSpec(
            role="acdc",
            local_world_size=processes,
            entrypoint=sys.executable,
            args=tuple(command),
            rdzv_handler=get_rendezvous_handler(meeting),
            max_restarts=0,
            monitor_interval=0.1,
            local_addr="localhost",
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull))
        self.asked_to_stop = False
        self._pids: list[int] = []

    def exit_codes(self) -> set[int]:
        """The nonzero exit codes, once all processes have ended."""
        return {failure.exitcode for failure in self.run().failures.values()}

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        before = {each: signal.signal(each, self._forward) for each in _SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._pids = list(started.values())
        return started

    def _forward(self, number: int, _: FrameType | None) -> None:
        self.asked_to_stop = True
        for pid in self._pids:
            # it may have ended already
            with suppress(ProcessLookupError):
                os.kill(pid, number)
