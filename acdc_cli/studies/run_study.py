"""`acdc sweep`: runs a study until each of its runs is done or has failed for good."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from acdc_cli import console, files
from acdc_cli.errors import AcdcError, RunError, Stopped
from acdc_cli.jobs.run_plan import plan
from acdc_cli.jobs.training_run import changes
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.converged import Lengthening, as_asked, still_improving
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.launcher import Launcher
from acdc_cli.studies.local import Local, workers
from acdc_cli.studies.owner import Owner
from acdc_cli.studies.results import headline_of
from acdc_cli.studies.run_queue import Row, RunQueue
from acdc_cli.studies.scheduler import Sweep
from acdc_cli.studies.screen import Screen
from acdc_cli.studies.study import Study, load_study
from acdc_cli.studies.study_analyses import require_saved
from acdc_cli.studies.study_plan import require_budget
from acdc_cli.training.stopping import StopSignals

Kind = Literal["local", "slurm"]
_SHOWN = 3


def sweep(
    source: str,
    out: Path | None = None,
    launcher: Kind = "local",
    at_once: int | None = None,
    options: Sequence[str] = (),
    retry_failed: bool = False,
) -> None:
    """Runs what is missing of the study `source` in the folder `out`, alongside any other sweeps of the same study.

    at_once: number of runs at a time; options: sbatch's, for Slurm; retry_failed: also retry runs that failed for good.
    Raises an AcdcError if a run fails, and Stopped if a signal asked for the end.
    """
    study = load_study(source)
    recipes, cells = _Recipes(study), study.cells()
    require_budget(study, map(recipes, cells))
    require_saved(study, {cell.key: recipes(cell) for cell in cells})
    folder = out or Path("studies") / study.name
    queue = _opened(study, folder, cells, recipes)
    if retry_failed:
        queue.retry_failed()
    screen = Screen(
        study.name,
        lambda row: recipes(row.cell).epochs,
        lambda row: measures_of(recipes(row.cell).task.name).headline,
    )
    work = Sweep(
        queue=queue,
        owner=Owner.this_process(),
        launcher=_launcher(launcher, study, recipes(cells[0]), folder, queue, at_once, options),
        command=_command(study),
        logs=folder / "logs",
        lengthen=_lengthen(study, queue, recipes),
        show=screen,
    )
    with StopSignals() as stop:
        with screen.shown():
            work.work(lambda: bool(stop))
        _conclude(queue.rows(), study, source, folder, bool(stop))


class _Recipes:
    """The recipes of a study's cells and of those derived from them, each read once."""

    def __init__(self, study: Study) -> None:
        """Raises RecipeError listing every problem of every cell."""
        self._base = study.base_recipe
        self._read = study.recipes()

    def __call__(self, cell: Cell) -> Recipe:
        if cell.key not in self._read:
            self._read[cell.key] = load(self._base, cell.overrides)
        return self._read[cell.key]

    def known(self, key: str) -> Recipe:
        """The recipe of a cell requested before."""
        return self._read[key]


def _opened(study: Study, folder: Path, cells: Sequence[Cell], recipes: _Recipes) -> RunQueue:
    """The queue, updated to the study as it is now."""
    with files.explained(folder):
        for part in ("runs", "logs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    queue = RunQueue(folder / "ledger.sqlite")
    rows = queue.rows()
    followed = [as_asked(row.cell, cells) for row in rows] if study.until_converged else []
    asked = {cell.key: cell for cell in [*cells, *filter(None, followed)]}
    # a running run is checked by its own process
    running = {row.key for row in rows if row.state == "running"}
    _require_same([cell for key, cell in asked.items() if key not in running], folder, recipes)
    with queue.alone():
        files.write_text(folder / "study.yaml", study.text)
    if gone := queue.forget(lambda cell: cell.key in asked):
        shown = ", ".join(gone[:_SHOWN]) + (f", … {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else "")
        console.say(f"{len(gone)} runs are no longer part of the study; directories that they have stay: {shown}")
    queue.add(asked.values())
    return queue


def _require_same(cells: Iterable[Cell], folder: Path, recipes: _Recipes) -> None:
    """Raises RunError if a run of this name was trained with another recipe."""
    for cell in cells:
        run = RunDir(folder / "runs" / cell.key)
        if run.resolved.exists() and (changed := changes(run, recipes(cell))):
            raise RunError(
                f"{run.path} was trained with another recipe ({'; '.join(changed)}); use --out for a new study, or "
                "move that folder away to train it again"
            )


def _command(study: Study) -> Callable[[Row], list[str]]:
    def command(row: Row) -> list[str]:
        overrides = (*row.cell.overrides, f"track.group={study.name}")
        changed = [word for override in overrides for word in ("--set", override)]
        train = [sys.executable, "-m", "acdc_cli", "train", str(study.base_recipe), *changed]
        return [*train, "--out", str(row.directory), "--resume", "auto"]

    return command


def _launcher(
    kind: Kind, study: Study, recipe: Recipe, folder: Path, queue: RunQueue, at_once: int | None, options: Sequence[str]
) -> Launcher:
    if kind == "slurm":
        from acdc_cli.studies.slurm import slurm

        return slurm(folder / "slurm", study.name, options, queue.record_jobs, at_once)
    cores, gpus = sorted(os.sched_getaffinity(0)), _gpus(recipe)
    # without GPUs, as many runs as there are cores for the threads in the recipe
    fitting = len(gpus) or max(1, len(cores) // (recipe.threads or len(cores)))
    return Local(workers(at_once or fitting, cores, gpus))


def _gpus(recipe: Recipe) -> list[str]:
    """The GPUs visible to this process, as CUDA_VISIBLE_DEVICES names them."""
    if recipe.device == "cpu":
        return []
    import torch

    there = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",")[:there] if given else [str(number) for number in range(there)]


def _lengthen(study: Study, queue: RunQueue, recipes: _Recipes) -> Callable[[], Sequence[str]]:
    if not study.until_converged:
        return tuple
    limits = study.budget.limits()

    @cache
    def flops(cell_key: str) -> float:
        return float(plan(recipes.known(cell_key)).totals.train_flops)

    def cost(cell: Cell) -> Mapping[str, float]:
        recipe = recipes(cell)
        costs: dict[str, float] = {"runs": 1, "epochs": recipe.epochs}
        return costs | ({"train_flops": flops(cell.key)} if "train_flops" in limits else {})

    def misfit(cell: Cell) -> str | None:
        try:
            recipes(cell)
        except AcdcError as error:
            return str(error)
        return None

    headline = measures_of(recipes(study.cells()[0]).task.name).headline
    return Lengthening(queue, limits, _accuracy, cost, misfit, still_improving(headline))


def _accuracy(row: Row) -> float:
    """The headline on the validation set after the last epoch, signed so that more is better."""
    run = RunDir(row.directory)
    records, headline = run.records(), headline_of(run)
    accuracy: float | None = records[-1][headline.key] if records else None
    if accuracy is None:
        lacking = f"{run.path} is done, but its last epoch has no {headline.common.name}"
        raise RunError(f"{lacking}; restore a copy of {run.metrics.name}")
    return headline.rank(accuracy)


def _conclude(rows: Sequence[Row], study: Study, source: str, folder: Path, stopped: bool) -> None:
    done = sum(row.state == "done" for row in rows)
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        cells = [(row.key, str(row.attempts), (row.error or "").splitlines()[-1]) for row in failed]
        console.table(("failed run", "attempts", "error"), cells)
    if stopped and done + len(failed) < len(rows):
        raise Stopped(f"stopped; {done} of {len(rows)} runs are done; resume with: acdc sweep {source}")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(rows)} runs failed; their output is in {folder / 'logs'}. Fix the cause, then "
            f"resume with: acdc sweep {source} --retry-failed"
        )
    analyses = "".join(f" · acdc analyze {label} --study {folder}" for label in study.analyses)
    console.say(f"all {len(rows)} runs are done; next: acdc report {folder}{analyses}")
