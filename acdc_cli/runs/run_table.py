"""Overviews of runs as rows and facts for a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from acdc_cli import console
from acdc_cli.errors import RunError
from acdc_cli.quantities import ACCURACY
from acdc_cli.runs.overview import Overview, find_runs, is_run, overview
from acdc_cli.runs.run_dir import RunDir

_HOMES = (Path("runs"), Path("studies"))
"""Where `acdc train` and `acdc sweep` put runs."""
_ORDERS: dict[str, Callable[[Overview], Any]] = {
    "name": lambda run: str(run.path),
    "status": lambda run: (run.status, str(run.path)),
    "epoch": lambda run: -run.epoch,
    "accuracy": lambda run: -run.headline.rank(run.accuracy),
    "sparsity": lambda run: -1 * (-1 if run.sparsity is None else run.sparsity),
    "age": lambda run: -(run.begun or 0.0),
    "seen": lambda run: -(run.seen or 0.0),
}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def listed(
    folders: Sequence[Path] | None,
    statuses: Collection[str] = (),
    match: str | None = None,
    order: str = "seen",
    reverse: bool = False,
) -> list[Overview]:
    """folders: None: `runs` and `studies`.  statuses: empty: all.

    Raises RunError if a folder does not exist.
    """
    homes = folders or [home for home in _HOMES if home.is_dir()]
    if not homes:
        raise RunError("there is neither a folder runs nor studies here; name the folder that holds the runs")
    paths = list(find_runs(homes))
    title = "Reading runs"
    with console.progress(title) as bar:
        task = bar.add_task(title, total=len(paths))
        runs = []
        for path in paths:
            runs.append(overview(path))
            bar.advance(task)
    kept = [run for run in runs if (not statuses or run.status in statuses) and _matches(run, match)]
    return sorted(kept, key=_ORDERS[order], reverse=reverse)


def _matches(run: Overview, match: str | None) -> bool:
    return match is None or any(match in str(each) for each in (run.path, run.model, run.data, run.method))


def columns(runs: Sequence[Overview]) -> tuple[str, ...]:
    return "run", "status", "epochs", " or ".join(_ranked_by(runs)), "zeros", "age", "seen"


def _ranked_by(runs: Sequence[Overview]) -> list[str]:
    """Names of what the runs' tasks rank models by."""
    return list(dict.fromkeys(run.headline.common.name for run in runs)) or [ACCURACY.name]


def rows(runs: Sequence[Overview], now: float | None = None) -> list[tuple[str, ...]]:
    """A row of `columns` for each run."""
    now = time.time() if now is None else now
    several = len(_ranked_by(runs)) > 1
    return [
        (
            str(run.path),
            run.status,
            f"{run.epoch}/{run.epochs or '?'}",
            result(run) + (f" {run.headline.common.short}" if several and run.accuracy is not None else ""),
            percent(run.sparsity),
            since(run.begun, now),
            since(run.seen, now),
        )
        for run in runs
    ]


def result(run: Overview) -> str:
    """The value of its headline, without a unit."""
    return "-" if run.accuracy is None else run.headline.shown(run.accuracy)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def since(moment: float | None, now: float) -> str:
    """`5 min`, `3 h`, `12 d`."""
    return "-" if moment is None else span(now - moment)


def span(seconds: float) -> str:
    """`40 s`, `5 min`, `3 h`, `12 d`: rounded down, but for the clocks of other machines never negative."""
    seconds = max(0, int(seconds))
    unit = next(((length, name) for length, name in _UNITS if seconds >= length), (1, "s"))
    return f"{seconds // unit[0]} {unit[1]}"


def one(path: Path) -> Overview:
    """Raises RunError if it is not a run directory."""
    if not is_run(path):
        raise RunError(f"{path} is not a run directory; `acdc runs list` shows those that are")
    return overview(path)


def facts(run: Overview, now: float | None = None) -> list[tuple[str, str]]:
    """What is known of one run."""
    now = time.time() if now is None else now
    directory = RunDir(run.path)
    target = "" if run.target is None else f" to {run.target:.4g}"
    accuracy, unit = run.headline.common, " (%)" if run.headline.unit == "%" else ""
    zeros = percent(run.sparsity) + ("" if unit or run.sparsity is None else " %")
    return [
        ("run", str(run.path)),
        ("status", run.status + (f": {run.note}" if run.note else "")),
        ("recipe", f"{run.model} on {run.data}, {run.method}{target}, seed {run.seed}" if run.model else "-"),
        ("epochs", f"{run.epoch} of {run.epochs or '?'}" + (f", {run.phase} phase" if run.phase else "")),
        (f"{accuracy.name}, zeros{unit}", f"{result(run)}, {zeros}"),
        ("begun, last change", f"{since(run.begun, now)} ago, {since(run.seen, now)} ago"),
        ("models", ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in directory.models()) or "-"),
        ("kept", _kept(directory)),
    ]


def _kept(run: RunDir) -> str:
    counts = {
        "models": len(run.kept_models()),
        "masks": len(run.kept_masks()),
        "states": len(run.kept_states()),
        "checkpoints": sum(1 for _ in run.checkpoints.glob("*.pt")),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "-"
