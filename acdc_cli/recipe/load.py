"""From a YAML file to a validated Recipe, or to one error that names every mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from acdc_cli.errors import RecipeError
from acdc_cli.reading import require_bounds
from acdc_cli.recipe.blocks.base import Block, EpochCount, RunSize
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.optim import CosineSchedule, LinearSchedule, Schedule, StepSchedule
from acdc_cli.recipe.blocks.run import CheckpointBlock, EMABlock
from acdc_cli.recipe.blocks.sparsity import PrunedBlock, SparsityBlock
from acdc_cli.recipe.blocks.task import DEFAULT_TASK, TaskBlock, is_task
from acdc_cli.recipe.explain import explain, problem_at, unknown_name
from acdc_cli.recipe.inherit import Draft, draft, overridden
from acdc_cli.recipe.kinds import data_class, method_config, methods, recipe_class, shape_of, task_class
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.shape import either
from acdc_cli.recipe.syntax import DEEPEST, MOST_VALUES, Entry, KeyPath, Place, Problem, dump

B = TypeVar("B", bound=Block)
T = TypeVar("T")

_SHOWN = 20
"""Most problems that one error lists."""

_EPOCHS: TypeAdapter[int] = TypeAdapter(EpochCount, config=ConfigDict(strict=True))
_SCHEDULE: TypeAdapter[LinearSchedule | CosineSchedule | StepSchedule] = TypeAdapter(Schedule)


class _UnknownMethod(SparsityBlock):
    """Stands in for the block of an unknown method, so that the other blocks are checked."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"expected": f"a block whose method is {either(methods())}"}
    )
    method: Any = Field(json_schema_extra={"expected": either(methods())})


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, or the shipped one of that name, with `--set` values such as `optim.lr=0.1` laid over it.

    Raises RecipeError with one line for each thing that is wrong.
    """
    return _checked(draft(source, overrides))


def from_dict(values: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of plain values, such as those `as_dict` gives and checkpoints hold, with `--set` values over it.

    origin: the name of their source in errors. Raises RecipeError as `load` does.
    """
    try:
        require_bounds(values, DEEPEST, MOST_VALUES)
    except ValueError as error:
        raise RecipeError(f"{origin}: its recipe is refused: {error}") from error
    return _checked(overridden(Draft(Entry.of(values, Place(origin)), [], [origin]), overrides))


def block_of(schema: type[B], overrides: Sequence[str], origin: str) -> B:
    """A block made of `--set` values alone, such as the options of an analysis.

    origin: the name of the block in errors. Raises RecipeError as `load` does.
    """
    given = overridden(Draft(Entry.of({}, Place(origin)), [], [origin]), overrides)
    try:
        block = schema.model_validate(given.root.plain())
    except ValidationError as e:
        raise _refusal(given, [*given.problems, *explain(e, given.root, shape_of(schema))]) from e
    if given.problems:
        raise _refusal(given, given.problems)
    return block


def sorted_overrides(schema: type[Block], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The `--set` values for the block, unknown keys included, and those for the recipe."""
    of_block: list[str] = []
    of_recipe: list[str] = []
    for override in overrides:
        key = re.split(r"[.=]", override, maxsplit=1)[0].strip()
        for_block = key in schema.model_fields or (bool(schema.model_fields) and key not in Recipe.model_fields)
        (of_block if for_block else of_recipe).append(override)
    return of_block, of_recipe


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in; `load` makes an equal recipe of it."""
    return dump(recipe.as_dict())


def _checked(given: Draft) -> Recipe:
    config, unknown = _config(given.root)
    inputs = _inputs(given.root)
    schema = recipe_class(config, inputs)
    problems = [*given.problems, *unknown, *_misfits(given.root, config, inputs)]
    try:
        recipe = schema.model_validate(given.root.plain())
    except ValidationError as e:
        raise _refusal(given, [*problems, *explain(e, given.root, shape_of(schema))]) from e
    if problems:
        raise _refusal(given, problems)
    return recipe


def _refusal(given: Draft, problems: Sequence[Problem]) -> RecipeError:
    lines = [str(problem) for problem in given.in_order(problems)]
    more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return RecipeError("\n".join(lines[:_SHOWN] + more))


def _config(root: Entry) -> tuple[type[SparsityBlock], list[Problem]]:
    """The config class of the method that the recipe names."""
    block = root.plain().get("sparsity")
    if not isinstance(block, dict) or "method" not in block:
        return _UnknownMethod, []
    method = block["method"]
    if method not in methods():
        return _UnknownMethod, [problem_at(root, ("sparsity", "method"), unknown_name(method, methods()))]
    return method_config(method), []


def _inputs(root: Entry) -> type[DataBlock]:
    """The class of the block `data` for the task that the recipe names; an unknown task is reported with the others."""
    task = root.plain().get("task")
    name = task.get("name", DEFAULT_TASK) if isinstance(task, dict) else DEFAULT_TASK
    return data_class(name if isinstance(name, str) and is_task(name) else DEFAULT_TASK)


def _misfits(root: Entry, config: type[SparsityBlock], inputs: type[DataBlock]) -> list[Problem]:
    """Conflicts between blocks, such as lengths that do not fit the epochs; invalid blocks are skipped."""
    given = root.plain()
    optim = given.get("optim")
    epochs = _valid(_EPOCHS, given.get("epochs"))
    sparsity = _valid(TypeAdapter(config), given.get("sparsity"))
    schedule = _valid(_SCHEDULE, optim.get("schedule") if isinstance(optim, dict) else None)
    problems = []
    if isinstance(sparsity, PrunedBlock) and sparsity.from_checkpoint and _weights(given.get("model")):
        text = "the run would start from this model and from `model.weights`; remove one of them"
        problems.append(problem_at(root, ("sparsity", "from_checkpoint"), text))
    problems += _without_weights(root, sparsity)
    data = _valid(TypeAdapter(inputs), given.get("data"))
    if data and (task := _valid(TypeAdapter(TaskBlock), given.get("task", {}))):
        kind = task_class(task.name)
        problems += [problem_at(root, ("data", key), text) for key, text, _ in kind.check(data)]
        if task.loss not in (None, *kind.losses):
            text = f"{task.name} has the loss {either(kind.losses)}, found {task.loss}"
            problems.append(problem_at(root, ("task", "loss"), text))
    ema = _valid(TypeAdapter(EMABlock), given.get("ema"))
    keeping = _valid(TypeAdapter(CheckpointBlock), given.get("checkpoint", {}))
    if epochs is None:
        return problems
    size = RunSize(epochs, batch_size=data.batch_size if data else None)
    misfits = _errors(root, ("sparsity",), sparsity, size)
    problems += [*misfits, *_errors(root, ("ema",), ema, size), *_errors(root, ("checkpoint",), keeping, size)]
    if misfits:
        return problems
    _, clocked = sparsity.clock(0, epochs) if sparsity else (0, epochs)
    size = RunSize(clocked)
    return [*problems, *_errors(root, ("optim", "schedule"), schedule, size), *_errors(root, ("data",), data, size)]


def _errors(root: Entry, path: KeyPath, block: Block | None, run: RunSize) -> list[Problem]:
    """What does not fit the run in the block at this path; an invalid block, None, is skipped."""
    return [problem_at(root, (*path, *key.split(".")), text) for key, text in (block.errors(run) if block else [])]


def _without_weights(root: Entry, sparsity: SparsityBlock | None) -> list[Problem]:
    """Keys of the model that say how a file is read, where there is no file."""
    model = root.plain().get("model")
    if _weights(model) or not isinstance(model, dict) or getattr(sparsity, "from_checkpoint", None):
        return []
    text = "it is for the weights that a run starts from; set model.weights, or leave it out"
    return [problem_at(root, ("model", key), text) for key in ("rename", "new_head") if model.get(key)]


def _weights(model: Any) -> Any:
    return model.get("weights") if isinstance(model, dict) else None


def _valid(adapter: TypeAdapter[T], value: Any) -> T | None:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None
