"""A study's runs: every combination of its axes' values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any
from urllib.parse import quote

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.syntax import read_value

Name = str | int | float
"""A value as it appears in tables and directory names."""

_KINDS = ("sparsity.method", "optim.name", "optim.schedule.name")
_READABLE = "+@"
"""Characters allowed in file names besides letters, digits and `_.-~`."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    key: str
    """Name of its directory: `sparsity=0.9,epochs=8,seed=0`."""
    axes: Mapping[str, Name]
    overrides: tuple[str, ...]
    """`--set` arguments applied to the study's base."""

    @property
    def source(self) -> tuple[str, int] | None:
        """Key of the study's run that it forks, and after how many of its epochs."""
        fork = next((each.removeprefix("fork=") for each in self.overrides if each.startswith("fork=")), None)
        # keys have no slashes; the path of another run has
        if fork is None or "/" in fork:
            return None
        key, _, epochs = fork.rpartition("@")
        return (key, int(epochs)) if epochs.isdecimal() else None


@dataclass(frozen=True)
class Value:
    """One value of an axis."""

    name: Name
    settings: Mapping[str, Any]
    """Recipe keys and the values they are set to."""


@dataclass(frozen=True)
class Adjustment:
    """Settings for the runs that have all these values."""

    where: Mapping[str, Name]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Forking:
    """The runs with the values `where` fork those with the values `run` that have the same value on all other axes."""

    where: Mapping[str, Name]
    run: Mapping[str, Name]
    after: int
    """Epochs that the forked run has trained."""


@dataclass(frozen=True)
class Grid:
    axes: Mapping[str, tuple[Value, ...]]
    common: Mapping[str, Any]
    """Settings of all runs; those of the axes override them."""
    zipped: tuple[tuple[str, ...], ...] = ()
    """Axes with equally many values, which advance together; an axis belongs to at most one group."""
    excluded: tuple[Mapping[str, Name], ...] = ()
    """Runs that have all values of one of these are left out."""
    adjustments: tuple[Adjustment, ...] = ()
    """Settings that override those of the axes."""
    forks: tuple[Forking, ...] = ()
    """Runs that start from the state of others; a run forks at most one."""

    def cells(self) -> list[Cell]:
        """The cells of the grid; the last axis changes fastest."""
        return [self._cell(values) for values in self._combinations()]

    def conflicts(self) -> list[tuple[str, str, str]]:
        """Pairs of axes that set the same key in some run (or one a block and the other a key in it), with that key."""
        clashes = (
            (first, second, key)
            for values in self._combinations()
            for first, second in combinations(values, 2)
            for key in values[second].settings
            if any(_overlap(key, other) for other in values[first].settings)
        )
        return list(dict.fromkeys(clashes))

    def _combinations(self) -> Iterator[dict[str, Value]]:
        groups = [self._together(axis) for axis in self.axes]
        first = [group for axis, group in zip(self.axes, groups, strict=True) if axis == group[0]]
        steps = [[dict(zip(group, values, strict=True)) for values in self._rows(group)] for group in first]
        for chosen in product(*steps):
            combination = {axis: value for step in chosen for axis, value in step.items()}
            if not self._is_excluded(combination):
                yield {axis: combination[axis] for axis in self.axes}

    def _rows(self, group: tuple[str, ...]) -> Iterator[tuple[Value, ...]]:
        return zip(*(self.axes[axis] for axis in group), strict=True)

    def _together(self, axis: str) -> tuple[str, ...]:
        """This axis and those that advance with it, in the order of the axes."""
        group = next((group for group in self.zipped if axis in group), (axis,))
        return tuple(each for each in self.axes if each in group)

    def _is_excluded(self, values: Mapping[str, Value]) -> bool:
        return any(_matches(values, each) for each in self.excluded)

    def _cell(self, values: Mapping[str, Value]) -> Cell:
        names = {axis: value.name for axis, value in values.items()}
        own = [setting for value in values.values() for setting in value.settings.items()]
        own += [
            setting for each in self.adjustments if _matches(values, each.where) for setting in each.settings.items()
        ]
        # keys that choose the kind of a block come last: setting them drops the keys that only the other kind has
        own.sort(key=lambda setting: setting[0] in _KINDS)
        own += [
            ("fork", f"{key_of({**names, **each.run})}@{each.after}")
            for each in self.forks
            if _matches(values, each.where)
        ]
        overrides = [override(key, value) for key, value in [*self.common.items(), *own]]
        return Cell(key_of(names), names, tuple(overrides))


def _matches(values: Mapping[str, Value], names: Mapping[str, Name]) -> bool:
    return all(values[axis].name == name for axis, name in names.items())


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def key_of(names: Mapping[str, Name]) -> str:
    """Unique for each combination of names, and safe as a file name anywhere."""
    return ",".join(f"{quote(axis, _READABLE)}={quote(str(name), _READABLE)}" for axis, name in names.items())


def override(key: str, value: Any) -> str:
    """`KEY=VALUE` for `--set`."""
    return f"{key}={value if isinstance(value, str) and _is_plain(value) else _in_json(value)}"


def _in_json(value: Any) -> str:
    """JSON that YAML reads alike: YAML requires whole-character escapes and forbids unprintable characters."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def _is_plain(text: str) -> bool:
    """Whether YAML reads the unquoted text as the same string."""
    try:
        entry, problems = read_value(text, "")
    except RecipeError:
        return False
    return entry.value == text and not problems
