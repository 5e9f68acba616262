"""A run's directory: what it was asked, what it did, what came out. A finished one is never overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acdc_cli import files
from acdc_cli.errors import RunError


class RunDir:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.resolved = path / "resolved.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.masks = path / "masks"
        self.summary = path / "summary.json"
        self._provenance = path / "provenance.json"

    @property
    def finished(self) -> bool:
        return self.summary.exists()

    def model_file(self, kind: str) -> Path:
        """The weights at the end of the last phase of that kind: `sparse` or `dense`."""
        return self.path / f"{kind}.safetensors"

    def start(self, given: str, resolved: str, provenance: dict[str, Any]) -> None:
        """Make the directory of a new run.

        Raises RunError if a run, or anything else, is there already.
        """
        self.refuse_if_taken()
        for leftover in (self.metrics, self._provenance, self.path / "wandb-id"):
            leftover.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.masks):
            folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path / "recipe.yaml", given)
        self.record_provenance(provenance)
        files.write_text(self.resolved, resolved)

    def record_provenance(self, provenance: dict[str, Any]) -> None:
        """One entry for the start and one for every resumption."""
        files.write_text(self._provenance, json.dumps([*self.provenance(), provenance], indent=2) + "\n")

    def provenance(self) -> list[dict[str, Any]]:
        """The entries of `record_provenance`, the newest last."""
        return json.loads(self._provenance.read_text()) if self._provenance.exists() else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process trains here. Raises RunError for the others."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        busy = RunError(f"another process trains in {self.path} now; wait for it, or end it")
        with files.locked(self.checkpoints / ".lock", busy):
            yield

    def records(self) -> list[dict[str, Any]]:
        """Every epoch's record, in order; a last line that was cut off while it was written is none."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind_metrics(self, epochs: int) -> None:
        """Forget the records from epoch `epochs` on: they will be made again."""
        kept = [record for record in self.records() if record["epoch"] < epochs]
        files.write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def finish(self, summary: dict[str, Any]) -> None:
        files.write_text(self.summary, json.dumps(summary, indent=2) + "\n")

    def refuse_if_taken(self) -> None:
        """Raises RunError where a new run would overwrite something; one that ended before its first epoch did is
        nothing."""
        if self.finished:
            raise RunError(f"{self.path} holds a finished run, which is never overwritten; choose another with --out")
        if self.records() or (self.checkpoints / "last.pt").exists():
            raise RunError(
                f"{self.path} holds an unfinished run; go on with it by --resume, or choose another place with --out"
            )
        if self.path.exists() and not self.resolved.exists() and not self._is_empty():
            raise RunError(f"{self.path} exists and is not a run of acdc; choose another place with --out")

    def _is_empty(self) -> bool:
        """Nothing is there but, maybe, the lock."""
        if not self.path.is_dir():
            return False
        return {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")} <= {
            "checkpoints",
            "checkpoints/.lock",
        }


def open_run(path: Path) -> RunDir:
    """An existing run; raises RunError if there is none."""
    run = RunDir(path)
    if not run.resolved.exists():
        raise RunError(f"{path} is no run directory: it has no resolved.yaml")
    return run
