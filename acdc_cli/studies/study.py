"""The study file: a base recipe, axes along which runs differ, and a budget; validated like a recipe."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from acdc_cli.errors import RecipeError
from acdc_cli.recipe import shipped
from acdc_cli.recipe.blocks.base import epochs_of
from acdc_cli.recipe.discovery import ANALYSES
from acdc_cli.recipe.explain import explain, in_words, problem_at, unknown_name
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.shape import Shape
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.recipe.syntax import Entry, KeyPath, Problem, read_file, read_text
from acdc_cli.studies.grid import Adjustment, Cell, Forking, Grid, Name, Value
from acdc_cli.studies.study_schema import (
    AnalysisBlock,
    AxisValue,
    BudgetBlock,
    LabelledBlock,
    LengthsBlock,
    Scalar,
    StudyBlock,
    Values,
    name_of,
)

_SHOWN = 20
"""Largest number of problems reported at once."""
_LONGEST = 200
"""Largest number of characters in a run's key; file names may have 255."""


@dataclass(frozen=True)
class Study:
    name: str
    text: str
    """The text of the file."""
    base_recipe: Path
    grid: Grid
    until_converged: bool
    budget: BudgetBlock
    analyses: Mapping[str, AnalysisBlock]

    def cells(self) -> list[Cell]:
        return list(self._cells)

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of every cell, by its key.

        Raises RecipeError listing every problem of every cell, or if two cells are the same run.
        """
        recipes: dict[str, Recipe] = {}
        misfits: dict[str, list[str]] = {}
        for cell in self._cells:
            try:
                recipes[cell.key] = load(self.base_recipe, cell.overrides)
            except RecipeError as e:
                for line in str(e).splitlines():
                    misfits.setdefault(line, []).append(cell.key)
        lines = [f"{_first_and_count(keys)}: {line}" for line, keys in misfits.items()] or _repeated(recipes)
        lines = lines or self._stateless(recipes)
        if lines:
            raise RecipeError(_shortened(lines))
        return recipes

    def _stateless(self, recipes: Mapping[str, Recipe]) -> list[str]:
        """Forks of two runs, and of runs that do not exist or will not keep the state."""
        lines = []
        for cell in self._cells:
            if cell.source is None:
                continue
            key, after = cell.source
            source = recipes.get(key)
            if sum(each.startswith("fork=") for each in cell.overrides) > 1:
                lines.append(f"{cell.key}: it would fork several runs; let one entry of `fork` match it")
            elif source is None:
                lines.append(f"{cell.key}: it would fork {key}, which is not a run of the study")
            elif after not in [epochs_of(each, source.epochs) for each in source.checkpoint.keep_states]:
                lines.append(f"{cell.key}: {key} keeps no state after {after} epochs; set checkpoint.keep_states there")
            elif after <= source.forked_after:
                # without this, runs could wait for each other
                lines.append(f"{cell.key}: {key} is itself a fork after {source.forked_after} epochs; fork it later")
        return lines

    @cached_property
    def _cells(self) -> list[Cell]:
        return self.grid.cells()


def load_study(source: str | Path) -> Study:
    """The study at a path, or the shipped one of that name.

    Raises RecipeError with one line for each problem in the file; `Study.recipes` checks the runs.
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
    study = Study(block.name, read_text(file), base, grid, _until_converged(block), block.budget, block.analyses)
    if left := list(_misfits_of_runs(root, study)):
        raise _refusal(left)
    return study


def _refusal(problems: Sequence[Problem]) -> RecipeError:
    return RecipeError(
        _shortened([str(each) for each in sorted(problems, key=lambda problem: problem.place.line or 0)])
    )


def _shortened(lines: Sequence[str]) -> str:
    more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])


def _first_and_count(keys: Sequence[str]) -> str:
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
    """A path relative to the study's file, otherwise a shipped recipe. A missing `base` is reported elsewhere."""
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
        forks=tuple(Forking(_names(each.where), _names(each.run), each.after) for each in block.fork),
        adjustments=tuple(Adjustment(_names(each.where), each.set) for each in block.adjust),
    )


def _values(block: StudyBlock, axis: str) -> Values:
    given = block.axes[axis]
    return given.values if isinstance(given, LengthsBlock) else given


def _until_converged(block: StudyBlock) -> bool:
    return any(isinstance(given, LengthsBlock) and given.until_converged for given in block.axes.values())


def _names(values: Mapping[str, Scalar]) -> dict[str, Name]:
    return {axis: name_of(value) for axis, value in values.items()}


def _value(axis: str, given: AxisValue) -> Value:
    if isinstance(given, LabelledBlock):
        return Value(given.label, given.set)
    if axis != "sparsity":
        return Value(name_of(given), {axis: given})
    return Value(name_of(given), {"sparsity.method": "dense"} if given == "dense" else {"sparsity.target": given})


def _misfits(root: Entry, block: StudyBlock) -> Iterator[Problem]:
    """Problems with the axes and with references to them."""
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
            yield problem_at(root, path, f"{twice[0]} occurs twice; name it once, with all axes that advance with it")
        elif len(set(lengths.values())) > 1:
            counts = ", ".join(f"{axis} has {length}" for axis, length in lengths.items())
            yield problem_at(root, path, f"axes that advance together need the same number of values; {counts}")
    for number, each in enumerate(block.exclude):
        if not each:
            yield problem_at(root, ("exclude", number), "without an axis it would exclude every run; remove it")
        yield from _misfits_of_names(root, block, ("exclude", number), each)
    for number, adjustment in enumerate(block.adjust):
        yield from _misfits_of_names(root, block, ("adjust", number, "where"), adjustment.where)
    if block.fork and _until_converged(block):
        yield problem_at(root, ("fork",), "runs that `until_converged` adds cannot be forks; leave out one of them")
    for number, fork in enumerate(block.fork):
        for key in ("where", "run"):
            yield from _misfits_of_names(root, block, ("fork", number, key), getattr(fork, key))
    for label, analysis in block.analyses.items():
        yield from _misfits_of_analysis(root, block, label, analysis)


def _misfits_of_analysis(root: Entry, block: StudyBlock, label: str, analysis: AnalysisBlock) -> Iterator[Problem]:
    path: KeyPath = ("analyses", label)
    if (name := analysis.analysis or label) not in ANALYSES.names():
        yield problem_at(root, (*path, "analysis"), unknown_name(name, ANALYSES.names()))
    for number, selection in enumerate(analysis.runs):
        for axis, values in selection.where.items():
            for value in values if isinstance(values, list) else [values]:
                yield from _misfits_of_names(root, block, (*path, "runs", number, "where"), {axis: value})


def _misfits_of_names(root: Entry, block: StudyBlock, path: KeyPath, values: Mapping[str, Scalar]) -> Iterator[Problem]:
    """References to unknown axes or to values that an axis does not have."""
    for axis, value in values.items():
        if axis not in block.axes:
            yield problem_at(root, (*path, axis), _no_axis(axis, list(block.axes)))
        elif name_of(value) not in (known := [_value(axis, given).name for given in _values(block, axis)]):
            yield problem_at(root, (*path, axis), unknown_name(name_of(value), [str(name) for name in known]))


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
    """Labels of lengths must equal `epochs`: reports are drawn along them, and the next length follows from them."""
    for number, value in enumerate(given):
        if isinstance(value, LabelledBlock) and value.set.get("epochs") != value.label:
            text = f"the label of a length must equal its `epochs`; found {value.label}"
            yield problem_at(root, (*path, number), text)


def _misfits_of_lengths(root: Entry, block: StudyBlock, axis: str) -> Iterator[Problem]:
    """What `until_converged` needs to find the next length and to stop."""
    given = block.axes[axis]
    assert isinstance(given, LengthsBlock)
    if not given.until_converged:
        return
    path: KeyPath = ("axes", axis, "until_converged")
    if axis != "epochs":
        yield problem_at(root, path, f"it applies only to the axis `epochs`, not to {axis}")
        return
    if len(given.values) < 2 or len(_values(block, "seed") if "seed" in block.axes else []) < 2:
        yield problem_at(
            root, path, "it needs at least two lengths and two seeds to tell whether accuracy rises; add more"
        )
    if not block.budget.limits():
        yield problem_at(root, path, "without a `budget` it might never end; set one")
    if any("epochs" in group for group in block.zip):
        yield problem_at(root, path, "`epochs` advances with another axis, which has no values for longer runs")
    for number, value in enumerate(given.values):
        length = value.label if isinstance(value, LabelledBlock) else value
        if isinstance(length, bool) or not isinstance(length, int):
            text = f"a length to be doubled must be a whole number; found {_value(axis, value).name}"
            yield problem_at(root, ("axes", axis, "values", number), text)


def _misfits_of_runs(root: Entry, study: Study) -> Iterator[Problem]:
    cells = study.cells()
    if not cells:
        yield problem_at(root, ("exclude",), "every run is excluded; remove some exclusions")
        return
    for first, second, key in study.grid.conflicts():
        yield problem_at(root, ("axes", second), f"it sets {key}, and so does the axis {first}; remove one of them")
    for label, analysis in study.analyses.items():
        for number, selection in enumerate(analysis.runs):
            if not any(selection.takes(cell) for cell in cells):
                text = "no run of the study has these values; change them"
                yield problem_at(root, ("analyses", label, "runs", number, "where"), text)
    longest = max((cell.key for cell in cells), key=len)
    if len(longest) > _LONGEST:
        text = f"{longest[:60]}… is too long for a directory name; give long values a label"
        yield problem_at(root, ("axes",), text)
