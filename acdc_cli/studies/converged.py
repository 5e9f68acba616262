"""How long is long enough: training lengths are doubled while that pays (a study's `until_converged`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby

from acdc_cli.statistics import rises
from acdc_cli.studies.grid import Cell, key_of, override
from acdc_cli.studies.run_queue import Row, RunQueue

Series = tuple[tuple[str, object], ...]
"""What cells have in common that differ in their length and their seed only."""


def next_length(accuracies: Mapping[int, Sequence[float | None]]) -> int | None:
    """Twice the longest length, where that and the one before are all done and the mean still rises.

    accuracies: of each seed, by length in epochs; None: not done.
    """
    if len(accuracies) < 2:
        return None
    *_, before, longest = sorted(accuracies)
    known = [[value for value in accuracies[length] if value is not None] for length in (before, longest)]
    if sum(map(len, known)) < len(accuracies[before]) + len(accuracies[longest]):
        return None
    return 2 * longest if rises(*known) else None


def longer(cells: Iterable[tuple[Cell, float | None]]) -> list[list[Cell]]:
    """The cells of the next length of each series that has one, for all seeds of its longest.

    cells: with their validation accuracy, None where they are not done.
    """
    found = []
    by_series = sorted(cells, key=lambda pair: _order(series(pair[0])))
    for _, group in groupby(by_series, key=lambda pair: series(pair[0])):
        lengths: dict[int, list[tuple[Cell, float | None]]] = {}
        for cell, accuracy in group:
            lengths.setdefault(epochs(cell), []).append((cell, accuracy))
        following = next_length({length: [accuracy for _, accuracy in pairs] for length, pairs in lengths.items()})
        if following is not None:
            found.append([with_epochs(cell, following) for cell, _ in lengths[max(lengths)]])
    return found


def as_asked(cell: Cell, cells: Collection[Cell]) -> Cell | None:
    """The one of the cells that has its key, or it as it follows from them; None where it does not."""
    if same := next((other for other in cells if other.key == cell.key), None):
        return same
    alike = [other for other in cells if series(other) == series(cell) and _seed(other) == _seed(cell)]
    if "epochs" not in cell.axes or not alike:
        return None
    longest = max(alike, key=epochs)
    doubled = epochs(cell) / epochs(longest) in {2**doublings for doublings in range(1, 32)}
    return with_epochs(longest, epochs(cell)) if doubled else None


def overstepped(limits: Mapping[str, float], costs: Iterable[Mapping[str, float]]) -> list[str]:
    """The names of the limits that lie below the sum of the costs."""
    costs = list(costs)
    return [name for name, limit in limits.items() if sum(cost[name] for cost in costs) > limit]


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


def _order(found: Series) -> list[str]:
    return [str(part) for part in found]


class Lengthening:
    """Adds to a queue the runs that follow from those that are done, as long as they fit the budget."""

    def __init__(
        self,
        queue: RunQueue,
        limits: Mapping[str, float],
        accuracy: Callable[[Row], float | None],
        cost: Callable[[Cell], Mapping[str, float]],
        misfit: Callable[[Cell], str | None],
    ) -> None:
        """accuracy: of a run that is done. cost: with a value for each of the limits. misfit: why it cannot be run."""
        self._queue, self._limits = queue, limits
        self._accuracy, self._cost, self._misfit = accuracy, cost, misfit
        self._told: set[str] = set()

    def __call__(self) -> list[str]:
        """Says what it has added, and, once, what it has not."""
        said: list[str] = []
        # once for nothing, so that what takes long is known before the queue is held
        self._wanted(self._queue.rows(), [])
        added = self._queue.grow(lambda rows: self._wanted(rows, said))
        new = [f"{key} is added: accuracy still rises with the length" for key in added]
        unsaid = [text for text in said if text not in self._told]
        self._told |= set(unsaid)
        return new + unsaid

    def _wanted(self, rows: Sequence[Row], said: list[str]) -> list[Cell]:
        wanted: list[Cell] = []
        done = [(row.cell, self._accuracy(row) if row.state == "done" else None) for row in rows]
        for cells in longer(done):
            what = f"{cells[0].key} and its seeds are not added, though accuracy still rises with the length"
            if (misfit := next((text for cell in cells if (text := self._misfit(cell))), None)) is not None:
                said.append(f"{what}: {misfit}")
                continue
            costs = [self._cost(cell) for cell in (*(row.cell for row in rows), *wanted, *cells)]
            if over := overstepped(self._limits, costs):
                said.append(f"{what}: that would overstep the budget of {' and of '.join(over)}")
            else:
                wanted += cells
        return wanted
