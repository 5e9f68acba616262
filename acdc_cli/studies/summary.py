"""A study's statistics: mean and sample standard deviation over seeds, the best length, the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acdc_cli.errors import RunError
from acdc_cli.quantities import Measures, Quantity
from acdc_cli.statistics import Spread
from acdc_cli.studies.results import Run, Value


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in their seed."""

    series: str
    x: Value
    runs: tuple[Run, ...]
    """All planned runs."""

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.done]

    @property
    def measures(self) -> Measures:
        """Measures of the group's task. At least one of its runs must have begun."""
        return next(run.measures for run in self.runs if run.recipe)

    @property
    def undecided(self) -> str:
        """`entropy`, or the task's word for what it has in its place."""
        return self.measures.confidence.name

    @property
    def accuracy(self) -> Spread | None:
        """By the task's headline, over the runs' last epochs."""
        return self.last(self.measures.headline.key) if self.done else None

    @property
    def best_accuracy(self) -> Spread | None:
        return self.best(self.measures.headline.key) if self.done else None

    @property
    def confidence(self) -> Spread | None:
        """Entropy of the predictions, or what the task has in its place, over the runs' last epochs."""
        return self.last(self.measures.confidence.key) if self.done else None

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.runs)

    @property
    def dense(self) -> bool:
        return bool(self.done) and all(run.dense for run in self.done)

    @property
    def epochs(self) -> int:
        return self.runs[0].epochs

    def last(self, key: str) -> Spread | None:
        """Over the runs' last epochs; None if no run has ended or a value is missing or not finite."""
        return _spread(run.last.get(key) for run in self.done)

    def best(self, key: str) -> Spread | None:
        """Over the runs' best epochs, by the headline."""
        return _spread(run.best.get(key) for run in self.done)

    def cost(self, key: str) -> Spread | None:
        """Over `train_flops` or `inference_flops`, as measured."""
        return _spread(None if run.measured is None else run.measured[key] for run in self.done)


@dataclass(frozen=True, eq=False)
class Series:
    """One line in the figures."""

    name: str
    groups: tuple[Group, ...]

    @property
    def dense(self) -> bool:
        ended = [group for group in self.groups if group.done]
        return bool(ended) and all(group.dense for group in ended)

    def best_by(self, accuracy: Callable[[Group], Spread | None]) -> Group | None:
        """The group with the best mean, the first of equals; None while no run has ended."""
        known = [
            (group.measures.headline.rank(spread.mean), group) for group in self.groups if (spread := accuracy(group))
        ]
        return max(known, key=lambda pair: pair[0])[1] if known else None

    @property
    def best(self) -> Group | None:
        """The best group by the accuracy of the last epochs."""
        return self.best_by(lambda group: group.accuracy)

    @property
    def best_at_best_epoch(self) -> Group | None:
        return self.best_by(lambda group: group.best_accuracy)


@dataclass(frozen=True)
class Along:
    """The horizontal axis of the figures."""

    axis: str
    values: tuple[Value, ...]

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, int | float) for value in self.values)

    @property
    def sparsities(self) -> bool:
        """Whether the values are sparsities, which a dense model does not have."""
        return self.axis in ("sparsity", "sparsity.target")

    @property
    def log(self) -> bool:
        """Logarithmic for lengths, which are doubled; other values may be equal steps, or zero."""
        numbers = [value for value in self.values if isinstance(value, int | float)]
        if self.axis == "epochs":
            return True
        return self.numeric and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)


@dataclass(frozen=True)
class Summary:
    name: str
    along: Along
    series: tuple[Series, ...]

    @property
    def groups(self) -> list[Group]:
        return [group for series in self.series for group in series.groups]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def measures(self) -> Measures:
        """What the task of the runs measures. Raises RunError if they have several tasks."""
        tasks = {run.recipe["task"]["name"]: run for run in self.runs if run.recipe}
        first, *others = tasks.values()
        if different := [run for run in others if run.measures != first.measures]:
            raise RunError(
                f"{first.key} and {different[0].key} were trained for different tasks, whose numbers do not compare; "
                "give each task a study of its own"
            )
        return first.measures

    @property
    def missing(self) -> list[Run]:
        return [run for run in self.runs if not run.done]

    @property
    def best_dense(self) -> Group | None:
        """The dense model with the best headline after its last epoch."""
        groups = tuple(group for group in self.groups if group.dense)
        return Series("dense", groups).best


def summarise(name: str, runs: Sequence[Run], along: str | None = None, together: Iterable[set[str]] = ()) -> Summary:
    """along: the horizontal axis; by default the epochs if they vary, otherwise the first numeric axis that varies.

    together: sets of axes that advance together, so that one of them identifies the others.
    """
    axis = along or _axis(runs)
    followers = {other for group in together if axis in group for other in group}
    others = [other for other in _axes(runs) if other not in ("seed", axis, *followers)]
    shown = [other for other in others if _varies(runs, other)]
    if any(run.axes.keys().isdisjoint(shown) for run in runs):
        # otherwise a run would have no name
        shown = list(dict.fromkeys([*others[:1], *shown]))
    series: dict[str, dict[Value, list[Run]]] = {}
    for run in runs:
        label = ", ".join(_spell(other, run.axes[other]) for other in shown if other in run.axes) or name
        series.setdefault(label, {}).setdefault(run.axes[axis], []).append(run)
    values = _values(runs, axis)
    drawn_along = Along(
        axis, tuple(sorted(values)) if all(isinstance(v, int | float) for v in values) else tuple(values)
    )
    return Summary(
        name,
        drawn_along,
        tuple(
            Series(label, tuple(Group(label, x, tuple(by_x[x])) for x in drawn_along.values if x in by_x))
            for label, by_x in series.items()
        ),
    )


def pareto_front(points: Mapping[Any, tuple[float, float]]) -> list[Any]:
    """Keys of the points (cost, gain) that no other point beats in both, the cheapest first."""
    front: list[Any] = []
    for key, (_, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or gain > points[front[-1]][1]:
            front.append(key)
    return front


def front_of(points: Mapping[Any, tuple[float, float]], headline: Quantity) -> list[Any]:
    """The Pareto front of points (cost, headline)."""
    return pareto_front({key: (cost, headline.rank(value)) for key, (cost, value) in points.items()})


def accuracy_and_cost(groups: Iterable[Group]) -> dict[tuple[str, Value], tuple[float, float]]:
    """(training FLOPs, headline after the last epoch): means over the groups that have both."""
    return {
        (group.series, group.x): (cost.mean, accuracy.mean)
        for group in groups
        if (cost := group.cost("train_flops")) and (accuracy := group.accuracy)
    }


def _spread(values: Iterable[float | None]) -> Spread | None:
    given = tuple(values)
    numbers = tuple(value for value in given if value is not None)
    return Spread(numbers) if numbers and len(numbers) == len(given) else None


def _axes(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(axis for run in runs for axis in run.axes))


def _values(runs: Sequence[Run], axis: str) -> list[Value]:
    return list(dict.fromkeys(run.axes[axis] for run in runs if axis in run.axes))


def _varies(runs: Sequence[Run], axis: str) -> bool:
    """Whether the axis has several values, where its absence counts as one."""
    return len({run.axes.get(axis) for run in runs}) > 1


def _axis(runs: Sequence[Run]) -> str:
    common = [axis for axis in _axes(runs) if axis != "seed" and all(axis in run.axes for run in runs)]
    varying = [axis for axis in common if _varies(runs, axis)]
    if "epochs" in varying or not varying:
        return "epochs"
    numeric = (axis for axis in varying if all(isinstance(value, int | float) for value in _values(runs, axis)))
    return next(numeric, varying[0])


def _spell(axis: str, value: Value) -> str:
    """`90 %`, `dense`, `gmp` or `weight_decay 0.0001`."""
    if isinstance(value, str):
        return value
    if axis in ("sparsity", "sparsity.target"):
        return f"{100 * value:g} %"
    return f"{axis.rpartition('.')[2]} {value:g}"
