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
"""A value as tables and directories name it."""

_KINDS = ("sparsity.method", "optim.name", "optim.schedule.name")
_READABLE = "+@"
"""What names of files may hold beside letters, digits and `_.-~`."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    key: str
    """Names its directory: `sparsity=0.9,epochs=8,seed=0`."""
    axes: Mapping[str, Name]
    overrides: tuple[str, ...]
    """`--set` over the study's base."""


@dataclass(frozen=True)
class Value:
    """One value of an axis."""

    name: Name
    settings: Mapping[str, Any]
    """Keys of the recipe, and what each is set to."""


@dataclass(frozen=True)
class Adjustment:
    """Settings of the runs that have all these values."""

    where: Mapping[str, Name]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    axes: Mapping[str, tuple[Value, ...]]
    common: Mapping[str, Any]
    """Settings of all runs, under those of the axes."""
    zipped: tuple[tuple[str, ...], ...] = ()
    """Axes of the same number of values, which advance together; each axis in one of them at most."""
    excluded: tuple[Mapping[str, Name], ...] = ()
    """No runs with all values of one of these."""
    adjustments: tuple[Adjustment, ...] = ()
    """Settings over those of the axes."""

    def cells(self) -> list[Cell]:
        """The last axis changes fastest."""
        return [self._cell(values) for values in self._combinations()]

    def conflicts(self) -> list[tuple[str, str, str]]:
        """Pairs of axes that both set a key in some run, or one a block and the other a key of it; and that key."""
        found = (
            (first, second, key)
            for values in self._combinations()
            for first, second in combinations(values, 2)
            for key in values[second].settings
            if any(_overlap(key, other) for other in values[first].settings)
        )
        return list(dict.fromkeys(found))

    def _combinations(self) -> Iterator[dict[str, Value]]:
        groups = [self._together(axis) for axis in self.axes]
        first = [group for axis, group in zip(self.axes, groups, strict=True) if axis == group[0]]
        steps = [[dict(zip(group, values, strict=True)) for values in self._rows(group)] for group in first]
        for chosen in product(*steps):
            found = {axis: value for step in chosen for axis, value in step.items()}
            if not self._is_excluded(found):
                yield {axis: found[axis] for axis in self.axes}

    def _rows(self, group: tuple[str, ...]) -> Iterator[tuple[Value, ...]]:
        return zip(*(self.axes[axis] for axis in group), strict=True)

    def _together(self, axis: str) -> tuple[str, ...]:
        """The axes that advance with this one and itself, in the order of the axes."""
        group = next((group for group in self.zipped if axis in group), (axis,))
        return tuple(each for each in self.axes if each in group)

    def _is_excluded(self, values: Mapping[str, Value]) -> bool:
        return any(_has(values, each) for each in self.excluded)

    def _cell(self, values: Mapping[str, Value]) -> Cell:
        names = {axis: value.name for axis, value in values.items()}
        own = [setting for value in values.values() for setting in value.settings.items()]
        own += [setting for each in self.adjustments if _has(values, each.where) for setting in each.settings.items()]
        # what chooses a kind of block comes last: with it, keys that only the other kind knows fall away
        own.sort(key=lambda setting: setting[0] in _KINDS)
        overrides = [override(key, value) for key, value in [*self.common.items(), *own]]
        return Cell(key_of(names), names, tuple(overrides))


def _has(values: Mapping[str, Value], names: Mapping[str, Name]) -> bool:
    return all(values[axis].name == name for axis, name in names.items())


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def key_of(names: Mapping[str, Name]) -> str:
    """Other for other names, and no name of a file that needs care anywhere."""
    return ",".join(f"{quote(axis, _READABLE)}={quote(str(name), _READABLE)}" for axis, name in names.items())


def override(key: str, value: Any) -> str:
    """`KEY=VALUE` for `--set`."""
    return f"{key}={value if isinstance(value, str) and _is_plain(value) else _in_json(value)}"


def _in_json(value: Any) -> str:
    """As YAML reads it: there an escape is a whole character, and what cannot be printed is not allowed."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def _is_plain(text: str) -> bool:
    """Does it mean itself without quotes?"""
    try:
        entry, problems = read_value(text, "")
    except RecipeError:
        return False
    return entry.value == text and not problems
