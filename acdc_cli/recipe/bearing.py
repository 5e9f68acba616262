"""Which recipe keys affect the numbers of a run, as the schema marks them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache, reduce
from itertools import accumulate
from operator import or_
from typing import Any, get_args

from pydantic import BaseModel

from acdc_cli.recipe.blocks.base import Bears
from acdc_cli.recipe.blocks.task import OLDER_TASKS
from acdc_cli.recipe.flat import flat
from acdc_cli.recipe.kinds import DATA_BLOCKS
from acdc_cli.recipe.schema import Recipe

MAY_CHANGE_ON_RESUME = frozenset({Bears.NOTHING})
"""The classes of keys that a resumed run may change: it stays the same run, to the bit where possible."""
SAME_EXPERIMENT = frozenset({Bears.NOTHING, Bears.EXECUTION, Bears.REPETITION})
"""Runs that differ only in keys of these classes are repetitions of one experiment; means are taken over them."""

LENGTH = frozenset({"epochs"})
"""Studies compare runs of several lengths."""
BATCHING = frozenset({"data.batch_size"})
"""Losses and entropies are comparable between runs that differ in it."""
WEIGHTS_AND_SAMPLES = frozenset({"model.weights", "data.name"})
"""Transfers that differ in these alone follow one protocol."""
FORKS_OWN = frozenset({"fork", "name"})
"""Keys in which every fork differs from its source."""


def bearing(recipe: Mapping[str, Any], ignored: Collection[Bears], apart_from: Collection[str] = ()) -> dict[str, Any]:
    """The recipe's values by dotted key, without the keys of the `ignored` classes and those in `apart_from`.

    recipe: nested or with dotted keys, perhaps from another version of acdc; an unknown key affects the numbers.
    """
    values = {key: value for key, value in flat(recipe).items() if bears_on(key) not in ignored}
    if (task := values.get("task.name")) in OLDER_TASKS:
        values["task.name"] = OLDER_TASKS[task]
    return {key: value for key, value in values.items() if key not in apart_from}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, sorted, with both values; a key that one side lacks counts as None there."""
    return _differing(before, now, before.keys() | now.keys())


def conflicts(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences in keys that both sides have, where another version of acdc may have written one of them."""
    return _differing(before, now, before.keys() & now.keys())


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], keys: Collection[str]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (before.get(key), now.get(key)) for key in sorted(keys)}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def all_but_the_seed(recipe: Recipe) -> str:
    """Equal for recipes that differ in their seed alone."""
    return recipe.model_copy(update={"seed": 0}).model_dump_json()


def bears_on(key: str) -> Bears:
    """The class of a dotted key: its own, or that of a block around it."""
    blocks = accumulate(key.split("."), lambda outer, inner: f"{outer}.{inner}")
    return next((marks()[block] for block in blocks if block in marks()), Bears.NUMBERS)


@cache
def marks() -> dict[str, Bears]:
    """The keys that the schema marks, blocks among them."""
    of_inputs = (dict(_marks(block, "data.")) for block in DATA_BLOCKS.values())
    return reduce(or_, of_inputs, dict(_marks(Recipe, "")))


def _marks(block: type[BaseModel], prefix: str) -> Iterator[tuple[str, Bears]]:
    for name, field in block.model_fields.items():
        if mark := next((each for each in field.metadata if isinstance(each, Bears)), None):
            yield prefix + name, mark
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _marks(inner, f"{prefix}{name}.")
