"""Transfers side by side: each set's metric, AIE against a baseline (P2, Table E.3), and bars by set (Figure E.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.statistics import Spread, mean, mean_of_known
from acdc_cli.transfer.aie import METRICS, Judged, average_increase_in_error, interval, judged
from acdc_cli.transfer.cells import Cell, Cells, Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Group:
    """The transfers of one experiment's models, which differ in their seed alone, in one mode."""

    name: str
    experiment: str
    mode: Mode
    sets: Mapping[str, Sequence[Cell]]

    def spread(self, to: str) -> Spread:
        return Spread(tuple(cell.score for cell in self.sets[to]))

    def errors(self, tasks: Sequence[str]) -> dict[str, float]:
        return {to: 1 - self.spread(to).mean for to in tasks}

    def by_seed(self, to: str) -> dict[tuple[int, int], float]:
        """Errors by upstream and downstream seed."""
        return {(cell.upstream_seed, cell.seed): 1 - cell.score for cell in self.sets[to]}


def report(cells: Cells, baseline: str) -> tuple[Findings, Table]:
    """The findings, and the table of AIE for the terminal.

    baseline: the baseline's experiment.
    """
    groups = _groups(list(cells.all()))
    rows = [_row(group, to) for group in groups for to in group.sets]
    bases = {group.mode: group for group in groups if group.experiment == baseline}
    increases = [row for group in groups if (row := _increase(group, bases.get(group.mode), cells)) is not None]
    shown = [(row["mode"], row["set"], row["model"], *_in_words(row), str(row["repetitions"])) for row in rows]
    findings = Findings(
        numbers={"baseline": next(iter(bases.values())).name, "sets": rows, "aie": increases},
        summary=Table(("mode", "set", "model", "metric", "× 100", "seeds"), sorted(shown)),
        tables={"": _table(rows)} | ({"aie": _table(increases)} if increases else {}),
        figures={"": draw(groups)},
    )
    lines = [(row["mode"], row["model"], str(len(row["sets"])), *_aie_in_words(row)) for row in increases]
    return findings, Table(("mode", "model", "sets", "AIE", "std", "95 % interval"), sorted(lines))


def _with_numbers(name: str) -> list[tuple[str, int]]:
    """Orders names so that epochs=8 stands before epochs=64."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _groups(cells: Sequence[Cell]) -> list[_Group]:
    gathered: dict[tuple[Mode, str], dict[str, list[Cell]]] = {}
    names: dict[str, str] = {}
    for cell in sorted(cells, key=lambda each: (each.mode, each.group, each.to, each.upstream_seed, each.seed)):
        names.setdefault(cell.experiment, cell.group)
        gathered.setdefault((cell.mode, cell.experiment), {}).setdefault(cell.to, []).append(cell)
    return [_Group(names[experiment], experiment, mode, sets) for (mode, experiment), sets in gathered.items()]


def _row(group: _Group, to: str) -> dict[str, Any]:
    spread, cells = group.spread(to), group.sets[to]
    return {
        "mode": group.mode,
        "set": to,
        "model": group.name,
        "metric": cells[0].metric,
        "mean": spread.mean,
        "std": spread.std,
        "repetitions": spread.n,
        "logistic": mean_of_known(cell.logistic for cell in cells),
        "sparsity": mean(cell.sparsity for cell in cells),
    }


def _increase(group: _Group, base: _Group | None, cells: Cells) -> dict[str, Any] | None:
    """None for the baseline itself, and where the baseline or a set in common is missing."""
    tasks = [to for to in group.sets if base and to in base.sets]
    if base is None or base is group or not tasks:
        return None
    pairs = [average_increase_in_error(*each) for each in _paired(group, base, tasks)]
    known = [value for value in pairs if value is not None]
    ours, theirs = ({to: _judged(each.sets[to], cells) for to in tasks} for each in (group, base))
    between = interval(ours, theirs)
    return {
        "mode": group.mode,
        "model": group.name,
        "baseline": base.name,
        "sets": tasks,
        "aie": average_increase_in_error(group.errors(tasks), base.errors(tasks)),
        "std": Spread(tuple(known)).std if known else None,
        "repetitions": len(known),
        "low": between[0] if between else None,
        "high": between[1] if between else None,
    }


def _paired(group: _Group, base: _Group, tasks: Sequence[str]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """The errors of both by set, for each pair of seeds that all sets have."""
    ours, theirs = ({to: each.by_seed(to) for to in tasks} for each in (group, base))
    seeds = set.intersection(*(set(by_seed) for each in (ours, theirs) for by_seed in each.values()))
    return [({to: ours[to][seed] for to in tasks}, {to: theirs[to][seed] for to in tasks}) for seed in sorted(seeds)]


def _judged(cells: Sequence[Cell], store: Cells) -> Judged:
    return judged(cells[0].metric, [store.answers(cell) for cell in cells])


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    texts = [{key: " ".join(each) if isinstance(each, list) else each for key, each in row.items()} for row in rows]
    return Table(tuple(rows[0]), [tuple(row.values()) for row in texts])


def _in_words(row: Mapping[str, Any]) -> tuple[str, str]:
    deviation = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
    return METRICS[row["metric"]].name, f"{100 * row['mean']:.2f}{deviation}"


def _aie_in_words(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if row["aie"] is None:
        return "undefined: the baseline makes no error on a set", "", ""
    std = "" if row["std"] is None else f"{row['std']:.3f}"
    between = "" if row["low"] is None else f"{row['low']:+.3f} … {row['high']:+.3f}"
    return f"{row['aie']:+.3f}", std, between


def draw(groups: Sequence[_Group]) -> Figure:
    """A panel for each mode: a cluster of bars for each set, a bar for each model, its deviation over seeds."""
    modes = sorted({group.mode for group in groups}, reverse=True)
    sets = sorted({to for group in groups for to in group.sets})
    names = sorted({group.name for group in groups}, key=_with_numbers)
    figure = plotting.new(2 + max(4.0, 0.22 * len(sets) * (len(names) + 1)), 3.4 * len(modes))
    panels = figure.subplots(len(modes), squeeze=False)[:, 0]
    for panel, mode in zip(panels, modes, strict=True):
        _bars(panel, {group.name: group for group in groups if group.mode == mode}, names, sets)
        panel.set(ylabel=f"metric × 100, {mode}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=2)
    return figure


def _bars(panel: Axes, groups: Mapping[str, _Group], names: Sequence[str], sets: Sequence[str]) -> None:
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        if name not in groups:
            continue
        there = [to for to in sets if to in groups[name].sets]
        spreads = [groups[name].spread(to) for to in there]
        panel.bar(
            [sets.index(to) + (number - (len(names) - 1) / 2) * width for to in there],
            [100 * each.mean for each in spreads],
            width,
            yerr=[100 * (each.std or 0) for each in spreads],
            color=plotting.COLOURS[number % len(plotting.COLOURS)],
            hatch=("", "//", "..")[number // len(plotting.COLOURS) % 3],
            edgecolor="white",
            ecolor="0.3",
            label=name,
        )
    metrics = {to: METRICS[group.sets[to][0].metric].name for group in groups.values() for to in group.sets}
    panel.set_xticks(range(len(sets)), [f"{to}\n{metrics[to]}" if to in metrics else to for to in sets], fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    panel.set_axisbelow(True)
