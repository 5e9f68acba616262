"""Doubles training lengths while the headline still improves (a study's `until_converged`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby

from acdc_cli.quantities import ACCURACY, Quantity
from acdc_cli.statistics import rises
from acdc_cli.studies.grid import Cell, key_of, override
from acdc_cli.studies.run_queue import Row, RunQueue

Series = tuple[tuple[str, object], ...]
"""What cells share that differ only in length and seed."""


def next_length(accuracies: Mapping[int, Sequence[float | None]]) -> int | None:
    """Twice the longest length, if it and the previous one are complete and the mean still rises.

    accuracies: one per seed, by length in epochs, the larger, the better; None for an unfinished run.
    """
    if len(accuracies) < 2:
        return None
    *_, before, longest = sorted(accuracies)
    known = [[value for value in accuracies[length] if value is not None] for length in (before, longest)]
    if sum(map(len, known)) < len(accuracies[before]) + len(accuracies[longest]):
        return None
    return 2 * longest if rises(*known) else None


def longer(cells: Iterable[tuple[Cell, float | None]]) -> list[list[Cell]]:
    """The cells of the next length for each series that needs one, with the seeds of its longest length.

    cells: with their validation accuracy, the larger, the better; None if unfinished.
    """
    extended = []
    by_series = sorted(cells, key=lambda pair: _order(series(pair[0])))
    for _, group in groupby(by_series, key=lambda pair: series(pair[0])):
        lengths: dict[int, list[tuple[Cell, float | None]]] = {}
        for cell, accuracy in group:
            lengths.setdefault(epochs(cell), []).append((cell, accuracy))
        following = next_length({length: [accuracy for _, accuracy in pairs] for length, pairs in lengths.items()})
        if following is not None:
            extended.append([with_epochs(cell, following) for cell, _ in lengths[max(lengths)]])
    return extended


def as_asked(cell: Cell, cells: Collection[Cell]) -> Cell | None:
    """The cell of this study with its key, or the lengthened cell itself if it follows from one; None if neither."""
    if same := next((other for other in cells if other.key == cell.key), None):
        return same
    alike = [other for other in cells if series(other) == series(cell) and _seed(other) == _seed(cell)]
    if "epochs" not in cell.axes or not alike:
        return None
    longest = max(alike, key=epochs)
    doubled = epochs(cell) / epochs(longest) in {2**doublings for doublings in range(1, 32)}
    return with_epochs(longest, epochs(cell)) if doubled else None


def overstepped(limits: Mapping[str, float], costs: Iterable[Mapping[str, float]]) -> list[str]:
    """The names of the limits that the sum of the costs exceeds."""
    costs = list(costs)
    return [name for name, limit in limits.items() if sum(cost[name] for cost in costs) > limit]


def still_improving(headline: Quantity) -> str:
    """`accuracy still rises`."""
    return f"{headline.common.name} still {headline.words.improves}"


def series(cell: Cell) -> Series:
    return tuple((name, value) for name, value in cell.axes.items() if name not in ("epochs", "seed"))


def _seed(cell: Cell) -> object:
    return cell.axes.get("seed")


def epochs(cell: Cell) -> int:
    return int(cell.axes["epochs"])


def with_epochs(cell: Cell, length: int) -> Cell:
    old, new = override("epochs", cell.axes["epochs"]), override("epochs", length)
    assert old in cell.overrides
    axes = {**cell.axes, "epochs": length}
    return Cell(key_of(axes), axes, tuple(new if each == old else each for each in cell.overrides))


def _order(key: Series) -> list[str]:
    return [str(part) for part in key]


class Lengthening:
    """Adds to a queue the runs that follow from the finished ones, as long as they fit the budget."""

    def __init__(
        self,
        queue: RunQueue,
        limits: Mapping[str, float],
        accuracy: Callable[[Row], float | None],
        cost: Callable[[Cell], Mapping[str, float]],
        misfit: Callable[[Cell], str | None],
        trend: str = still_improving(ACCURACY),
    ) -> None:
        """accuracy: of a finished run, the larger, the better. cost: one value for each limit. misfit: why a cell
        cannot be run, or None. trend: why runs are added."""
        self._queue, self._limits = queue, limits
        self._accuracy, self._cost, self._misfit = accuracy, cost, misfit
        self._trend = trend
        self._reported: set[str] = set()

    def __call__(self) -> list[str]:
        """Returns messages about the runs added and, once each, about those not added."""
        said: list[str] = []
        # a first pass without effect, so that slow work is cached before the queue is locked
        self._wanted(self._queue.rows(), [])
        added = self._queue.grow(lambda rows: self._wanted(rows, said))
        new = [f"{key} was added: {self._trend} with the length" for key in added]
        unsaid = [text for text in said if text not in self._reported]
        self._reported |= set(unsaid)
        return new + unsaid

    def _wanted(self, rows: Sequence[Row], said: list[str]) -> list[Cell]:
        wanted: list[Cell] = []
        done = [(row.cell, self._accuracy(row) if row.state == "done" else None) for row in rows]
        for cells in longer(done):
            what = f"{cells[0].key} and its other seeds were not added although {self._trend} with the length"
            if (misfit := next((text for cell in cells if (text := self._misfit(cell))), None)) is not None:
                said.append(f"{what}: {misfit}")
                continue
            costs = [self._cost(cell) for cell in (*(row.cell for row in rows), *wanted, *cells)]
            if over := overstepped(self._limits, costs):
                said.append(f"{what}: they would exceed the budget of {' and of '.join(over)}")
            else:
                wanted += cells
        return wanted
