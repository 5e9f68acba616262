"""All run directories below a folder: the state of each, as far as its files and its lock show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from acdc_cli.errors import AcdcError, RunError
from acdc_cli.quantities import ACCURACY, Quantity
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.runs.run_dir import RunDir

Status = Literal["running", "finished", "stopped", "failed", "damaged"]

_MARKS = {"resolved.yaml", "recipe.yaml", "provenance.json", "metrics.jsonl", "summary.json"}
"""Files of which every run directory has at least two, even if it is damaged."""
_DIED = "killed, or its machine went down"


@dataclass(frozen=True)
class Overview:
    path: Path
    status: Status
    note: str | None = None
    """Why it stopped or failed, or what is damaged."""
    model: str | None = None
    data: str | None = None
    method: str | None = None
    target: float | None = None
    seed: int | None = None
    epoch: int = 0
    """Finished epochs."""
    epochs: int | None = None
    phase: str | None = None
    """Kind of the latest epoch's phase."""
    accuracy: float | None = None
    """By the task's headline: top-1, the mean over labels, or whatever else the task ranks models by. The model is the
    run's main one, the sparse model if it makes one; while the run is unfinished, its latest validated epoch counts."""
    sparsity: float | None = None
    """Zero share of the layers that the recipe prunes, of the same model."""
    begun: float | None = None
    """Unix time of the first start; `seen` likewise."""
    seen: float | None = None
    """Unix time of the newest change of its records, its checkpoints or its provenance."""
    headline: Quantity = ACCURACY
    """Headline of the run's task, as far as the task is known."""

    def as_dict(self) -> dict[str, Any]:
        """`accuracy` has the key of the headline if that is no accuracy."""
        values = asdict(self) | {"path": str(self.path)}
        del values["headline"]
        return {self.headline.common.key if key == "accuracy" else key: value for key, value in values.items()}


def is_run(folder: Path) -> bool:
    """Whether it is a run directory, perhaps a damaged one."""
    # os.path's, which treat what may not be read as missing
    return sum(os.path.isfile(folder / name) for name in _MARKS) > 1


def find_runs(folders: Sequence[Path]) -> Iterator[Path]:
    """The run directories below these folders, or the folders themselves; links are not followed.

    Raises RunError for a folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder; name one that holds run directories, such as runs")
        for parent, below, names in os.walk(folder):
            if len(_MARKS.intersection(names)) > 1:
                yield Path(parent)
                below.clear()
            below[:] = sorted(name for name in below if not name.startswith("."))


def overview(path: Path) -> Overview:
    """Never fails: what cannot be read is in its `note`."""
    run = RunDir(path)
    times = {"begun": None, "seen": _last_sign(run)}
    try:
        in_use, recipe = run.in_use, run.recipe()
        sparsity, entries = recipe["sparsity"], run.provenance()
        facts = {
            "model": recipe["model"]["name"],
            "data": recipe["data"]["name"],
            "method": sparsity["method"],
            "target": sparsity.get("target"),
            "seed": recipe["seed"],
            "epochs": recipe["epochs"],
        }
        headline = measures_of(recipe["task"]["name"]).headline
        times["begun"] = _start(entries)
        records, summary = run.records(), run.final()
    except (AcdcError, OSError) as error:
        return Overview(path, "damaged", str(error), **times)  # type: ignore[arg-type]
    facts |= times | _measured(records, summary, headline.key) | {"epoch": len(records), "headline": headline}
    if summary:
        return Overview(path, "finished", **facts)
    if in_use:
        return Overview(path, "running", **facts)
    end = (entries[-1].get("end") if entries else None) or {"status": "failed", "why": _DIED}
    return Overview(path, end["status"], end["why"], **facts)


def _measured(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None, headline: str) -> dict[str, Any]:
    validated = [record for record in records if record.get(headline) is not None]
    shown = (summary or {}).get("sparse") or (summary or {}).get("dense") or (validated[-1] if validated else {})
    return {
        "phase": records[-1]["phase"] if records else None,
        "accuracy": shown.get(headline),
        "sparsity": shown.get("sparsity", records[-1]["sparsity"] if records else None),
    }


def _start(entries: Sequence[Mapping[str, Any]]) -> float | None:
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(entries[0]["time"]).timestamp() if entries else None
    return None


def _last_sign(run: RunDir) -> float | None:
    changed = []
    for file in (run.metrics, run.resolved, run.summary, run.path / "provenance.json", run.checkpoints / "last.pt"):
        with suppress(OSError):
            changed.append(file.stat().st_mtime)
    return max(changed, default=None)
