"""`acdc verify-resume`: compares a run that is killed again and again with an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from acdc_cli import console
from acdc_cli.errors import RESUME_ME, RunError
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint
from acdc_cli.training.precision import choose_device

_TIMES = ("seconds", "_per_second")
"""Ends of the keys of a record that measure the machine, not the run."""
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Kill:
    signal: str
    epoch: int
    step: int
    """Step of the checkpoint that the run resumed from; epoch 0, step 0: there was none."""


@dataclass(frozen=True)
class Verdict:
    kills: list[Kill]
    differences: dict[str, str]
    """What differs from the uninterrupted run, and by how much; empty if nothing does."""
    by_itself: dict[str, str] = field(default_factory=dict)
    """What differs between two uninterrupted runs; only checked if there are `differences`."""

    @property
    def exact(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        return {"exact": self.exact, **asdict(self)}


def verify_resume(
    source: str, overrides: Sequence[str] = (), kills: int = 5, seed: int = 0, keep: Path | None = None, gpus: int = 1
) -> Verdict:
    """Train the recipe twice, once interrupted `kills` times by SIGKILL and SIGTERM in turn, and compare.

    keep: folder for the runs; None: they are removed.
    Raises RunError if a run fails, or if the killed run differs although runs of this recipe must be reproducible: with
    `deterministic: true`, on the CPU, or if two uninterrupted runs are identical.
    """
    recipe = load(source, overrides)
    with _folder(keep) as folder:
        command = [sys.executable, "-m", "acdc_cli", "train", source, "--set", "track.wandb=disabled"]
        command += [word for override in overrides for word in ("--set", override)]
        command += ["--gpus", str(gpus)] if gpus > 1 else []
        console.say("training uninterrupted …")
        began = time.monotonic()
        start = _run_to_end(command, folder / "undisturbed")
        length = time.monotonic() - began - start
        console.say(f"… {length:.0f} s after {start:.0f} s of start-up; now again, killed {kills} times")
        done = _disturbed(command, folder / "disturbed", kills, start, length, random.Random(seed))
        by_kills = differences(RunDir(folder / "undisturbed"), RunDir(folder / "disturbed"))
        by_itself: dict[str, str] = {}
        if by_kills:
            console.say("they differ; training uninterrupted once more, to see whether two such runs also differ")
            _run_to_end(command, folder / "again")
            by_itself = differences(RunDir(folder / "undisturbed"), RunDir(folder / "again"))
    verdict = Verdict(done, by_kills, by_itself)
    demanded = recipe.deterministic or choose_device(recipe.device).type == "cpu"
    if by_kills and (demanded or not by_itself):
        listed = "; ".join(f"{what}: {how}" for what, how in by_kills.items())
        uninterrupted = "differ as well" if by_itself else "are the same to the bit"
        raise RunError(f"the run does not survive being killed: {listed}. Two uninterrupted runs {uninterrupted}")
    return verdict


def differences(one: RunDir, other: RunDir) -> dict[str, str]:
    """Every difference, however small, between two finished runs: records, masks, models and the last state."""
    different = {}
    records, others = _untimed(one.records()), _untimed(other.records())
    if records != others:
        first = next((i for i, (a, b) in enumerate(zip(records, others, strict=False)) if a != b), None)
        different["metrics.jsonl"] = (
            f"{len(records)} records and {len(others)}" if first is None else f"from epoch {records[first]['epoch']} on"
        )
    for pattern in ("*.safetensors", "masks/*.safetensors", "checkpoints/*.safetensors"):
        names = {path.relative_to(run.path) for run in (one, other) for path in run.path.glob(pattern)}
        for name in sorted(names):
            if difference := _of_files(one.path / name, other.path / name):
                different[str(name)] = difference
    if difference := _of_values(_last_state(one), _last_state(other), "it"):
        different["last state"] = difference
    return different


def _last_state(run: RunDir) -> dict[str, Any]:
    state = checkpoint.load_state(run.checkpoints) or {}
    # these hold times; the rest of them is in the records
    return {key: value for key, value in state.items() if key not in ("seconds", "running", "ends")}


def _disturbed(
    command: list[str], out: Path, kills: int, start: float, length: float, draw: random.Random
) -> list[Kill]:
    done: list[Kill] = []
    while len(done) < kills:
        sent = _SIGNALS[len(done) % len(_SIGNALS)]
        # spreads the kills over the whole run, because a killed run repeats little work
        if not _kill(command, out, sent, start + draw.uniform(0, 2 * length / (kills + 1))):
            console.say(f"the run finished after {len(done)} kills")
            return done
        state = checkpoint.load_state(out / "checkpoints")
        done.append(Kill(sent.name, *((state["epoch"], state["step"]) if state else (0, 0))))
        console.say(f"{sent.name}; resumes from epoch {done[-1].epoch}, step {done[-1].step}")
    _run_to_end(command, out)
    return done


def _kill(command: list[str], out: Path, sent: signal.Signals, after: float) -> bool:
    """Whether the process was still running and could be killed."""
    with _started(command, out) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, sent)
        _, stderr = process.communicate()
        if process.returncode == 0:
            return False
        if process.returncode not in (-sent, 128 + sent, RESUME_ME, 130):
            raise RunError(f"the run ended by itself, with exit code {process.returncode}: {stderr.strip()[-2000:]}")
        return True


def _run_to_end(command: list[str], out: Path) -> float:
    """Returns the seconds until training began."""
    began = time.monotonic()
    start = 0.0
    with _started(command, out) as process:
        while process.poll() is None and not (out / "resolved.yaml").exists():
            time.sleep(0.05)
        start = time.monotonic() - began
        _, stderr = process.communicate()
        if process.returncode != 0:
            raise RunError(f"the run ended with exit code {process.returncode}: {stderr.strip()[-2000:]}")
    return start


@contextmanager
def _started(command: list[str], out: Path) -> Iterator[subprocess.Popen[str]]:
    # a session of its own, so that signals reach its child processes too and Ctrl-C does not
    with subprocess.Popen(
        [*command, "--out", str(out), "--resume", "auto"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="acdc-verify-") as folder:
            yield Path(folder)
        return
    if keep.exists() and any(keep.iterdir()):
        raise RunError(f"{keep} is not empty; name a new folder with --keep")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep


def _untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if not key.endswith(_TIMES)} for record in records]


def _of_files(one: Path, other: Path) -> str:
    if not (one.exists() and other.exists()):
        return f"only the {'first' if one.exists() else 'second'} run has it"
    return _of_values(load_file(one), load_file(other), "it")


def _of_values(one: Any, other: Any, name: str) -> str:
    """The first difference between two nested states, in words; empty if they are bit-identical."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{name} has another shape or type"
        return (
            ""
            if torch.equal(_bytes(one), _bytes(other))
            else f"{name} by up to {(one.double() - other.double()).abs().max():.3g}"
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{name} has other entries"
        return next((d for key in one if (d := _of_values(one[key], other[key], f"{name}.{key}"))), "")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{name} has another length"
        return next((d for i in range(len(one)) if (d := _of_values(one[i], other[i], f"{name}[{i}]"))), "")
    return "" if one == other else f"{name}: {one!r} and {other!r}"


def _bytes(tensor: Tensor) -> Tensor:
    """Equal bytes mean bit-identical: -0 differs from 0, and NaN equals NaN."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
