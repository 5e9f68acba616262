"""Output channels whose weights are all zero, and input channels, heads and neurons that are dead as a result (P2 K).

An input channel is dead if no image can change it, because every path from the image to it passes through a zero weight
(`base/reach.py` explains how this is tested). It may still be a nonzero constant, from a bias or from batch norm's
shift; the layer's weights on it then act as one more bias. Weights on dead input channels are called idle: they can be
removed without changing the function, once that constant is folded into what follows. Attention heads and feed-forward
neurons are counted in models that describe them (`base/dead_units.py` says when one is dead).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import nan
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from acdc_cli import console
from acdc_cli.analysis.base import dead_units, plotting
from acdc_cli.analysis.base.dead_units import Counts
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.reach import dead_inputs
from acdc_cli.analysis.base.subject import Subject
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.models.units import Units, units_of
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.runs.run_dir import Kept, RunDir
from acdc_cli.sparsity.prunable import Layer, layer_name
from acdc_cli.training.checkpoint import load_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Options(Block):
    inputs: bool = True
    """Also search for dead input channels, which takes up to three passes of one image in double precision."""


@dataclass(frozen=True)
class Channels:
    """Counts for one layer or several. None means unknown: the inputs of layers that are never called as modules."""

    outputs: int
    zero_outputs: int
    """Output channels whose weights are all exactly zero."""
    weights: int
    """Nonzero weights."""
    inputs: int | None = None
    dead_inputs: int | None = None
    idle_weights: int | None = None
    """Nonzero weights on dead input channels."""


@dataclass(frozen=True)
class MaskSnapshot:
    """Zero output channels, dead heads and neurons of the pruned layers when a mask was saved."""

    epoch: int
    phase: str
    layers: dict[str, Channels]
    units: Counts = field(default_factory=dict)


@dataclass(frozen=True)
class _Measured:
    kinds: dict[str, str]
    """`conv` or `linear`, for each layer."""
    layers: dict[str, Channels]
    units: Counts
    then: list[MaskSnapshot]


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """For runs, also over training, from the saved masks, unless the dense model is requested.

    Raises ModelError if the input channels cannot be followed.
    """
    measured = {}
    with console.progress("channels") as bar:
        for subject in bar.track(subjects, description="channels"):
            measured[subject.name] = _measured(subject, options)
    drawn = {"": draw({name: each.layers for name, each in measured.items()})}
    if then := {name: each.then for name, each in measured.items() if each.then}:
        drawn["over-time"] = draw_over_time(then)
    if units := {name: each.units for name, each in measured.items() if each.units}:
        drawn["units"] = dead_units.draw(units)
    return Findings(
        numbers={"models": {name: _numbers(each) for name, each in measured.items()}},
        summary=Table(
            ("model", "layers", "outputs", "zero", "inputs", "dead", "idle weights"),
            [row for name, each in measured.items() for row in _shown(name, each)],
        ),
        tables=_tables(measured),
        figures=drawn,
    )


def channels(model: nn.Module, layers: Sequence[Layer], side: int | None) -> dict[str, Channels]:
    """Counts for each layer of a model, by name.

    side: side of the images in pixels; None leaves out the input channels. Raises ModelError if torch cannot follow
    them.
    """
    dead = {} if side is None else dead_inputs(model, layers, side)
    return {layer.name: channels_of(layer.parameter.detach(), dead.get(layer.name)) for layer in layers}


def channels_of(weight: Tensor, dead: Tensor | None = None) -> Channels:
    """Counts for a layer's weight or mask: (outputs, inputs of a group, …).

    dead: a boolean for each input channel of all groups, or None if unknown.
    """
    lives = weight != 0
    counts = Channels(
        outputs=len(lives), zero_outputs=int((~lives.reshape(len(lives), -1).any(1)).sum()), weights=int(lives.sum())
    )
    if dead is None:
        return counts
    # (groups, outputs per group, inputs per group, taps)
    by_input = lives.reshape(dead.numel() // lives.shape[1], -1, lives.shape[1], lives[0, 0].numel())
    on_dead = by_input & dead.to(lives.device).view(len(by_input), 1, -1, 1)
    return replace(counts, inputs=dead.numel(), dead_inputs=int(dead.sum()), idle_weights=int(on_dead.sum()))


def together(layers: Iterable[Channels]) -> Channels:
    """Sums over layers; a quantity unknown for some layers is summed over the others."""
    layers = list(layers)
    known = [each for each in layers if each.inputs is not None]
    return Channels(
        outputs=sum(each.outputs for each in layers),
        zero_outputs=sum(each.zero_outputs for each in layers),
        weights=sum(each.weights for each in layers),
        inputs=sum(each.inputs or 0 for each in known) if known else None,
        dead_inputs=sum(each.dead_inputs or 0 for each in known) if known else None,
        idle_weights=sum(each.idle_weights or 0 for each in known) if known else None,
    )


def over_time(run: RunDir, units: Sequence[Units] = ()) -> list[MaskSnapshot]:
    """For each mask that a run saved, oldest first; empty if there is none. Holds one mask at a time."""
    return [_mask_snapshot(kept, load_masks(kept.file), units) for kept in run.kept_masks()]


def _mask_snapshot(kept: Kept, masks: Mapping[str, Tensor], units: Sequence[Units]) -> MaskSnapshot:
    layers = {layer_name(name): channels_of(mask) for name, mask in masks.items()}
    return MaskSnapshot(kept.epoch, kept.kind, layers, dead_units.count(units, masks))


def draw(models: Mapping[str, Mapping[str, Channels]]) -> Figure:
    """Fraction of each layer's channels, in the order of the layers."""
    names = list(dict.fromkeys(name for layers in models.values() for name in layers))
    places = {name: number for number, name in enumerate(names)}
    has_inputs = any(each.inputs is not None for layers in models.values() for each in layers.values())
    figure = plotting.new(min(max(7, 0.16 * len(names)), 20), 6 if has_inputs else 4)
    panels = figure.subplots(1 + has_inputs, sharex=True, squeeze=False)[:, 0]
    for (name, layers), style in zip(models.items(), plotting.styles(), strict=False):
        at = [places[layer] for layer in layers]
        panels[0].plot(at, [_percent(each.zero_outputs, each.outputs) for each in layers.values()], label=name, **style)
        if has_inputs:
            panels[1].plot(at, [_percent(each.dead_inputs, each.inputs) for each in layers.values()], **style)
    for panel, what in zip(panels, ("zero output channels (%)", "dead input channels (%)"), strict=False):
        plotting.from_zero(panel, what)
    panels[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    panels[-1].set(xlabel="layer")
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    return figure


def draw_over_time(runs: Mapping[str, Sequence[MaskSnapshot]]) -> Figure:
    """Shares of all pruned layers at each saved mask: zero output channels, then dead heads and neurons if any run has
    them."""
    kinds = [kind for kind in dead_units.KINDS if any(kind in then.units for each in runs.values() for then in each)]
    figure = plotting.new(7, 2.5 + 2 * (1 + len(kinds)))
    panels = figure.subplots(1 + len(kinds), sharex=True, squeeze=False)[:, 0]
    for (name, each), style in zip(runs.items(), plotting.styles(), strict=False):
        epochs = [then.epoch + 1 for then in each]
        all_layers = [together(then.layers.values()) for then in each]
        shares = [_percent(one.zero_outputs, one.outputs) for one in all_layers]
        panels[0].plot(epochs, shares, label=name, **style)
        for panel, kind in zip(panels[1:], kinds, strict=True):
            counted = [dead_units.together(then.units).get(kind) for then in each]
            panel.plot(epochs, [_percent(one.dead, one.total) if one else nan for one in counted], **style)
    # two lines where panels are low
    zero = ("\n" if kinds else " ").join(("zero output channels", "of pruned layers"))
    for panel, what in zip(panels, (zero, *(f"dead {kind}" for kind in kinds)), strict=True):
        plotting.from_zero(panel, f"{what} (%)")
    panels[-1].set(xlabel="epochs trained", xlim=(0, None))
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    return figure


def _measured(subject: Subject, options: Options) -> _Measured:
    loaded = subject.load()
    # what follows an input channel through the model is an image
    follows = options.inputs and isinstance(subject.recipe.data, ImagesBlock)
    side = subject.recipe.data.val_size if follows else None
    units = units_of(loaded.model)
    return _Measured(
        kinds={layer.name: layer.kind for layer in loaded.layers},
        layers=channels(loaded.model, loaded.layers, side),
        units=dead_units.count(units, dict(loaded.model.named_parameters())),
        then=over_time(subject.run, units) if subject.run is not None and subject.kind != "dense" else [],
    )


def _sums(measured: _Measured) -> dict[str, Channels]:
    """For the convolutions, whose share of zero output channels is P2's "avg" (Table K.8), and for all layers."""
    convolutions = [each for name, each in measured.layers.items() if measured.kinds[name] == "conv"]
    return ({"conv": together(convolutions)} if convolutions else {}) | {"all": together(measured.layers.values())}


def _numbers(measured: _Measured) -> dict[str, Any]:
    return {
        **{kind: asdict(each) for kind, each in _sums(measured).items()},
        "layers": {name: {"kind": measured.kinds[name], **asdict(each)} for name, each in measured.layers.items()},
        **{
            kind: asdict(each) | {"layers": {name: asdict(one) for name, one in measured.units[kind].items()}}
            for kind, each in dead_units.together(measured.units).items()
        },
        "pruned_layers_over_time": [
            {
                "epoch": then.epoch,
                "phase": then.phase,
                "outputs": together(then.layers.values()).outputs,
                "zero_outputs": together(then.layers.values()).zero_outputs,
                "layers": {name: each.zero_outputs for name, each in then.layers.items()},
                **{kind: asdict(each) for kind, each in dead_units.together(then.units).items()},
            }
            for then in measured.then
        ],
    }


def _shown(name: str, measured: _Measured) -> list[Sequence[str]]:
    layers: list[Sequence[str]] = [
        (
            name,
            kind,
            str(each.outputs),
            _cell(each.zero_outputs, each.outputs),
            "?" if each.inputs is None else str(each.inputs),
            _cell(each.dead_inputs, each.inputs),
            _cell(each.idle_weights, each.weights),
        )
        for kind, each in _sums(measured).items()
    ]
    # a unit is a group of inputs of the layer that reads it
    units = dead_units.together(measured.units).items()
    return [*layers, *((name, kind, "", "", str(each.total), _cell(each.dead, each.total), "") for kind, each in units)]


def _cell(part: int | None, whole: int | None) -> str:
    return "?" if part is None or whole is None else f"{_percent(part, whole):.2f}%"


def _percent(part: int | None, whole: int | None) -> float:
    return nan if part is None or not whole else 100 * part / whole


def _tables(measured: Mapping[str, _Measured]) -> dict[str, Table]:
    layers = [
        (name, layer, each.kinds[layer], *asdict(counts).values())
        for name, each in measured.items()
        for layer, counts in each.layers.items()
    ]
    tables = {"": Table(("model", "layer", "kind", *Channels.__dataclass_fields__), layers)}
    then = [
        (name, then.epoch, then.phase, layer, counts.outputs, counts.zero_outputs)
        for name, each in measured.items()
        for then in each.then
        for layer, counts in then.layers.items()
    ]
    if then:
        tables["over-time"] = Table(("run", "epoch", "phase", "layer", "outputs", "zero_outputs"), then)
    return tables | _unit_tables(measured)


def _unit_tables(measured: Mapping[str, _Measured]) -> dict[str, Table]:
    now = [(name, *row) for name, each in measured.items() for row in dead_units.rows(each.units)]
    then = [
        (name, then.epoch, then.phase, *row)
        for name, each in measured.items()
        for then in each.then
        for row in dead_units.rows(then.units)
    ]
    tables = {
        "units": Table(("model", *dead_units.COLUMNS), now),
        "units-over-time": Table(("run", "epoch", "phase", *dead_units.COLUMNS), then),
    }
    return {name: table for name, table in tables.items() if table.rows}
