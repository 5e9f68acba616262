"""`acdc sweep --dry-run`: a study's runs, what each costs, what is done and what remains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from acdc_cli.errors import RecipeError
from acdc_cli.jobs.run_plan import plan
from acdc_cli.quantities import ACCURACY
from acdc_cli.recipe.bearing import all_but_the_seed
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.converged import as_asked, still_improving
from acdc_cli.studies.grid import Cell, Name
from acdc_cli.studies.run_queue import RunQueue
from acdc_cli.studies.study import Study, load_study
from acdc_cli.studies.study_analyses import require_saved

State = Literal["waiting", "begun", "running", "done", "failed"]
"""`begun`: unfinished, waiting to be resumed. `failed`: failed for good."""

_UNITS = {"GFLOPs": 1e9, "TFLOPs": 1e12, "PFLOPs": 1e15, "EFLOPs": 1e18}


@dataclass(frozen=True)
class PlannedRun:
    key: str
    axes: Mapping[str, Name]
    overrides: tuple[str, ...]
    state: State
    epochs: int
    """That it trains itself: a fork's source has trained the others."""
    train_flops: float
    """Training FLOPs of these epochs, as counted by `acdc plan`."""
    train_ratio: float
    """Ratio to dense training on the same images."""


@dataclass(frozen=True)
class SweepPlan:
    study: str
    folder: str
    """Folder of its queue and its runs."""
    runs: list[PlannedRun]
    budget: Mapping[str, float]
    until_converged: bool
    """Whether longer runs may be added, within the budget."""
    doubts: list[str]
    """Warnings of `acdc plan`, with the runs they concern."""
    trend: str = still_improving(ACCURACY)
    """Why runs are added."""

    def total(self, done: bool | None = None) -> dict[str, float]:
        """Runs, epochs and FLOPs of the finished runs (True), the unfinished ones (False) or all (None)."""
        runs = [run for run in self.runs if done is None or (run.state == "done") == done]
        return {
            "runs": len(runs),
            "epochs": sum(run.epochs for run in runs),
            "train_flops": sum(run.train_flops for run in runs),
        }

    @property
    def warnings(self) -> list[str]:
        return [*over_budget(self.total(), self.budget), *self.doubts]

    def as_dict(self) -> dict[str, Any]:
        totals = {"done": self.total(done=True), "remaining": self.total(done=False), "all": self.total()}
        document = asdict(self) | {"totals": totals, "warnings": self.warnings}
        del document["doubts"], document["trend"]
        return document


class Costs:
    """The costs of recipes, each computed once; recipes that differ only in their seed cost the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, list[str]]] = {}

    def __call__(self, recipe: Recipe) -> tuple[float, float, list[str]]:
        """Training FLOPs, their ratio to dense training, and warnings."""
        unseeded = all_but_the_seed(recipe)
        if unseeded not in self._known:
            priced = plan(recipe)
            flops, ratio = float(priced.totals.train_flops), priced.totals.train_ratio
            if recipe.forked_after:
                own = ratio - priced.epochs[recipe.forked_after - 1].cost
                flops, ratio = flops * own / ratio, own
            self._known[unseeded] = flops, ratio, priced.warnings
        return self._known[unseeded]


def sweep_plan(source: str, out: Path | None = None) -> SweepPlan:
    """The plan of the study `source`, with the states of its runs in the folder `out`.

    Raises an AcdcError for anything in the study that `acdc sweep` would reject.
    """
    study = load_study(source)
    recipes = study.recipes()
    require_saved(study, recipes)
    folder = out or Path("studies") / study.name
    added, states = _queue(study, folder)
    recipes |= {cell.key: load(study.base_recipe, cell.overrides) for cell in added}
    costs, runs, doubts = Costs(), [], dict[str, list[str]]()
    for cell in [*study.cells(), *added]:
        flops, ratio, warnings = costs(recipes[cell.key])
        state = states.get(cell.key) or _state(RunDir(folder / "runs" / cell.key))
        runs.append(PlannedRun(cell.key, cell.axes, cell.overrides, state, own_epochs(recipes[cell.key]), flops, ratio))
        for warning in warnings:
            doubts.setdefault(warning, []).append(cell.key)
    shown = [f"{keys[0]}{f' and {len(keys) - 1} more' if keys[1:] else ''}: {doubt}" for doubt, keys in doubts.items()]
    trend = still_improving(measures_of(recipes[study.cells()[0].key].task.name).headline)
    return SweepPlan(study.name, str(folder), runs, study.budget.limits(), study.until_converged, shown, trend)


def require_budget(study: Study, recipes: Iterable[Recipe]) -> None:
    """Raises RecipeError if the study's runs exceed its budget."""
    limits, recipes = study.budget.limits(), list(recipes)
    total: dict[str, float] = {"runs": len(recipes), "epochs": sum(map(own_epochs, recipes))}
    if "train_flops" in limits:
        costs = Costs()
        total["train_flops"] = sum(costs(recipe)[0] for recipe in recipes)
    if over := over_budget(total, limits):
        raise RecipeError("\n".join(over))


def own_epochs(recipe: Recipe) -> int:
    """Epochs that the run trains: a fork's begin where it was forked."""
    return recipe.epochs - recipe.forked_after


def over_budget(total: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    return [
        f"budget.{key}: the study's runs need {total[key]:.6g}, more than {limit:.6g}; raise the limit or remove runs"
        for key, limit in limits.items()
        if total[key] > limit
    ]


def _queue(study: Study, folder: Path) -> tuple[list[Cell], dict[str, State]]:
    """Runs that the queue has added to the study's own, and the states that only the queue knows."""
    file = folder / "ledger.sqlite"
    if not file.exists():
        return [], {}
    rows, cells = RunQueue(file).rows(), study.cells()
    known = {cell.key for cell in cells}
    new = [row.cell for row in rows if row.key not in known and study.until_converged]
    added = [asked for cell in new if (asked := as_asked(cell, cells))]
    return added, {row.key: row.state for row in rows if row.state in ("running", "failed")}


def _state(run: RunDir) -> State:
    return "done" if run.finished else "begun" if run.resolved.exists() else "waiting"


def run_columns(plan: SweepPlan) -> list[str]:
    """The axes, by the last part of their keys if that is unique."""
    axes = list(plan.runs[0].axes)
    ends = [axis.rpartition(".")[2] for axis in axes]
    names = [end if ends.count(end) == 1 else axis for axis, end in zip(axes, ends, strict=True)]
    return [*names, "state", *([] if "epochs" in axes else ["epochs"]), _unit(plan), "of dense"]


def run_rows(plan: SweepPlan) -> list[list[str]]:
    size = _UNITS[_unit(plan)]
    return [
        [
            *map(str, run.axes.values()),
            run.state,
            *([] if "epochs" in run.axes else [str(run.epochs)]),
            f"{run.train_flops / size:.3f}",
            f"{run.train_ratio:.3f}",
        ]
        for run in plan.runs
    ]


def total_columns(plan: SweepPlan) -> list[str]:
    return ["", "runs", "epochs", _unit(plan)]


def total_rows(plan: SweepPlan) -> list[list[str]]:
    totals = {"done": plan.total(done=True), "remaining": plan.total(done=False), "all": plan.total()}
    rows = [*totals.items(), *([("budget", plan.budget)] if plan.budget else [])]
    return [[name, *_cells(total, _UNITS[_unit(plan)])] for name, total in rows]


def _cells(total: Mapping[str, float], size: float) -> Sequence[str]:
    flops = f"{total['train_flops'] / size:.3f}" if "train_flops" in total else "-"
    return [*(f"{total[key]:.0f}" if key in total else "-" for key in ("runs", "epochs")), flops]


def _unit(plan: SweepPlan) -> str:
    """A unit in which the largest run has few digits before the decimal point."""
    largest = max(run.train_flops for run in plan.runs)
    return [unit for unit, size in _UNITS.items() if largest >= size or unit == "GFLOPs"][-1]
