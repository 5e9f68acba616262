"""Masks over time: overlap of consecutive masks, weights never pruned or regrown, densities of layers (P2 J, Fig. J.5).

The measured overlap is shown beside three that follow from a rule; s and d = 1 - s are the masks' sparsity and density.

- `nested`: (1 - s2) / (1 - s1) of the two masks, for a method that only prunes, like GMP (or d1 / d2 for one that only
  grows). No two masks of these sparsities overlap more.
- `gmp`: the same for GMP's sparsities at these epochs: with the run's keys if its method is a GMP variant, otherwise on
  P2 B's cubic to the last mask's sparsity, with a step every 5 epochs up to T = 75 % of the run.
- `rigl`: p / (2 - p), p = Π (1 - α(t)) over the updates t between the two masks, α(t) = a/2 (1 + cos(πt/T)) (P2 eq. 6):
  with the run's keys if its method is a RigL variant, otherwise P2 J's: an update every epoch, a = 0.3, T = 75 % of the
  run. See `exchanged` for the assumptions.
- `rigl_random`, with `random_regrowth`: the same updates, but dropped weights may return; see `returned`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import nan
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import NonNegativeInt, PositiveInt

from acdc_cli import console
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.analysis.base.mask_history import (
    History,
    Masks,
    Weights,
    exchanged,
    history,
    iou,
    nested,
    nonzero,
    returned,
    updates,
)
from acdc_cli.analysis.base.mask_history import overlap as overlap
from acdc_cli.analysis.base.subject import Subject, records_of, whole_run_of
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.analysis.curves import phases
from acdc_cli.errors import CheckpointError, RunError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import Kept
from acdc_cli.sparsity.exchange import ExchangeKeys
from acdc_cli.sparsity.methods import gmp, rigl
from acdc_cli.training.checkpoint import load_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

_RULES = {
    "nested": "(1 - s2) / (1 - s1), of the sparsities of the two masks: a method that only prunes, or only grows",
    "gmp": "(1 - s2) / (1 - s1), of GMP's sparsities at these epochs",
    "rigl": "p / (2 - p), p = prod(1 - a/2 (1 + cos(pi t/T))) over the updates t between the two masks: every live "
    "weight is dropped with the same probability, and no dropped weight returns",
}
_RANDOM = {
    "rigl_random": "x / (2 - x), x <- y + a (1 - y) / (1/d - (1 - a)), y = (1 - a) x, at each of the same updates; d: "
    "the density of each layer of a run of RigL, otherwise of the last mask: dropped weights may return at random"
}
_SLANTED: dict[str, Any] = {"rotation": 20, "ha": "right", "fontsize": 8}
_DRAWN = {
    "nested": ("these sparsities, nested: (1 − s₂) / (1 − s₁)", "-"),
    "gmp": ("GMP's sparsities: (1 − s₂) / (1 − s₁)", "--"),
    "rigl": ("RigL: p / (2 − p), p = Π (1 − α(t)), none returns", ":"),
    "rigl_random": ("RigL, regrown at random", "-."),
}


class Options(Block):
    every: PositiveInt = 1
    """Use every N-th mask, counted back from the last."""
    phase_ends: bool = False
    """Use only the masks at the ends of phases if more were saved (`checkpoint.keep_masks_every`)."""
    models: bool = False
    """For runs: instead of masks, use the nonzero weights of the models saved along the way (`checkpoint.keep_every`,
    `keep_phases`), in dense phases too."""
    since: NonNegativeInt = 0
    """For runs: leave out earlier epochs."""
    common: bool = False
    """For several runs: use only the epochs of which every run has saved a mask."""
    random_regrowth: bool = False
    """For runs: add RigL's overlap if dropped weights may be regrown at random."""


@dataclass(frozen=True)
class _Series:
    name: str
    labels: Sequence[str | int]
    """The source of each mask: the epoch after which it was saved, or a file."""
    history: History
    rules: Mapping[str, Sequence[float]]
    """Overlaps by the keys of `_RULES`."""


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """For runs, each one's saved masks; for files, the masks of their nonzero weights, in the order given.

    Raises RunError for fewer than two masks, or for a mixture of runs and files.
    """
    files = [subject for subject in subjects if subject.run is None]
    if files and len(files) < len(subjects):
        raise RunError("runs and files cannot be mixed: name only run directories, or only files in the order of time")
    if files:
        series = [_of_files(files, options)]
    else:
        kept = _thinned({subject.name: _saved(subject, options) for subject in subjects}, options)
        series = [_of_run(subject, kept[subject.name], options) for subject in subjects]
    rules = _RULES | (_RANDOM if options.random_regrowth else {})
    return Findings(
        numbers={"rules": rules, "series": {each.name: _numbers(each) for each in series}},
        summary=Table(
            ("masks of", "number", "sparsity", "IoU: mean", "last", "never pruned", "always", "regrown"),
            [_shown(each) for each in series],
        ),
        tables=_tables(series, list(rules)),
        figures={"": draw_overlaps(series), "density": draw_densities(series)},
    )


def missing(runs: Sequence[Forecast], options: Options) -> list[str]:
    saved = {run.name: _chosen(run.models if options.models else run.masks, run.phase_ends, options) for run in runs}
    return [
        f"{name}: {_too_few(len(kept), options)}" for name, kept in _thinned(saved, options).items() if len(kept) < 2
    ]


def draw_overlaps(series: Sequence[_Series]) -> Figure:
    """IoU over epochs or files; the rules' curves are those of the first run."""
    figure = plotting.new(7, 5)
    panel = figure.subplots()
    for each, style in zip(series, plotting.styles(), strict=False):
        panel.plot(_places(each)[1:], each.history.ious, label=each.name, **style)
    first = series[0]
    for rule, values in first.rules.items():
        label, line = _DRAWN[rule]
        panel.plot(_places(first)[1:], values, label=label, color="0.35", linestyle=line, linewidth=1)
    panel.set(ylabel="IoU with the previous mask", ylim=(-0.03, 1.03))
    if _over_epochs(first):
        panel.set(xlabel="epochs trained", xlim=(0, None))
    else:
        panel.set_xticks(_places(first)[1:], _words(first)[1:], **_SLANTED)
    panel.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    return figure


def draw_densities(series: Sequence[_Series]) -> Figure:
    """A heat map for each series: layers downwards, masks to the right."""
    layer_count = max(len(each.history.layers) for each in series)
    figure = plotting.new(7, len(series) * (1.8 + 0.15 * layer_count))
    for panel, each in zip(figure.subplots(len(series), squeeze=False)[:, 0], series, strict=True):
        past, masks = each.history, len(each.labels)
        shares = [[100 * count / past.layers[name].weights for count in row] for name, row in past.living.items()]
        image = panel.imshow(shares, aspect="auto", interpolation="nearest", cmap="cividis", vmin=0)
        ticks = range(0, masks, -(-masks // 16))
        panel.set_xticks(ticks, [_words(each)[tick] for tick in ticks], **({} if _over_epochs(each) else _SLANTED))
        panel.set(xlabel="epochs trained" if _over_epochs(each) else "")
        panel.set_yticks(range(len(shares)), list(past.layers), fontsize=7)
        panel.set(title=each.name)
        figure.colorbar(image, ax=panel, label="live weights (%)")
    return figure


def _of_run(subject: Subject, kept: Sequence[Kept], options: Options) -> _Series:
    if len(kept) < 2:
        raise RunError(f"{subject.name}: {_too_few(len(kept), options)}")
    epochs = [each.epoch for each in kept]
    past = history(_same_layers(_read(kept, subject, options)))
    rules = {
        "nested": nested(past.densities),
        "gmp": _gmp(subject.recipe, epochs, 1 - past.densities[-1]),
        "rigl": [exchanged(fractions) for fractions in _rigl(subject, epochs)],
    }
    if options.random_regrowth:
        rules["rigl_random"] = [_at_random(subject, past, fractions) for fractions in _rigl(subject, epochs)]
    return _Series(subject.name, epochs, past, rules)


def _saved(subject: Subject, options: Options) -> list[Kept]:
    run = whole_run_of(subject)
    ends = {end - 1 for _, _, end in phases(records_of(subject))} if options.phase_ends else set()
    return _chosen(run.kept_models() if options.models else run.kept_masks(), ends, options)


def _chosen(kept: Sequence[Kept], phase_ends: Set[int], options: Options) -> list[Kept]:
    """phase_ends: the last epochs of phases."""
    late = [each for each in kept if each.epoch >= options.since]
    return [each for each in late if each.epoch in phase_ends] if options.phase_ends else late


def _thinned(runs: Mapping[str, Sequence[Kept]], options: Options) -> dict[str, list[Kept]]:
    shared = set.intersection(*({each.epoch for each in kept} for kept in runs.values()))
    return {
        name: _every_nth([each for each in kept if not options.common or each.epoch in shared], options.every)
        for name, kept in runs.items()
    }


def _too_few(count: int, options: Options) -> str:
    if options.models:
        return (
            f"an overlap needs two models, and {count} remain; train with checkpoint.keep_every=N to save one every N "
            "epochs, or leave out models=true"
        )
    return (
        f"an overlap needs two masks, and {count} remain. Masks are saved at the end of each phase that is not dense; "
        "train with checkpoint.keep_masks_every=N to save one every N epochs as well"
    )


def _of_files(subjects: Sequence[Subject], options: Options) -> _Series:
    if of_runs := options.model_fields_set & {"phase_ends", "models", "since", "common", "random_regrowth"}:
        raise RunError(f"{min(of_runs)}: files have no phases and no epochs; leave it out, or name run directories")
    chosen = _every_nth(subjects, options.every)
    if len(chosen) < 2:
        raise RunError("an overlap needs two masks, but only one file remains; name another file or a run directory")
    past = history(_same_layers((subject.name, nonzero(subject.load().layers)) for subject in chosen))
    names = [subject.name for subject in chosen]
    return _Series(f"{len(chosen)} files", names, past, {"nested": nested(past.densities)})


def _every_nth(sequence: Sequence[T], every: int) -> list[T]:
    return list(sequence[::-1][::every][::-1])


def _read(kept: Sequence[Kept], subject: Subject, options: Options) -> Iterator[tuple[str, Masks]]:
    with console.progress(subject.name) as bar:
        for each in bar.track(kept, description=subject.name):
            masks = nonzero(subject.load(each.file).layers) if options.models else load_masks(each.file)
            yield str(each.file), masks


def _same_layers(named: Iterable[tuple[str, Masks]]) -> Iterator[Masks]:
    """The masks; raises CheckpointError at the first whose layers or shapes differ from those before it."""
    first: dict[str, torch.Size] = {}
    first_name = ""
    for name, masks in named:
        shapes = {layer: mask.shape for layer, mask in masks.items()}
        first, first_name = first or shapes, first_name or name
        if shapes != first or not shapes:
            raise CheckpointError(
                f"{first_name} and {name} do not prune the same layers; name files of one model with the same "
                "sparsity.keep_dense"
            )
        yield masks


def _gmp(recipe: Recipe, epochs: Sequence[int], target: float) -> list[float]:
    own = recipe.sparsity
    cubic = own if isinstance(own, gmp.Config) else gmp.Config(method="gmp", target=target)
    return nested([1 - cubic.sparsity(epoch, recipe.epochs) for epoch in epochs])


def _rigl(subject: Subject, epochs: Sequence[int]) -> list[list[float]]:
    """The fractions that RigL's updates exchange between each two masks."""
    own, steps_per_epoch = subject.recipe.sparsity, 1
    if isinstance(own, ExchangeKeys):
        config, last = own, records_of(subject)[-1]
        steps_per_epoch = last["step"] // (last["epoch"] + 1)
    else:
        # any target will do: the exchanged fraction does not depend on it
        config = rigl.Config(method="rigl", target=0.5, every_epochs=1)
    return [updates(config, after, until, subject.recipe.epochs, steps_per_epoch) for after, until in pairwise(epochs)]


def _at_random(subject: Subject, past: History, fractions: Sequence[float]) -> float:
    """Layers of a run of RigL have densities of their own; another run has no layers of RigL's to compare with."""
    living, sizes = [counts[-1] for counts in past.living.values()], [each.weights for each in past.layers.values()]
    if not isinstance(subject.recipe.sparsity, ExchangeKeys):
        living, sizes = [sum(living)], [sum(sizes)]
    alive = [(count, returned(fractions, count / size)) for count, size in zip(living, sizes, strict=True) if count]
    share = sum(count * each for count, each in alive) / sum(living) if alive else nan
    return share / (2 - share)


def _numbers(series: _Series) -> dict[str, Any]:
    past, ious = series.history, series.history.ious
    rules = [dict(zip(series.rules, values, strict=True)) for values in zip(*series.rules.values(), strict=True)]
    return {
        "weights": asdict(past.all_layers),
        "layers": {name: asdict(counts) for name, counts in past.layers.items()},
        "masks": [
            {
                "of": label,
                "sparsity": 1 - density,
                "densities": {name: past.living[name][number] / one.weights for name, one in past.layers.items()},
            }
            for number, (label, density) in enumerate(zip(series.labels, past.densities, strict=True))
        ],
        "overlaps": [
            {
                "from": before,
                "to": after,
                "iou": ious[number],
                **rules[number],
                "layers": {name: iou(*counts[number]) for name, counts in past.overlaps.items()},
            }
            for number, (before, after) in enumerate(pairwise(series.labels))
        ],
    }


def _shown(series: _Series) -> tuple[str, ...]:
    ious, weights = series.history.ious, series.history.all_layers
    shares = [count / weights.weights for count in (weights.never_pruned, weights.always_pruned, weights.regrown)]
    return (
        series.name,
        str(len(series.labels)),
        f"{1 - series.history.densities[-1]:.2%}",
        f"{sum(ious) / len(ious):.3f}",
        f"{ious[-1]:.3f}",
        *(f"{share:.2%}" for share in shares),
    )


def _tables(series: Sequence[_Series], rules: Sequence[str]) -> dict[str, Table]:
    """The rows of layer "" are sums over all layers."""
    overlaps: list[Sequence[Any]] = []
    densities: list[Sequence[Any]] = []
    weights: list[Sequence[Any]] = []
    for name, numbers in ((each.name, _numbers(each)) for each in series):
        for pair in numbers["overlaps"]:
            span, unknown = (name, pair["from"], pair["to"]), [None] * len(rules)
            overlaps.append((*span, "", pair["iou"], *(pair.get(rule) for rule in rules)))
            overlaps += [(*span, layer, value, *unknown) for layer, value in pair["layers"].items()]
        for mask in numbers["masks"]:
            shares = {"": 1 - mask["sparsity"], **mask["densities"]}
            densities += [(name, mask["of"], layer, density) for layer, density in shares.items()]
        counted = {"": numbers["weights"], **numbers["layers"]}
        weights += [(name, layer, *counts.values()) for layer, counts in counted.items()]
    return {
        "": Table(("masks_of", "from", "to", "layer", "iou", *rules), overlaps),
        "density": Table(("masks_of", "mask", "layer", "density"), densities),
        "weights": Table(("masks_of", "layer", *Weights.__dataclass_fields__), weights),
    }


def _over_epochs(series: _Series) -> bool:
    return isinstance(series.labels[0], int)


def _places(series: _Series) -> list[int]:
    """Epochs trained, or positions of the files."""
    return [label + 1 if isinstance(label, int) else number for number, label in enumerate(series.labels)]


def _words(series: _Series) -> list[str]:
    return [str(label + 1) if isinstance(label, int) else label for label in series.labels]
