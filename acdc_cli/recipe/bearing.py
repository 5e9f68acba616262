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


def bearing(recipe: Mapping[str, Any], ignored: Collection[Bears]) -> dict[str, Any]:
    """The recipe's values by dotted key, without the keys of the `ignored` classes.

    recipe: nested or with dotted keys, perhaps from another version of acdc; an unknown key affects the numbers.
    """
    values = {key: value for key, value in flat(recipe).items() if bears_on(key) not in ignored}
    if (task := values.get("task.name")) in OLDER_TASKS:
        values["task.name"] = OLDER_TASKS[task]
    return values


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
