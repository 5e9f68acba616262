"""`acdc verify-run`: whether a run's directory is what it claims to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from acdc_cli import files, reading
from acdc_cli.errors import AcdcError
from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import Which
from acdc_cli.jobs.data_search import open_found
from acdc_cli.jobs.evaluation import Options, evaluate_checkpoint
from acdc_cli.models.tensors import load_tensors
from acdc_cli.recipe.bearing import MAY_CHANGE_ON_RESUME, bearing, conflicts
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load
from acdc_cli.runs.forms import Record
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.schedule.learning_rate import learning_rate
from acdc_cli.schedule.sizes import sizes
from acdc_cli.training import saved_state
from acdc_cli.training.checkpoint import load_masks, load_state, read_metadata

ACCURACY, LOSS = 0.005, 0.02
"""By how much a model may differ from its record, as fractions: of top-1 in points, of the loss relatively, of a
headline that is no share by the larger of both. Devices and precisions round differently; a model of another epoch or
run differs by more."""


Result = tuple[str, list[str]]
"""What a check measured, and what is wrong."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    result: str
    problems: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        return "error" if self.problems else "ok"

    def as_dict(self) -> dict[str, Any]:
        return {"status": self.status, **asdict(self)}


class _Run:
    """A run, opened, with what several checks need."""

    def __init__(self, path: Path, overrides: tuple[str, ...]) -> None:
        self.directory: RunDir = open_run(path)
        self.recipe = load(self.directory.resolved)
        self.overrides = overrides
        self.records = self.directory.records()
        self.trained = "pruned" not in (self.directory.provenance() or [{}])[-1]
        """Otherwise `acdc prune` made it, at once."""
        self.by_epoch = {record["epoch"]: record for record in self.records}
        self.kinds = [kind for kind in get_args(Which) if self.directory.model_file(kind).exists()]
        given = load(self.directory.resolved, overrides)
        ready = setup.build(setup.without_start(given), open_found(given.data, path).labelled)
        self.phases = setup.sparsifier(self.recipe, ready.layers).phases

    def judged(self, kind: Which) -> dict[str, Any]:
        """The model's metrics and its nonzero weights, measured now."""
        return evaluate_checkpoint(self.directory.path, Options(which=kind, overrides=self.overrides))


def verify_run(path: Path, overrides: tuple[str, ...] = ()) -> list[Check]:
    """One check for each claim of a run's directory; nothing is written.

    overrides: of keys that do not affect the numbers, such as `data.path` or `device`.
    Raises an AcdcError if the run or its data cannot be opened at all.
    """
    run = _Run(path, overrides)
    checks: list[tuple[str, Callable[[_Run], Result]]] = [
        ("records", _records),
        ("schedule", _schedule if run.trained else _untrained),
        ("checkpoints", _checkpoints if run.trained else _untrained),
        ("masks", _masks),
        ("summary", _summary),
    ]
    return [
        *(_checked(name, check, run) for name, check in checks),
        *(_checked(f"{kind} model", partial(_model, kind=kind), run) for kind in run.kinds),
    ]


def _checked(name: str, check: Callable[[_Run], Result], run: _Run) -> Check:
    try:
        return Check(name, *check(run))
    # what a hostile file leads the recounting to
    except (AcdcError, ValueError, LookupError, TypeError, StopIteration) as error:
        return Check(name, "", [reading.in_words(error)])


def _untrained(run: _Run) -> Result:
    return "none: it was pruned at once, without training", []


def _records(run: _Run) -> Result:
    """Every epoch once and in order, with a cost that only grows."""
    epochs = [record["epoch"] for record in run.records]
    problems = []
    if epochs != list(range(len(epochs))):
        problems.append(f"epochs are missing, double or out of order: {_first_gap(epochs)}")
    if run.directory.finished and len(epochs) < run.recipe.epochs:
        problems.append(f"{len(epochs)} records of {run.recipe.epochs} epochs")
    flops = [record["train_flops"] for record in run.records if "train_flops" in record]
    if flops != sorted(flops):
        problems.append("train_flops decreases")
    unwritten = [record["epoch"] for record in run.records if record["train_loss"] is None]
    if unwritten and run.trained:
        problems.append(f"no finite training loss in epoch {unwritten[0]}")
    return f"{len(epochs)} of {run.recipe.epochs} epochs", problems


def _first_gap(epochs: list[int]) -> str:
    place = next(place for place, epoch in enumerate(epochs) if place != epoch)
    return f"line {place + 1} has epoch {epochs[place]}"


def _schedule(run: _Run) -> Result:
    """Phase, size of the samples and learning rate of each record are those of the recipe."""
    sides, problems = sizes(run.recipe), []
    for record in run.records:
        epoch = record["epoch"]
        steps = record["step"] // (epoch + 1)
        expected = {
            "phase": run.phases.at(epoch).kind,
            run.recipe.data.size_key: sides[epoch],
            "lr": learning_rate(run.recipe, epoch + (steps - 1) / steps),
        }
        for key, value in expected.items():
            same = math.isclose(record[key], value, rel_tol=1e-9) if key == "lr" else record[key] == value
            if not same:
                problems.append(f"epoch {epoch}: {key} is {record[key]}, by the recipe {value}")
    return f"phases, {run.recipe.data.size_key}s and learning rates are the recipe's", problems[:3]


def _checkpoints(run: _Run) -> Result:
    """The seals hold, and the state is of this recipe and as far as the records."""
    problems = []
    states = [run.directory.checkpoints / name for name in ("last.pt", "previous.pt")]
    for path in states:
        if path.exists() and not files.seal_holds(path):
            problems.append(f"{path.name} is damaged: its checksum does not match")
    state = load_state(run.directory.checkpoints)
    if state is None:
        return "none yet", problems + (["there is none"] if run.directory.finished else [])
    saved_state.require_form(state, run.directory.checkpoints)
    problems += _of_another_recipe(run, state["metadata"], "last.pt")
    trained = max(run.by_epoch, default=-1) + 1
    if state["epoch"] > trained or (run.directory.finished and state["epoch"] != run.recipe.epochs):
        problems.append(f"last.pt was saved after {state['epoch']} epochs, the records end after {trained}")
    within = f" and {state['step']} steps" if state["epoch"] < run.recipe.epochs else ""
    return f"saved after {state['epoch']} epochs{within}", problems


def _of_another_recipe(run: _Run, metadata: Mapping[str, Any], what: str) -> list[str]:
    own = bearing(run.recipe.as_dict(), MAY_CHANGE_ON_RESUME)
    saved = bearing(metadata["recipe"], MAY_CHANGE_ON_RESUME)
    return [f"{what} is of another recipe ({key})" for key in conflicts(saved, own)][:1]


def _masks(run: _Run) -> Result:
    """Every mask can be read and is as sparse as its record says."""
    problems, kept = [], run.directory.kept_masks()
    for each in kept:
        masks = load_masks(each.file)
        record = run.by_epoch.get(each.epoch)
        if record is None:
            problems.append(f"{each.file.name} has no record")
        elif "mask_sparsity" in record and not _same(_zeros(masks), record["mask_sparsity"]):
            problems.append(f"{each.file.name}: sparsity {_zeros(masks):.6f}, recorded {record['mask_sparsity']:.6f}")
    return f"{len(kept)} files agree with their records", problems[:3]


def _zeros(masks: Mapping[str, Tensor]) -> float:
    kept, weights = (sum(int(count(mask)) for mask in masks.values()) for count in (Tensor.sum, Tensor.numel))
    return 1 - kept / max(1, weights)


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=1e-9)


def _summary(run: _Run) -> Result:
    """The final numbers are those of the records."""
    summary = run.directory.final()
    if summary is None:
        return "unfinished: there is none", []
    problems = [
        f"{key} is {summary.get(key)}, by the recipe {value}"
        for key, value in (("name", run.recipe.name), ("seed", run.recipe.seed), ("epochs", run.recipe.epochs))
        if summary.get(key) != value
    ]
    for kind in ("sparse", "dense"):
        if kind in summary and summary[kind] != run.by_epoch.get(summary[kind]["epoch"]):
            problems.append(f"{kind}: not the record of epoch {summary[kind]['epoch']}")
    return "agrees with the records", problems


def _model(run: _Run, kind: Which) -> Result:
    """Its digest holds, its zeros are where mask and record have them, and it is as accurate as its record says."""
    header = read_metadata(run.directory.model_file(kind)) or {}
    record = header["metrics"]
    reading.require(record, Record)
    problems = _of_another_recipe(run, header, "the file")
    epoch = record["epoch"]
    if record["phase"] != kind.removesuffix("-ema"):
        problems.append(f"it is the model of another phase, {record['phase']}")
    if "ema" not in kind and record != run.by_epoch.get(epoch):
        problems.append(f"its header is not the record of epoch {epoch}")
    problems += _unmasked(run, kind, epoch)
    judged = run.judged(kind)
    for name, zeros in record["layers"].items():
        layer = next(each for each in judged["layers"] if each["name"] == name)
        if not _same(1 - layer["nonzero"] / layer["weights"], zeros):
            problems.append(
                f"{name} has {layer['nonzero']} of {layer['weights']} weights, recorded sparsity {zeros:.6f}"
            )
    loss, headline = record["val_loss"], measures_of(judged["task"]).headline
    now, then = judged[headline.key], record[headline.key]
    tolerance = ACCURACY if headline.unit == "%" else max(ACCURACY, LOSS * abs(then))
    shown, recorded = headline.spelt(now), headline.spelt(then)
    if abs(now - then) > tolerance or abs(judged["loss"] - loss) > LOSS * loss:
        problems.append(f"{headline.name} {shown}, loss {judged['loss']:.4f}; recorded {recorded}, {loss:.4f}")
    measured = f"{headline.name} {shown} (recorded {recorded}), sparsity {judged['sparsity']:.4%}"
    return f"epoch {epoch}: {measured}", problems


def _unmasked(run: _Run, kind: Which, epoch: int) -> list[str]:
    """Weights that the mask of the model's epoch excludes and that are not exactly zero."""
    mask_file = next((each.file for each in run.directory.kept_masks() if each.epoch == epoch), None)
    weights, _ = load_tensors(run.directory.model_file(kind))
    if mask_file is None:
        return []
    wrong = {
        name: count
        for name, mask in load_masks(mask_file).items()
        if (count := int(weights[name][~mask].count_nonzero()))
    }
    return [f"{count} weights of {name} outside its mask are not zero" for name, count in wrong.items()][:3]
