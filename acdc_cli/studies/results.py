"""What runs of a study, or runs named one by one, have produced: recipe, records and summary of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acdc_cli import console, reading
from acdc_cli.errors import RunError
from acdc_cli.quantities import Measures, Quantity
from acdc_cli.recipe.bearing import BATCHING, LENGTH, SAME_EXPERIMENT, bearing
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.syntax import read_file
from acdc_cli.runs.forms import BenchRecord
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.run_queue import RunQueue
from acdc_cli.studies.study import load_study

Value = str | int | float

_ALIKE = 0.005
"""Shares of pruned weights that differ by less than this are equal: learned ones still move slightly at the end."""


@dataclass(frozen=True, eq=False)
class Run:
    key: str
    axes: Mapping[str, Value]
    """Values that distinguish it from the other runs; `epochs` and `seed` are always present."""
    path: Path
    state: str
    """`waiting`, `running`, `failed` or `done`; a run is done once it has a summary."""
    error: str | None = None
    recipe: Mapping[str, Any] | None = None
    """Every key with its value; None: the run has not begun."""
    records: Sequence[Mapping[str, Any]] = ()
    """Records of its epochs, as in `metrics.jsonl`."""
    summary: Mapping[str, Any] | None = None
    speeds: Sequence[Mapping[str, Any]] = ()
    """Rows of `acdc bench`, if it was run."""

    @property
    def epochs(self) -> int:
        return int(self.axes["epochs"])

    @property
    def seed(self) -> Value:
        return self.axes["seed"]

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def measures(self) -> Measures:
        """What its task measures."""
        assert self.recipe is not None
        return measures_of(self.recipe["task"]["name"])

    @property
    def dense(self) -> bool:
        return self.recipe is not None and self.recipe["sparsity"]["method"] == "dense"

    @property
    def last(self) -> Mapping[str, Any]:
        """The record of the last epoch."""
        return self.records[-1]

    @property
    def best(self) -> Mapping[str, Any]:
        """The record of the epoch with the best headline, the first of equals.

        Only epochs whose model is as sparse as the last count: a sparse run does not deliver the models of its dense
        phases.
        """
        floor = self.last["mask_sparsity"] - _ALIKE
        eligible = [record for record in self.records if record["mask_sparsity"] >= floor]
        headline = self.measures.headline
        return max(eligible, key=lambda record: headline.rank(record[headline.key]))

    @property
    def measured(self) -> Mapping[str, int] | None:
        """`train_flops` and `inference_flops`, measured with the actual weights; None if not counted."""
        cost = (self.summary or {}).get("cost")
        return cost["measured"] if cost else None

    @property
    def images_and_model(self) -> Mapping[str, Any]:
        """Losses and entropies are comparable only between runs that agree in these."""
        assert self.recipe is not None
        blocks = {block: self.recipe[block] for block in ("model", "data", "task")}
        return bearing(blocks, SAME_EXPERIMENT, BATCHING)


def folder_of(study: str) -> Path:
    """The given directory, or the one into which `acdc sweep` puts the study with this file or name."""
    if Path(study).is_dir():
        return Path(study)
    return Path("studies") / load_study(study).name


def trained(study: str) -> list[Path]:
    """The finished runs of a study. Raises RunError if some are unfinished."""
    runs = of_study(folder_of(study))
    if unfinished := [run.key for run in runs if not run.done]:
        raise RunError(
            f"{len(unfinished)} of {len(runs)} runs are unfinished, such as {unfinished[0]}: acdc sweep {study}"
        )
    return [run.path for run in runs]


def is_study(folder: Path) -> bool:
    return (folder / "ledger.sqlite").exists()


def of_study(folder: Path) -> list[Run]:
    """Every run in the study's queue, in order. Raises RunError if there is no queue."""
    if not is_study(folder):
        raise RunError(f"{folder} is not a study directory: it has no ledger.sqlite; name one made by `acdc sweep`")
    rows = RunQueue(folder / "ledger.sqlite").rows()
    runs = [_read(row.key, row.cell.axes, row.directory, row.state, row.error) for row in rows]
    begun = next((run.recipe for run in runs if run.recipe), None)
    if begun is None:
        raise RunError(f"no run of {folder} has begun yet, so there is nothing to report")
    # keys that are not axes have the same value in all runs
    return [replace(run, axes={"epochs": begun["epochs"], "seed": begun["seed"], **run.axes}) for run in runs]


def advancing_together(folder: Path) -> list[set[str]]:
    """The study's `zip`: sets of axes that advance together."""
    file = folder / "study.yaml"
    given = read_file(file)[0].plain().get("zip") if file.exists() else None
    try:
        reading.require(given, list[list[str]] | None)
    except ValueError as error:
        raise RunError(f"{file}: zip: {error}; restore a copy") from error
    return [set(axes) for axes in given or []]


def of_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs named by their directories; the keys in which their recipes differ become the axes."""
    runs = [_read(console.inert(str(folder)), {}, folder, "waiting", None) for folder in folders]
    for run in runs:
        if run.recipe is None:
            raise RunError(
                f"{run.path} is not a run directory: it has no resolved.yaml; name one that `acdc train` made"
            )
    return _distinguished(runs)


def headline_of(run: RunDir) -> Quantity:
    """What the run's task ranks models by. Raises RunError if its recipe is damaged or missing."""
    return measures_of(run.recipe()["task"]["name"]).headline


def _read(key: str, axes: Mapping[str, Value], path: Path, state: str, error: str | None) -> Run:
    directory = RunDir(path)
    recipe = directory.recipe() if directory.resolved.exists() else None
    records = directory.records()
    summary = directory.final()
    if summary is not None:
        # the queue learns of it a moment later
        state, error = "done", None
        if not records:
            raise RunError(f"{path} has ended, but its {directory.metrics.name} is empty or missing; restore a copy")
    elif state == "done":
        state, error = "failed", "its summary.json is missing"
    if recipe:
        axes = {"epochs": recipe["epochs"], "seed": recipe["seed"]} | dict(axes)
    speeds = reading.read_json(directory.bench, BenchRecord)["results"]["rows"] if directory.bench.exists() else ()
    return Run(key, axes, path, state, error, recipe, records, summary, speeds)


def _distinguished(runs: Sequence[Run]) -> list[Run]:
    """The runs with axes derived from their recipes."""
    keys = {run.key: _bearing(run) for run in runs}
    # phase lengths follow from the run's length, unless there are two sets of them for one length
    short = {run.key: {key: value for key, value in keys[run.key].items() if not _a_length(key)} for run in runs}
    full_of: dict[Hashable, set[Hashable]] = defaultdict(set)
    for run in runs:
        full_of[_frozen(short[run.key]), run.epochs].add(_frozen(keys[run.key]))
    if all(len(variants) == 1 for variants in full_of.values()):
        keys = short
    varying = _varying(runs, keys)
    return [replace(run, axes=dict(run.axes) | _axes(run, keys[run.key], varying)) for run in runs]


def _varying(runs: Sequence[Run], keys: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys with several values; keys of a method's block are compared within the runs of that method."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        method = keys[run.key]["sparsity.method"]
        for key, value in keys[run.key].items():
            own = key.startswith("sparsity.") and key != "sparsity.method"
            seen[key, method if own else ""].add(repr(value))
    methods = {keys[run.key]["sparsity.method"] for run in runs} - {"dense"}
    several = {key for (key, _), values in seen.items() if len(values) > 1} - {"sparsity.method"}
    return sorted(several | ({"sparsity.method"} if len(methods) > 1 else set()))


def _axes(run: Run, keys: Mapping[str, Any], varying: Sequence[str]) -> dict[str, Value]:
    assert run.recipe is not None
    block = run.recipe["sparsity"]
    axes: dict[str, Value] = {"sparsity": "dense" if run.dense else block.get("target", block["method"])}
    if "sparsity.method" in varying and not run.dense:
        axes["method"] = block["method"]
    for key in varying:
        value = keys.get(key)
        if value is not None and key not in ("sparsity.method", "sparsity.target"):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            axes[key] = value if number else f"{key.rpartition('.')[2]} {value}"
    return axes


def _bearing(run: Run) -> dict[str, Any]:
    assert run.recipe is not None
    # the length is a separate axis
    return bearing(run.recipe, SAME_EXPERIMENT, LENGTH)


def _a_length(key: str) -> bool:
    return key.endswith("_epochs")


def _frozen(keys: Mapping[str, Any]) -> Hashable:
    return frozenset((key, repr(value)) for key, value in keys.items())
