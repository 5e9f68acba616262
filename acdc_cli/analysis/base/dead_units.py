"""Attention heads and feed-forward neurons whose contribution no input can change, given which weights are zero.

A unit's channel carries something from the inputs to the outputs only if its row of the weight that writes it and its
column of the weight that reads it each have a nonzero weight. A unit without such a channel is dead: what it adds is
zero, or a constant made of biases, because attention weights sum to one. This holds if all its rows are zero, if all
its columns are, or if each channel lacks one of the two.

Zero query or key rows kill no head: it still averages values. Their biases, or those of relative positions, may still
tell positions apart, so such heads are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acdc_cli.analysis.base import plotting
from acdc_cli.models.units import Kind, Units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: Sequence[Kind] = ("heads", "neurons")
COLUMNS = ("layer", "kind", "total", "dead")


@dataclass(frozen=True)
class UnitCount:
    """All units and dead units of one layer or several."""

    total: int
    dead: int


Counts = Mapping[Kind, Mapping[str, UnitCount]]
"""By kind, then by layer. A kind that the model lacks is left out."""


def dead_units(units: Units, weights: Mapping[str, Tensor]) -> Tensor:
    """(count,), a boolean for each unit.  weights: parameters or masks by name; nothing is zero in one that is missing,
    of two."""
    lives: list[Tensor] = []
    if (written := weights.get(units.writes)) is not None:
        lives.append((written.chunk(units.parts)[units.part] != 0).any(1))
    if (read := weights.get(units.reads)) is not None:
        lives.append((read != 0).any(0))
    return ~torch.stack(lives).all(0).view(units.count, -1).any(1)


def count(units: Sequence[Units], weights: Mapping[str, Tensor]) -> Counts:
    """Units whose two weights are both missing are left out."""
    counts: dict[Kind, dict[str, UnitCount]] = {}
    for each in units:
        if weights.keys() & {each.writes, each.reads}:
            dead = int(dead_units(each, weights).sum())
            counts.setdefault(each.kind, {})[each.layer] = UnitCount(each.count, dead)
    return counts


def together(counts: Counts) -> dict[Kind, UnitCount]:
    """Sums over layers."""
    return {
        kind: UnitCount(sum(each.total for each in layers.values()), sum(each.dead for each in layers.values()))
        for kind, layers in counts.items()
    }


def rows(counts: Counts) -> list[tuple[str, str, int, int]]:
    """Rows of the `COLUMNS`."""
    return [(name, kind, each.total, each.dead) for kind, layers in counts.items() for name, each in layers.items()]


def draw(models: Mapping[str, Counts]) -> Figure:
    """Dead share of each layer's units, in the order of the layers: a panel for each kind."""
    kinds = [kind for kind in KINDS if any(kind in counts for counts in models.values())]
    names = {
        kind: list(dict.fromkeys(name for each in models.values() for name in each.get(kind, {}))) for kind in kinds
    }
    layer_count = max(map(len, names.values()))
    figure = plotting.new(min(max(7, 0.16 * layer_count), 20), 1.5 + 2.5 * len(kinds))
    for panel, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
        for (model, counts), style in zip(models.items(), plotting.styles(), strict=False):
            layers = counts.get(kind, {})
            at = [names[kind].index(name) for name in layers]
            panel.plot(at, [100 * each.dead / each.total for each in layers.values()], label=model, **style)
        panel.set_xticks(range(len(names[kind])), names[kind], rotation=90, fontsize=7)
        plotting.from_zero(panel, f"dead {kind} (%)")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=2)
    return figure
