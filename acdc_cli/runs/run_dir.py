"""A run's directory: its recipe, its records and its results. A finished run is never overwritten."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from acdc_cli import console, files, reading
from acdc_cli.errors import AcdcError, RunError, Stopped
from acdc_cli.recipe import code
from acdc_cli.recipe.syntax import read_file
from acdc_cli.runs.forms import Entry, Record, Resolved, Start, Summary

_SHOWN = 10
_STATE = "after-"
_KEPT = re.compile(r"epoch-(\d+)-([a-z]+)\.safetensors")


@dataclass(frozen=True)
class Kept:
    """A file written at the end of an epoch."""

    epoch: int
    kind: str
    """Kind of the epoch's phase: `sparse`, `dense` or `ramp`."""
    file: Path

    @staticmethod
    def name(epoch: int, kind: str) -> str:
        return f"epoch-{epoch:04d}-{kind}.safetensors"


def _kept(folder: Path) -> list[Kept]:
    matches = [(_KEPT.fullmatch(file.name), file) for file in folder.glob("epoch-*.safetensors")]
    kept = [Kept(int(match[1]), match[2], file) for match, file in matches if match]
    return sorted(kept, key=lambda each: each.epoch)


class RunDir:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.resolved = path / "resolved.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.masks = path / "masks"
        self.code = path / code.FOLDER
        self.summary = path / "summary.json"
        self.bench = path / "bench.json"
        self.corrupted_labels = path / "corrupted_labels.csv"
        self.wandb_id = path / "wandb-id"
        self.wandb_step = path / "wandb-step"
        self._given = path / "recipe.yaml"
        self._provenance = path / "provenance.json"
        self._lock = self.checkpoints / ".lock"

    @property
    def finished(self) -> bool:
        return self.summary.exists()

    def model_file(self, kind: str) -> Path:
        """The weights at the end of the last phase of that kind: `sparse` or `dense`."""
        return self.path / f"{kind}.safetensors"

    def kept_models(self) -> list[Kept]:
        """Models saved at earlier epochs (`checkpoint.keep_phases`, `checkpoint.keep_every`), oldest first."""
        return _kept(self.checkpoints)

    def kept_masks(self) -> list[Kept]:
        """The masks saved at the end of each phase that had masks, and as often as `checkpoint` says, oldest first."""
        return _kept(self.masks)

    def kept_state(self, epochs: int) -> Path:
        """Folder of the state after so many epochs (`checkpoint.keep_states`), with the models made until then."""
        return self.checkpoints / f"{_STATE}{epochs:04d}"

    def kept_states(self) -> list[int]:
        """Epochs trained at each kept state, in order."""
        return sorted(
            int(last.parent.name.removeprefix(_STATE)) for last in self.checkpoints.glob(f"{_STATE}*/last.pt")
        )

    def models(self) -> list[Path]:
        """The files that `model_file` may name, as far as they exist."""
        kinds = ("sparse", "dense", "sparse-ema", "dense-ema")
        return [file for kind in kinds if (file := self.model_file(kind)).exists()]

    def start(
        self, given: str, resolved: str, provenance: dict[str, Any], code: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Make the directory of a new run.

        code: of its model, by path, if that is a file of the user's.
        Raises RunError if a run, or anything else, is there already.
        """
        self.refuse_if_taken()
        with files.explained(self.path):
            for leftover in (self.metrics, self.wandb_id, self.wandb_step):
                leftover.unlink(missing_ok=True)
            for folder in (self.checkpoints, self.masks):
                folder.mkdir(parents=True, exist_ok=True)
            if self.code.exists():
                shutil.rmtree(self.code)
        files.write_text(self._provenance, _listed([provenance]))
        for name, content in code.items():
            with files.explained(self.code):
                (self.code / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(self.code / name, content)
        files.write_text(self._given, given)
        # last, because this file marks a run that can be resumed
        files.write_text(self.resolved, resolved)

    def record_provenance(self, provenance: dict[str, Any]) -> None:
        """Adds one entry per start and per resumption."""
        files.write_text(self._provenance, _listed([*self.provenance(), provenance]))

    @contextmanager
    def recording_end(self) -> Iterator[None]:
        """An exception that leaves the block is recorded in the newest entry of the provenance."""
        try:
            yield
        except BaseException as error:
            status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            why = " ".join(str(error).split())[:300] or type(error).__name__
            # the exception matters more than its record: the folder may be gone, or another
            with suppress(AcdcError):
                if entries := self.provenance():
                    entries[-1] |= {"end": {"status": status, "why": why}}
                    files.write_text(self._provenance, _listed(entries))
            raise

    def provenance(self) -> list[dict[str, Any]]:
        """The entries of `record_provenance`, the newest last. Raises RunError if the file is damaged."""
        if not self._provenance.exists():
            return []
        entries: list[dict[str, Any]] = reading.read_json(self._provenance, list[Entry])
        return entries

    def last_start(self) -> dict[str, Any]:
        """The newest entry of the provenance, checked. Raises RunError if there is none."""
        if not (entries := self.provenance()):
            raise RunError(f"{self.path} has no provenance.json, which identifies its training data; restore it")
        try:
            reading.require(entries[-1], Start)
        except ValueError as error:
            raise RunError(f"{self._provenance} is damaged (its last entry: {error}); restore a copy") from error
        return entries[-1]

    def recipe(self) -> Mapping[str, Any]:
        """Every key with its value; not validated whole, because another version of acdc may have written it.

        Raises an AcdcError if the file is damaged.
        """
        recipe: Mapping[str, Any] = read_file(self.resolved)[0].plain()
        try:
            reading.require(recipe, Resolved)
        except ValueError as error:
            raise RunError(f"{self.resolved} is no resolved recipe ({error}); restore a copy") from error
        return recipe

    def final(self) -> dict[str, Any] | None:
        """The summary; None while the run is unfinished. Raises RunError if the file is damaged."""
        return reading.read_json(self.summary, Summary) if self.finished else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process may train here; raises RunError for the others. Removes the unfinished files of a dead
        one."""
        with files.explained(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        busy = RunError(f"another process is training in {self.path}; wait for it, or stop it")
        with files.locked(self._lock, busy), files.staying(self.path), files.staying(self.checkpoints):
            files.remove_leftovers(self.path)
            yield

    @property
    def in_use(self) -> bool:
        """Whether a process is training here now."""
        return self._lock.exists() and files.is_locked(self._lock)

    def records(self) -> list[dict[str, Any]]:
        """Every epoch's record, in order; an incomplete last line is ignored.

        Raises RunError if another line is damaged.
        """
        if not self.metrics.exists():
            return []
        try:
            lines = files.read_bytes(self.metrics).split(b"\n")[:-1]
        except OSError as error:
            raise RunError(f"{self.metrics} cannot be read: {error.strerror}; restore a copy") from error
        return [self._record(number, line) for number, line in enumerate(lines, 1)]

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        place, remedy = f"line {number} of {self.metrics}", "restore a copy, or remove the line"
        record: dict[str, Any] = reading.parse_json(
            line, Record, lambda cause: RunError(f"{place} is damaged ({cause}); {remedy}")
        )
        return record

    def rewind_metrics(self, epochs: int) -> None:
        """Drops the records from epoch `epochs` on, which training will produce again.

        Warns of epochs before it that have no record, or several, of which the last stays.
        """
        records = self.records()
        kept = {record["epoch"]: record for record in records if record["epoch"] < epochs}
        if missing := [epoch for epoch in range(epochs) if epoch not in kept]:
            console.warn(
                f"{self.metrics} has no record of {_epochs(missing)}: restore a copy, or tables and curves lack them"
            )
        counts = Counter(record["epoch"] for record in records)
        if doubled := [epoch for epoch in sorted(kept) if counts[epoch] > 1]:
            console.warn(f"{self.metrics} had several records of {_epochs(doubled)}: the last one of each is kept")
        files.write_text(self.metrics, "".join(json.dumps(kept[epoch]) + "\n" for epoch in sorted(kept)))

    def finish(self, summary: dict[str, Any]) -> None:
        files.write_text(self.summary, json.dumps(reading.plain(summary), indent=2) + "\n")

    def refuse_if_taken(self) -> None:
        """Raises RunError if a new run would overwrite something; a run that ended before its first epoch may be
        overwritten."""
        with files.explained(self.path):
            self._refuse_if_taken()

    def _refuse_if_taken(self) -> None:
        if self.finished:
            raise RunError(f"{self.path} holds a finished run, which is never overwritten; choose another with --out")
        if self.records() or any(self.checkpoints.glob("*.pt")):
            raise RunError(
                f"{self.path} holds an unfinished run; resume it with --resume, or choose another folder with --out"
            )
        if self.path.exists() and not self.resolved.exists() and not self._is_barely_begun():
            raise RunError(f"{self.path} exists and is not a run of acdc; choose another folder with --out")

    def _is_barely_begun(self) -> bool:
        """Whether the directory contains at most the lock and the files of a process that died in `start`."""
        if not self.path.is_dir():
            return False
        there = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")}
        begun = {"checkpoints", "checkpoints/.lock", "masks", self._provenance.name}
        begun |= {f".{path.name}.partial" for path in (self._provenance, self._given, self.resolved)}
        if self._provenance.exists():
            begun.add(self._given.name)
            there = {path for path in there if path.partition("/")[0] != self.code.name}
        return there <= begun


def _epochs(epochs: list[int]) -> str:
    """`2 epochs (3, 7)`."""
    shown = [*map(str, epochs[:_SHOWN]), *(["…"] if len(epochs) > _SHOWN else [])]
    return f"{len(epochs)} epochs ({', '.join(shown)})" if len(epochs) > 1 else f"epoch {epochs[0]}"


def _listed(entries: list[dict[str, Any]]) -> str:
    return json.dumps(entries, indent=2) + "\n"


def open_run(path: Path) -> RunDir:
    """An existing run; raises RunError if there is none."""
    run = RunDir(path)
    if not run.resolved.exists():
        raise RunError(f"{path} is not a run directory: it has no resolved.yaml; name one that `acdc train` made")
    return run
