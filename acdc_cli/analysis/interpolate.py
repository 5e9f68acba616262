"""Interpolation: loss and accuracy on the straight lines between models, and the barriers on them (P2 M)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from acdc_cli import console
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.batch_norm import tracking
from acdc_cli.analysis.base.evenly import Evenly
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.analysis.base.path import State, barrier, estimate, walk
from acdc_cli.analysis.base.subject import Kind, Loaded, Subject
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.data.batches import Loader
from acdc_cli.errors import RunError
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.runs.run_dir import Kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Split = Literal["train", "val"]
Statistics = Literal["interpolated", "re-estimated"]
Rows = Sequence[Mapping[str, Any]]

_SHOWN = ("val_crop", "val_resize", "mean", "std")
"""How a recipe's `data` prepares images for the model."""
_MODEL = ("name", "blurpool", "options")
_IMAGES = {"train": "training images", "val": "validation images"}
_LOOKS: dict[str, dict[str, Any]] = {
    "interpolated": {"color": plotting.COLOURS[1], "linestyle": "--", "marker": "s", "markersize": 4},
    "re-estimated": {"color": plotting.COLOURS[0], "linestyle": "-", "marker": "*", "markersize": 9},
}
_SHORT = 18
"""Longest name that is written at a slant."""
_FORMULA = "barrier: max over t of L(t) - (1-t)·L(0) - t·L(1), t being the share of the way between two neighbours"


class Options(Block):
    points: PositiveInt = 10
    """Models between two neighbours, at equal distances; the neighbours themselves are evaluated too."""
    splits: Annotated[list[Split], Field(min_length=1)] = ["train", "val"]
    """Images to evaluate on: `[train, val]`, `[train]` or `[val]`."""
    images: PositiveInt = 10_000
    """Number of training images, evenly spaced over those in use (`data.images`), unaugmented; all of them if there are
    fewer."""
    statistics: Annotated[list[Statistics], Field(min_length=1)] = ["interpolated", "re-estimated"]
    """Batch norm's running statistics: interpolated like the weights, or re-estimated for every model."""
    bn_images: Annotated[int, Field(ge=2)] = 1000
    """Training images for the re-estimation, evenly spaced over those in use, unaugmented."""
    all_kinds: bool = False
    """For a single run: include the models saved in dense phases and ramps."""


@dataclass(frozen=True)
class _Stop:
    """A model that the path passes through."""

    name: str
    subject: Subject
    file: Path | None = None

    def load(self) -> Loaded:
        return self.subject.load(self.file)

    def state(self) -> State:
        return {name: tensor.cpu() for name, tensor in self.load().model.state_dict().items()}


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """Interpolates through the subjects' models in order, or, for a single run, through the models saved along it. All
    are evaluated on the data and in the precision of the first."""
    stops = _stops(subjects, options)
    _require_one_architecture(stops)
    loaded = stops[0].load()
    block = subjects[0].recipe.data
    statistics = options.statistics
    if not tracking(loaded.model):
        console.say(f"{stops[0].name} has no batch norm statistics to re-estimate")
        statistics = ["interpolated"]
    with ExitStack() as stack:
        images: dict[str, Loader] = {
            split: stack.enter_context(subjects[0].images(split, options.images if split == "train" else None))
            for split in dict.fromkeys(options.splits)
        }
        settle: dict[str, Callable[[], None]] = {}
        if "interpolated" in statistics:
            settle["interpolated"] = lambda: None
        if "re-estimated" in statistics:
            loader = stack.enter_context(subjects[0].images("train", options.bn_images))
            # three, so that no batch of the split has a single image
            evenly = Evenly(loader, max(3, block.val_batch_size or block.batch_size))
            settle["re-estimated"] = partial(estimate, loaded, evenly)
        rows = walk(loaded, [stop.state for stop in stops], images, settle, options.points, workspace)
        counts = {split: loader.samples for split, loader in images.items()}
    headline = measures_of(subjects[0].recipe.task.name).headline
    return _findings([stop.name for stop in stops], rows, counts, headline)


def missing(runs: Sequence[Forecast], options: Options) -> list[str]:
    if len(runs) > 1:
        return []
    (run,) = runs
    kept = _chosen(run.models, None, options)
    return [_too_few(run.name, len(kept), "")] if len(kept) < 2 else []


def _stops(subjects: Sequence[Subject], options: Options) -> list[_Stop]:
    if len(subjects) > 1:
        if options.all_kinds:
            raise RunError("all_kinds chooses among the saved models of a single run; leave it out or name one run")
        return [_Stop(subject.name, subject) for subject in subjects]
    (subject,) = subjects
    if subject.run is None:
        raise RunError(f"{subject.name} is one model; name at least two, or a run that saved several checkpoints")
    kept = _chosen(subject.run.kept_models(), subject.kind, options)
    if len(kept) < 2:
        raise RunError(_too_few(subject.name, len(kept), f" of {subject.kind} phases" if subject.kind else ""))
    return [_Stop(f"epoch {each.epoch}, {each.kind}", subject, each.file) for each in kept]


def _too_few(run: str, count: int, which: str) -> str:
    return (
        f"{run}: {count or 'no'} checkpoints{which} were saved, and a path needs two; train with "
        "checkpoint.keep_phases=true or checkpoint.keep_every=1, or name several runs or models"
    )


def _chosen(kept: Sequence[Kept], kind: Kind | None, options: Options) -> Sequence[Kept]:
    """The models of sparse phases if there are at least two, unless other kinds were requested."""
    if options.all_kinds and kind:
        raise RunError(f"all_kinds takes the models of all phases, --which {kind} only some; leave one of them out")
    if options.all_kinds:
        return kept
    of_kind = [each for each in kept if each.kind == (kind or "sparse")]
    return of_kind if kind or len(of_kind) > 1 else kept


def _require_one_architecture(stops: Sequence[_Stop]) -> None:
    """Raises RunError if the weights of one model do not fit the other, or mean something else there."""
    first, *others = {stop.subject.name: stop for stop in stops}.values()
    for other in others:
        for block, keys in (("model", _MODEL), ("data", _SHOWN)):
            ours, theirs = (getattr(stop.subject.recipe, block) for stop in (first, other))
            for key in keys:
                if getattr(ours, key) != getattr(theirs, key):
                    way = f"; if both saw the same, set both: --set data.{key}=VALUE" if block == "data" else ""
                    raise RunError(
                        f"{block}.{key} is {getattr(ours, key)} for {first.name} and {getattr(theirs, key)} for "
                        f"{other.name}: models that compute different functions cannot be interpolated{way}"
                    )
        shapes = [{name: tensor.shape for name, tensor in stop.state().items()} for stop in (first, other)]
        if differing := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
            raise RunError(
                f"{first.name} and {other.name} differ in the shape of {', '.join(dict.fromkeys(differing))}: models "
                "of different architectures cannot be interpolated"
            )


def _findings(names: Sequence[str], rows: Rows, counts: Mapping[str, int], headline: Quantity) -> Findings:
    barriers = _barriers(names, rows)
    columns = list(rows[0])
    return Findings(
        numbers={"path": names, "images": counts, "formula": _FORMULA, "points": rows, "barriers": barriers},
        summary=_summary(barriers),
        tables={
            "": Table(columns, [[row[column] for column in columns] for row in rows]),
            "barriers": Table(list(barriers[0]), [list(each.values()) for each in barriers]),
        },
        figures={"": draw(names, rows, headline)},
    )


def _barriers(names: Sequence[str], rows: Rows) -> list[dict[str, Any]]:
    barriers = []
    for number, (start, end) in enumerate(pairwise(names)):
        for (split, statistics), line in _lines(rows).items():
            losses = [row["loss"] for row in line if number <= row["position"] <= number + 1]
            height, share = barrier(losses)
            ends = {"loss_from": losses[0], "loss_to": losses[-1]}
            place = {"from": start, "to": end, "split": split, "statistics": statistics}
            barriers.append({**place, **ends, "height": height, "share": share})
    return barriers


def _lines(rows: Rows) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The rows of the whole path, by split and statistics."""
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["split"], row["statistics"]), []).append(row)
    return lines


def _summary(barriers: Rows) -> Table:
    """One row for each line of the path and each split, one column for each kind of statistics."""
    statistics = list(dict.fromkeys(each["statistics"] for each in barriers))
    heights: dict[tuple[str, str], list[str]] = {}
    for each in barriers:
        key = (f"{each['from']} → {each['to']}", each["split"])
        heights.setdefault(key, []).append(f"{each['height']:.4f}")
    return Table(
        ("barrier (nats) between", "images", *(f"{each} BN" for each in statistics)),
        [(*key, *values) for key, values in heights.items()],
    )


def draw(names: Sequence[str], rows: Rows, headline: Quantity) -> Figure:
    """Loss and accuracy along the path, one column of panels for each split; vertical lines and markers show its
    models."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    figure = plotting.new(1 + 3.6 * len(splits), 6)
    panels = figure.subplots(2, len(splits), sharex=True, sharey="row", squeeze=False)
    for split, (loss, accuracy) in zip(splits, panels.T, strict=True):
        _draw(loss, rows, split, "loss")
        _draw(accuracy, rows, split, headline.key, headline.scale)
        for panel in (loss, accuracy):
            for number in range(len(names)):
                panel.axvline(number, color="0.75", linewidth=0.8, zorder=0)
            panel.grid(axis="y", alpha=0.3)
        loss.set(title=_IMAGES[split])
        plotting.log(loss, "y")
        rotated: dict[str, Any] = {"rotation": 90 if max(map(len, names)) > _SHORT else 30, "fontsize": 8}
        accuracy.set_xticks(range(len(names)), names, ha="right", va="center", rotation_mode="anchor", **rotated)
    panels[0, 0].set(ylabel="cross entropy (nats)")
    panels[1, 0].set(ylabel=headline.axis)
    figure.supxlabel("models on the path, and between them", fontsize=10)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(2, len(splits)), fontsize=8
    )
    return figure


def _draw(panel: Axes, rows: Rows, split: str, key: str, scale: float = 1) -> None:
    for (of, statistics), line in _lines(rows).items():
        if of == split:
            positions = [row["position"] for row in line]
            models = [step for step, position in enumerate(positions) if position == int(position)]
            label = f"{statistics} batch norm statistics"
            values = [scale * row[key] for row in line]
            panel.plot(positions, values, markevery=models, label=label, **_LOOKS[statistics])
