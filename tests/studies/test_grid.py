"""A study's combinations, whatever its axes are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.recipe.syntax import read_value
from acdc_cli.studies.grid import Adjustment, Cell, Grid, Name, Value, key_of, override

NAMES = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8))


@st.composite
def grids(draw: st.DrawFn, exclude: bool = False) -> Grid:
    """Up to four axes, of which up to two pairs advance together."""
    axes = {}
    zipped = []
    for number in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 3))
        group = [f"a{number}", f"b{number}"] if draw(st.booleans()) else [f"a{number}"]
        for axis in group:
            names = draw(st.lists(NAMES, min_size=length, max_size=length, unique_by=str))
            axes[axis] = tuple(Value(name, {f"key.{axis}": name}) for name in names)
        if len(group) > 1:
            zipped.append(tuple(draw(st.permutations(group))))
    order = draw(st.permutations(list(axes)))
    grid = Grid({axis: axes[axis] for axis in order}, {}, tuple(zipped))
    if not exclude:
        return grid
    patterns = st.dictionaries(st.sampled_from(order), st.just(None), min_size=1)
    chosen = [
        {axis: draw(st.sampled_from(axes[axis])).name for axis in pattern}
        for pattern in draw(st.lists(patterns, max_size=3))
    ]
    return replace(grid, excluded=tuple(chosen))


def matches(cell: Cell, pattern: dict[str, Name]) -> bool:
    return all(cell.axes[axis] == name for axis, name in pattern.items())


@given(grids())
def test_there_are_as_many_runs_as_the_product_of_the_axes_those_that_advance_together_counting_once(
    grid: Grid,
) -> None:
    seconds = {group[1] for group in grid.zipped}
    assert len(grid.cells()) == math.prod(len(values) for axis, values in grid.axes.items() if axis not in seconds)


@given(grids())
def test_axes_that_advance_together_meet_at_the_same_positions_only(grid: Grid) -> None:
    for first, second in grid.zipped:
        positions = [
            tuple(
                [str(value.name) for value in grid.axes[axis]].index(str(cell.axes[axis])) for axis in (first, second)
            )
            for cell in grid.cells()
        ]
        assert all(one == other for one, other in positions)
        assert len(set(positions)) == len(grid.axes[first])


@given(grids(exclude=True))
def test_what_is_excluded_is_gone_and_nothing_else_is_and_the_order_stays(grid: Grid) -> None:
    everything = replace(grid, excluded=()).cells()
    left = [cell for cell in everything if not any(matches(cell, dict(pattern)) for pattern in grid.excluded)]
    assert grid.cells() == left


def test_an_adjustment_is_of_the_runs_that_have_all_its_values_and_comes_over_their_axes() -> None:
    method = (Value("gmp", {"sparsity.end": "75%"}), Value("str", {"sparsity.method": "str"}))
    sparsity = (Value(0.9, {"sparsity.target": 0.9}), Value(0.98, {"sparsity.target": 0.98}))
    late = Adjustment({"method": "gmp", "sparsity": 0.98}, {"sparsity.end": "90%"})
    decay = Adjustment({"method": "str"}, {"sparsity.s_decay": 0.01})
    cells = Grid({"method": method, "sparsity": sparsity}, {}, adjustments=(late, decay)).cells()
    assert [cell.overrides for cell in cells] == [
        ("sparsity.end=75%", "sparsity.target=0.9"),
        ("sparsity.end=75%", "sparsity.target=0.98", "sparsity.end=90%"),
        ("sparsity.target=0.9", "sparsity.s_decay=0.01", "sparsity.method=str"),
        ("sparsity.target=0.98", "sparsity.s_decay=0.01", "sparsity.method=str"),
    ]


@given(grids())
def test_every_run_has_a_directory_of_its_own_and_the_same_each_time(grid: Grid) -> None:
    cells = grid.cells()
    keys = [cell.key for cell in cells]
    # disks that take a for A are not asked for
    assert len(set(keys)) == len(keys)
    assert grid.cells() == cells
    assert all("/" not in key and "\\" not in key and key.isascii() and key.isprintable() for key in keys)


@given(grids())
def test_the_last_axis_changes_fastest(grid: Grid) -> None:
    free = [axis for axis in grid.axes if not any(axis in group for group in grid.zipped)]
    places = {axis: [value.name for value in values] for axis, values in grid.axes.items()}
    orders = [tuple(places[axis].index(cell.axes[axis]) for axis in free) for cell in grid.cells()]
    if len(free) == len(grid.axes):
        assert orders == sorted(orders)


@given(grids())
def test_each_run_sets_what_its_axes_say_and_no_more(grid: Grid) -> None:
    for cell in grid.cells():
        assert list(cell.axes) == list(grid.axes)
        assert cell.overrides == tuple(override(f"key.{axis}", name) for axis, name in cell.axes.items())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_an_override_means_its_value(value: object) -> None:
    key, _, text = override("a.b", value).partition("=")
    entry, problems = read_value(text, "")
    assert (key, entry.plain(), problems) == ("a.b", value, [])
    assert type(entry.plain()) is type(value)


@pytest.mark.parametrize(
    ("names", "key"),
    [
        ({"sparsity": 0.9, "epochs": 8, "seed": 0}, "sparsity=0.9,epochs=8,seed=0"),
        ({"optim.weight_decay": 1e-6}, "optim.weight_decay=1e-06"),
        ({"data.path": "../my data", "sparsity.pattern": "2:4"}, "data.path=..%2Fmy%20data,sparsity.pattern=2%3A4"),
        ({"a": "1,b=2"}, "a=1%2Cb%3D2"),
    ],
)
def test_a_key_reads_like_its_values_and_needs_no_care(names: dict[str, Name], key: str) -> None:
    assert key_of(names) == key


def test_what_chooses_a_kind_of_block_is_set_last_but_for_what_all_runs_have() -> None:
    method = Value("gmp", {"sparsity.method": "gmp", "sparsity.end": "75%"})
    rate = Value(0.1, {"optim.lr": 0.1})
    (cell,) = Grid({"method": (method,), "optim.lr": (rate,)}, {"sparsity.method": "acdc", "epochs": 9}).cells()
    assert cell.overrides == (
        "sparsity.method=acdc", "epochs=9", "sparsity.end=75%", "optim.lr=0.1", "sparsity.method=gmp",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ("optim.lr", "optim.lr", True),
        ("optim", "optim.lr", True),
        ("optim.schedule.end", "optim.schedule", True),
        ("optim.lr", "optim.lr_batch", False),
    ],
)
def test_two_axes_may_not_set_the_same_unless_those_runs_are_excluded(first: str, second: str, conflict: bool) -> None:
    grid = Grid({"a": (Value(1, {first: 1}), Value(2, {})), "b": (Value(1, {second: 2}), Value(2, {}))}, {})
    assert grid.conflicts() == ([("a", "b", second)] if conflict else [])
    assert replace(grid, excluded=({"a": 1, "b": 1},)).conflicts() == []
