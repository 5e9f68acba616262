"""Comparison of several runs: recipes, final numbers, and over seeds the mean, deviation and a paired test."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from acdc_cli import console
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.subject import Subject, run_of
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.errors import RunError
from acdc_cli.quantities import Measures
from acdc_cli.recipe.bearing import SAME_EXPERIMENT, bearing
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.flat import flat
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load
from acdc_cli.runs.outcome import Outcome, outcome
from acdc_cli.statistics import Paired, Spread, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE_BY_SIDE = 3
"""Number of groups that fit side by side in 80 columns."""


@dataclass(frozen=True)
class Known:
    """What is known of a run."""

    name: str
    recipe: Mapping[str, Any]
    """The recipe by dotted keys; `made_with` likewise."""
    made_with: Mapping[str, Any]
    """Device, versions, data and commit."""
    outcome: Outcome

    @property
    def measures(self) -> Measures:
        return measures_of(self.recipe["task.name"])

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    @property
    def state(self) -> str:
        return "finished" if self.outcome.finished else f"{self.outcome.epochs} of {self.recipe['epochs']} epochs"


@dataclass(frozen=True)
class Group:
    """Runs on the same data whose recipes differ only in the seed and in keys that do not affect the numbers."""

    name: str
    runs: Sequence[Known]

    @property
    def measures(self) -> Measures:
        return self.runs[0].measures

    @property
    def finished(self) -> list[Known]:
        return [run for run in self.runs if run.outcome.finished]

    def spread(self, key: str) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation (n - 1) over the finished runs; None if a run lacks the value, or for
        fewer than one or two runs."""
        values = [run.outcome.values[key] for run in self.finished]
        known = tuple(value for value in values if value is not None)
        if not known or len(known) < len(values):
            return None, None
        return Spread(known).mean, Spread(known).std

    def by_seed(self, key: str) -> dict[int, float]:
        """The values of the finished runs by seed; a seed that occurs twice cannot be paired and is left out."""
        times = Counter(run.seed for run in self.finished)
        values = {run.seed: run.outcome.values[key] for run in self.finished if times[run.seed] == 1}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Tested:
    """A group's difference from the first group."""

    group: str
    measure: str
    result: Paired


def analyze(subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings:
    """Differences are to the first run, tests against its group. Raises RunError for a subject that is not a run, and
    for a recipe changed by --set or --data."""
    if len(subjects) < 2:
        raise RunError(f"{subjects[0].name} is a single run; name at least two runs to compare")
    runs = []
    for subject in subjects:
        run = run_of(subject)
        if subject.recipe != load(run.resolved):
            raise RunError(
                f"{subject.name}: runs are compared by the recipes they were trained with; leave out --set and --data"
            )
        made_with = flat((run.provenance() or [{}])[-1])
        results = outcome(run, measures_of(subject.recipe.task.name), subject.kind)
        runs.append(Known(subject.name, flat(subject.recipe.as_dict()), made_with, results))
    tasks = {run.recipe["task.name"]: run.name for run in runs}
    if len(tasks) > 1:
        listed = ", ".join(f"{run} {task}" for task, run in tasks.items())
        raise RunError(f"the runs were trained for different tasks ({listed}); name runs of one task")
    return _findings(runs)


def tested(measures: Measures) -> tuple[str, ...]:
    """Measures that are tested between groups."""
    return measures.headline.key, measures.confidence.key, "val_loss"


def differing(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys whose values differ between blocks, with the value in each block; None where a block lacks the key."""
    keys = dict.fromkeys(key for block in blocks.values() for key in block)
    by_key = {key: {name: block.get(key) for name, block in blocks.items()} for key in keys}
    return {key: values for key, values in by_key.items() if len({repr(value) for value in values.values()}) > 1}


def grouped(runs: Sequence[Known]) -> list[Group]:
    """Groups in the order of their first runs."""
    groups: dict[str, list[Known]] = {}
    for run in runs:
        experiment = bearing(run.recipe, SAME_EXPERIMENT)
        # the path of a set does not matter, but a different set may lie there
        experiment |= {key: value for key, value in run.made_with.items() if key.startswith("data.fingerprint.")}
        groups.setdefault(repr(sorted(experiment.items())), []).append(run)
    names = [_name([run.name for run in group]) for group in groups.values()]
    # shortened names may coincide with others
    unique = len(set(names)) == len(names)
    return [Group(name if unique else group[0].name, group) for name, group in zip(names, groups.values(), strict=True)]


def _name(runs: Sequence[str]) -> str:
    """`small` for `small-0` and `small-1`; the first name if they have little in common."""
    # common prefix of characters, not of folders
    common = os.path.commonprefix(runs) if len(runs) > 1 else ""  # noqa: RUF071
    common = re.sub(r"[\W_]*(seed)?[\W_]*$", "", common)
    return common if len(common) >= len(runs[0]) / 2 else runs[0]


def against_first(groups: Sequence[Group]) -> list[Tested]:
    """Each group against the first, paired by seed."""
    first = groups[0]
    return [
        Tested(group.name, key, paired(group.by_seed(key), first.by_seed(key)))
        for group in groups[1:]
        for key in tested(first.measures)
    ]


def _findings(runs: Sequence[Known]) -> Findings:
    groups = grouped(runs)
    tests = against_first(groups)
    recipes = differing({run.name: run.recipe for run in runs})
    made_with = {
        key: values
        for key, values in differing({run.name: run.made_with for run in runs}).items()
        if key.partition(".")[0] not in ("time", "command", "end")
    }
    group_of = {run.name: group.name for group in groups for run in group.runs}
    of_runs = [_of_run(run, group_of[run.name], runs[0]) for run in runs]
    of_groups = [_of_group(group, list(runs[0].outcome.values)) for group in groups]
    of_tests = [{"group": test.group, "measure": test.measure, **asdict(test.result)} for test in tests]
    differences = recipes | {f"made with {key}": values for key, values in made_with.items()}
    return Findings(
        numbers={
            "first": runs[0].name,
            "runs": of_runs,
            "recipe_differences": recipes,
            "made_with_differences": made_with,
            "groups": of_groups,
            "tests_against_the_first_group": of_tests,
        },
        summary=_side_by_side(groups, tests, recipes) if len(groups) <= _SIDE_BY_SIDE else _below(groups, tests),
        tables={
            "": _table(of_runs, list(of_runs[0])),
            "groups": _table(of_groups, list(of_groups[0])),
            "tests": _table(of_tests, ["group", "measure", *(field.name for field in fields(Paired))]),
            "differences": Table(
                ("key", *(run.name for run in runs)), [(key, *values.values()) for key, values in differences.items()]
            ),
        },
        figures={"": draw(groups)},
    )


def _of_run(run: Known, group: str, first: Known) -> dict[str, Any]:
    pairs = {key: (value, first.outcome.values[key]) for key, value in run.outcome.values.items()}
    minus = {key: None if a is None or b is None else a - b for key, (a, b) in pairs.items()}
    return {
        "run": run.name,
        "group": group,
        "seed": run.seed,
        "state": run.state,
        **run.outcome.values,
        **{f"{key}_minus_first": value for key, value in minus.items()},
    }


def _of_group(group: Group, keys: Sequence[str]) -> dict[str, Any]:
    spreads = {key: group.spread(key) for key in keys}
    return {
        "group": group.name,
        "runs": len(group.runs),
        "finished": len(group.finished),
        **{f"{key}_mean": mean for key, (mean, _) in spreads.items()},
        **{f"{key}_std": std for key, (_, std) in spreads.items()},
    }


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    return Table(columns, [[row[column] for column in columns] for row in rows])


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _titles(measures: Measures) -> dict[str, tuple[str, Callable[[float], str]]]:
    """Titles and formats of the values that the summary shows, by key."""
    headline, confidence = measures.headline, measures.confidence
    title, undecided = (each.head if each.unit == "%" else each.axis for each in (headline, confidence))
    return {
        headline.key: (title, headline.shown),
        f"dense_{headline.key}": (f"dense model's {title}", headline.shown),
        "val_loss": ("loss (nats)", _nats),
        confidence.key: (undecided, confidence.shown),
        **_OF_WEIGHTS,
    }


_OF_WEIGHTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "sparsity_all": ("zero weights %", _percent),
    "nonzero": ("nonzero weights", _whole),
    "inference_flops_nominal": ("inference FLOPs", console.with_prefix),
    "inference_flops_measured": ("  measured", console.with_prefix),
    "train_flops_nominal": ("FLOPs of training", console.with_prefix),
    "train_flops_measured": ("  measured", console.with_prefix),
    "seconds": ("seconds of training", _whole),
}


def _cell(group: Group, key: str, deviation: bool = False) -> str:
    """`98.10 ± 0.12`; for a single run its value, finished or not."""
    show = _titles(group.measures)[key][1]
    mean, std = group.spread(key)
    if len(group.runs) == 1:
        mean = group.runs[0].outcome.values[key]
    if mean is None:
        return "-"
    return show(mean) + (f" ± {show(std)}" if std is not None and deviation else "")


def _counted(group: Group) -> str:
    if len(group.runs) == 1 and not group.finished:
        return group.runs[0].state
    whole = len(group.finished) == len(group.runs)
    return f"{len(group.finished)}" if whole else f"{len(group.finished)} of {len(group.runs)}"


def _lead(test: Tested | None, measures: Measures) -> str:
    if test is None or test.result.mean is None:
        return "-"
    return f"{'-' if test.result.mean < 0 else '+'}{_titles(measures)[test.measure][1](abs(test.result.mean))}"


def _p_value(test: Tested | None) -> str:
    return "-" if test is None or test.result.p is None else f"{test.result.p:.2g}"


def _side_by_side(groups: Sequence[Group], tests: Sequence[Tested], recipes: Mapping[str, Mapping[str, Any]]) -> Table:
    """One column for each group; one row for each measure and for each recipe key that differs."""
    measures = groups[0].measures
    rows = [("finished runs", *(_counted(group) for group in groups))]
    for key, (title, _) in _titles(measures).items():
        rows.append((title, *(_cell(group, key, key in tested(measures)) for group in groups)))
        of_measure = [test for test in tests if test.measure == key]
        if any(test.result.mean is not None for test in of_measure):
            rows.append(("  minus the first", "", *(_lead(test, measures) for test in of_measure)))
        if any(test.result.p is not None for test in of_measure):
            rows.append(("  p, paired by seed", "", *(_p_value(test) for test in of_measure)))
    for key, values in recipes.items():
        spelt = [["-" if values[run.name] is None else str(values[run.name]) for run in group.runs] for group in groups]
        rows.append((key, *(", ".join(dict.fromkeys(each)) for each in spelt)))
    return Table(("", *(group.name for group in groups)), rows)


def _below(groups: Sequence[Group], tests: Sequence[Tested]) -> Table:
    """One row for each group."""
    measures = groups[0].measures
    headline, confidence = measures.headline, measures.confidence
    leads = {test.group: test for test in tests if test.measure == headline.key}
    rows = [
        (
            group.name,
            _counted(group),
            _cell(group, headline.key, deviation=True),
            _lead(leads.get(group.name), measures),
            _p_value(leads.get(group.name)),
            *(_cell(group, key) for key in (confidence.key, "sparsity_all", "train_flops_measured")),
        )
        for group in groups
    ]
    return Table(("", "n", headline.head, "- 1st", "p", confidence.name, "zeros", "FLOPs"), rows)


def draw(groups: Sequence[Group]) -> Figure:
    """Headline and entropy of each run (or what its task has), hollow if unfinished; over seeds mean and deviation."""
    figure = plotting.new(8, 1.4 + 0.32 * len(groups))
    panels = figure.subplots(1, 2, sharey=True)
    headline, confidence = groups[0].measures.headline, groups[0].measures.confidence
    for panel, each, label in zip(
        panels, (headline, confidence), (headline.axis, f"validation {confidence.axis}"), strict=True
    ):
        key, scale = each.key, each.scale
        for row, group in enumerate(groups):
            for run in group.runs:
                if (value := run.outcome.values[key]) is not None:
                    fill = "full" if run.outcome.finished else "none"
                    # a group of one run has no mean to make room for
                    at = row + (0.18 if len(group.runs) > 1 else 0)
                    panel.plot([scale * value], [at], "o", color="0.35", markersize=4, fillstyle=fill)
            mean, std = group.spread(key)
            if mean is not None and std is not None:
                style = {"color": plotting.COLOURS[0], "marker": "D", "markersize": 5, "capsize": 3}
                panel.errorbar([scale * mean], [row - 0.12], xerr=[scale * std], **style)
        panel.set(xlabel=label)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(groups)), [group.name for group in groups], fontsize=8)
    panels[0].invert_yaxis()
    return figure
