"""The study file: a base recipe, axes along which runs differ, and a budget; checked as a recipe is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from acdc_cli.errors import RecipeError
from acdc_cli.recipe import shipped
from acdc_cli.recipe.explain import explain, in_words, problem_at, unknown_name
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Block, Recipe
from acdc_cli.recipe.shape import Shape
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.recipe.syntax import Entry, KeyPath, Problem, read_file, read_text
from acdc_cli.studies.grid import Adjustment, Cell, Grid, Name, Value

Scalar = bool | int | float | str | None

_SHOWN = 20
"""Problems that are told at once."""
_LONGEST = 200
"""Characters of a run's key; names of files may have 255."""


class LabelledBlock(Block):
    label: str | int | float
    """Names the value in tables and directories."""
    set: dict[str, Any]
    """Keys of the recipe, as for `--set`, and what each is."""


AxisValue = Annotated[
    Scalar | LabelledBlock,
    Field(json_schema_extra={"expected": "a number, text, true, false, null or {label: NAME, set: {KEY: VALUE, …}}"}),
]
Values = list[AxisValue]


class LengthsBlock(Block):
    values: Values
    until_converged: bool = False
    """Of the axis `epochs`: double the longest length, series by series, as long as the validation accuracy still rises
    by more than one standard deviation over the seeds, and the budget allows it."""


Axis = Annotated[
    Values | LengthsBlock,
    Field(json_schema_extra={"expected": "a list of values, or a block with the keys values, until_converged"}),
]


class BudgetBlock(Block):
    """What all runs of the study may cost together, those included that `until_converged` adds."""

    runs: PositiveInt | None = None
    epochs: PositiveInt | None = None
    train_flops: PositiveFloat | None = None
    """As `acdc plan` counts them."""

    def limits(self) -> dict[str, float]:
        """Those that are given."""
        return {key: limit for key, limit in self.model_dump().items() if limit is not None}


class AdjustmentBlock(Block):
    where: dict[str, Scalar] = Field(
        min_length=1, json_schema_extra={"expected": "at least one axis and a value of it, such as `sparsity: 0.98`"}
    )
    """Values of axes; a run that has them all is adjusted."""
    set: dict[str, Any]
    """Keys of the recipe, as for `--set`, over those of the axes."""


class StudyBlock(Block):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        json_schema_extra={
            "expected": "a name of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        },
    )
    """Names the study directory: studies/<name>."""
    base: str
    """A recipe: a path relative to this file, or the name of one that comes with acdc."""
    set: dict[str, Any] = {}
    """Keys of the recipe, as for `--set`, in all runs."""
    axes: dict[str, Axis] = Field(
        min_length=1, json_schema_extra={"expected": "at least one axis such as `seed: [0, 1, 2]`"}
    )
    """Any key as for `--set`, or `sparsity`, whose values are `dense` or a share; or any name, where each value says by
    `label` and `set` what it is. Runs are made for all combinations."""
    zip: list[list[str]] = []
    """Axes that advance together instead: the first value of one with the first of the other."""
    exclude: list[dict[str, Scalar]] = []
    """Combinations of which no runs are made."""
    adjust: list[AdjustmentBlock] = []
    """Keys that some combinations need: a method's own at one sparsity, for example."""
    budget: BudgetBlock = BudgetBlock()


@dataclass(frozen=True)
class Study:
    name: str
    text: str
    """The file as it is."""
    base_recipe: Path
    grid: Grid
    until_converged: bool
    budget: BudgetBlock

    def cells(self) -> list[Cell]:
        return list(self._cells)

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of every cell, by its key.

        Raises RecipeError with all misfits of all cells, and where two of them are the same run.
        """
        recipes: dict[str, Recipe] = {}
        misfits: dict[str, list[str]] = {}
        for cell in self._cells:
            try:
                recipes[cell.key] = load(self.base_recipe, cell.overrides)
            except RecipeError as e:
                for line in str(e).splitlines():
                    misfits.setdefault(line, []).append(cell.key)
        lines = [f"{_some(keys)}: {line}" for line, keys in misfits.items()] or _repeated(recipes)
        if lines:
            raise RecipeError(_told(lines))
        return recipes

    @cached_property
    def _cells(self) -> list[Cell]:
        return self.grid.cells()


def load_study(source: str | Path) -> Study:
    """The study at a path, or the shipped one of that name.

    Raises RecipeError with one line for each thing that is wrong; whether the runs fit, `Study.recipes` tells.
    """
    file = shipped.find_study(source)
    root, problems = read_file(file, "a study is a block of keys such as `base: demo`")
    base, lost = _base(root, file)
    problems = [*problems, *lost]
    try:
        block = StudyBlock.model_validate(root.plain())
    except ValidationError as e:
        raise _refusal([*problems, *explain(e, root, Shape.of(StudyBlock))]) from e
    if problems := [*problems, *_misfits(root, block)]:
        raise _refusal(problems)
    grid = _grid(block)
    study = Study(block.name, read_text(file), base, grid, _until_converged(block), block.budget)
    if left := list(_misfits_of_runs(root, study)):
        raise _refusal(left)
    return study


def _refusal(problems: Sequence[Problem]) -> RecipeError:
    return RecipeError(_told([str(each) for each in sorted(problems, key=lambda problem: problem.place.line or 0)]))


def _told(lines: Sequence[str]) -> str:
    more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])


def _some(keys: Sequence[str]) -> str:
    others = len(keys) - 1
    return keys[0] + (f" and {others} other{'s' if others > 1 else ''}" if others else "")


def _repeated(recipes: Mapping[str, Recipe]) -> list[str]:
    first: dict[str, str] = {}
    repeated = []
    for key, recipe in recipes.items():
        same = first.setdefault(recipe.model_dump_json(), key)
        if same != key:
            repeated.append(f"{key} is the same run as {same}; leave it out with `exclude`")
    return repeated


def _base(root: Entry, file: Path) -> tuple[Path, list[Problem]]:
    """A path relative to the study's file, else a shipped recipe; whether it is given at all, others see to."""
    name = root.plain().get("base")
    beside = file.parent / name if isinstance(name, str) else file
    try:
        return Path(beside if os.path.isfile(beside) else shipped.find(name)).resolve(), []
    except RecipeError as e:
        return beside, [problem_at(root, ("base",), str(e))]


def _grid(block: StudyBlock) -> Grid:
    return Grid(
        axes={axis: tuple(_value(axis, value) for value in _values(block, axis)) for axis in block.axes},
        common=block.set,
        zipped=tuple(map(tuple, block.zip)),
        excluded=tuple(_names(each) for each in block.exclude),
        adjustments=tuple(Adjustment(_names(each.where), each.set) for each in block.adjust),
    )


def _values(block: StudyBlock, axis: str) -> Values:
    given = block.axes[axis]
    return given.values if isinstance(given, LengthsBlock) else given


def _until_converged(block: StudyBlock) -> bool:
    return any(isinstance(given, LengthsBlock) and given.until_converged for given in block.axes.values())


def _names(values: Mapping[str, Scalar]) -> dict[str, Name]:
    return {axis: _name(value) for axis, value in values.items()}


def _name(value: Scalar) -> Name:
    """As it is written."""
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else value


def _value(axis: str, given: AxisValue) -> Value:
    if isinstance(given, LabelledBlock):
        return Value(given.label, given.set)
    if axis != "sparsity":
        return Value(_name(given), {axis: given})
    return Value(_name(given), {"sparsity.method": "dense"} if given == "dense" else {"sparsity.target": given})


def _misfits(root: Entry, block: StudyBlock) -> Iterator[Problem]:
    """What is wrong with the axes and with what is said of them."""
    for axis in block.axes:
        yield from _misfits_of_axis(root, block, axis)
    names = list(block.axes)
    zipped = Counter(axis for group in block.zip for axis in group)
    for number, group in enumerate(block.zip):
        path: KeyPath = ("zip", number)
        lengths = {axis: len(_values(block, axis)) for axis in group if axis in names}
        if unknown := [axis for axis in group if axis not in names]:
            yield from (problem_at(root, path, _no_axis(axis, names)) for axis in unknown)
        elif len(group) < 2:
            yield problem_at(root, path, f"expected at least two axes, found {in_words(group)}")
        elif twice := [axis for axis in group if zipped[axis] > 1]:
            yield problem_at(root, path, f"{twice[0]} is named twice; name it once, with all that it advances with")
        elif len(set(lengths.values())) > 1:
            counts = ", ".join(f"{axis} has {length}" for axis, length in lengths.items())
            yield problem_at(root, path, f"axes that advance together have the same number of values; {counts}")
    for number, each in enumerate(block.exclude):
        if not each:
            yield problem_at(root, ("exclude", number), "it names no axis, so it would exclude every run; remove it")
        yield from _misfits_of_names(root, block, ("exclude", number), each)
    for number, adjustment in enumerate(block.adjust):
        yield from _misfits_of_names(root, block, ("adjust", number, "where"), adjustment.where)


def _misfits_of_names(root: Entry, block: StudyBlock, path: KeyPath, values: Mapping[str, Scalar]) -> Iterator[Problem]:
    """Axes that the study does not have, and values that its axes do not have."""
    for axis, value in values.items():
        if axis not in block.axes:
            yield problem_at(root, (*path, axis), _no_axis(axis, list(block.axes)))
        elif _name(value) not in (known := [_value(axis, given).name for given in _values(block, axis)]):
            yield problem_at(root, (*path, axis), unknown_name(_name(value), [str(name) for name in known]))


def _no_axis(axis: str, names: list[str]) -> str:
    return f"{axis} is not an axis{did_you_mean(axis, names)} (axes: {', '.join(names)})"


def _misfits_of_axis(root: Entry, block: StudyBlock, axis: str) -> Iterator[Problem]:
    given = _values(block, axis)
    spread = isinstance(block.axes[axis], LengthsBlock)
    path: KeyPath = ("axes", axis, "values") if spread else ("axes", axis)
    if not axis:
        yield problem_at(root, path, "expected a name or a key, found nothing")
    if not given:
        yield problem_at(root, path, "expected at least one value, found none; remove the axis")
    names = [str(_value(axis, value).name) for value in given]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield problem_at(root, (*path, number), f"{name} is given twice")
    if axis == "epochs":
        yield from _misfits_of_labels(root, given, path)
    if spread:
        yield from _misfits_of_lengths(root, block, axis)


def _misfits_of_labels(root: Entry, given: Values, path: KeyPath) -> Iterator[Problem]:
    """Of lengths: reports are drawn along them, and the next length follows from them."""
    for number, value in enumerate(given):
        if isinstance(value, LabelledBlock) and value.set.get("epochs") != value.label:
            text = f"the label of a length is what it sets `epochs` to; found {value.label}"
            yield problem_at(root, (*path, number), text)


def _misfits_of_lengths(root: Entry, block: StudyBlock, axis: str) -> Iterator[Problem]:
    """What `until_converged` needs, so that the next length can be told and its end be seen."""
    given = block.axes[axis]
    assert isinstance(given, LengthsBlock)
    if not given.until_converged:
        return
    path: KeyPath = ("axes", axis, "until_converged")
    if axis != "epochs":
        yield problem_at(root, path, f"it is for the axis `epochs`, not for {axis}")
        return
    if len(given.values) < 2 or len(_values(block, "seed") if "seed" in block.axes else []) < 2:
        yield problem_at(root, path, "it takes two lengths and two seeds to see whether accuracy rises; give more")
    if not block.budget.limits():
        yield problem_at(root, path, "without a `budget` it might never end; set one")
    if any("epochs" in group for group in block.zip):
        yield problem_at(root, path, "`epochs` advances with another axis, which has no values for longer runs")
    for number, value in enumerate(given.values):
        length = value.label if isinstance(value, LabelledBlock) else value
        if isinstance(length, bool) or not isinstance(length, int):
            text = f"a length that may be doubled is a whole number; found {_value(axis, value).name}"
            yield problem_at(root, ("axes", axis, "values", number), text)


def _misfits_of_runs(root: Entry, study: Study) -> Iterator[Problem]:
    cells = study.cells()
    if not cells:
        yield problem_at(root, ("exclude",), "no run is left")
        return
    for first, second, key in study.grid.conflicts():
        yield problem_at(root, ("axes", second), f"it sets {key}, and so does the axis {first}; leave one of them out")
    longest = max((cell.key for cell in cells), key=len)
    if len(longest) > _LONGEST:
        text = f"{longest[:60]}… is too long to name a directory; give long values a label"
        yield problem_at(root, ("axes",), text)
