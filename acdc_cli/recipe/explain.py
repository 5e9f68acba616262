"""pydantic's errors in words: where the mistake is, what was found, what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from acdc_cli.recipe.shape import Shape, either
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.recipe.syntax import Entry, KeyPath, Problem, spell

_BOOLEANS = {"on": "true", "yes": "true", "off": "false", "no": "false"}


def explain(error: ValidationError, root: Entry, recipe: Shape) -> list[Problem]:
    """One problem for each wrong key, however many errors pydantic reports for it."""
    problems = (_problem(detail, root, recipe) for detail in error.errors(include_url=False))
    return list(dict.fromkeys(problem for problem in problems if problem is not None))


def problem_at(root: Entry, path: KeyPath, message: str) -> Problem:
    """A problem with a key; a key that is not written out is placed at its block."""
    return Problem(root.nearest(path).place, path, message)


def unknown_name(name: Any, names: list[str]) -> str:
    """The message for a word that is not one of `names`."""
    hint = did_you_mean(name, names) if isinstance(name, str) else ""
    return f"expected {either(names)}, found {in_words(name)}{hint}"


def _problem(detail: ErrorDetails, root: Entry, recipe: Shape) -> Problem | None:
    kind = detail["type"]
    # pydantic calls a short tuple's next position missing; the list as a whole is what is wrong
    short = kind == "missing" and isinstance(detail["loc"][-1], int)
    where = _where(detail["loc"][:-1] if short else detail["loc"], root, recipe)
    if where is None:
        return None
    path, here, block = where
    value = root.nearest(path).plain()
    if kind == "missing" and not short:
        return problem_at(root, path, f"missing; expected {here.in_words()}")
    if kind == "extra_forbidden":
        return problem_at(root, path, _unknown_key(path, block, recipe))
    if kind == "union_tag_not_found":
        return problem_at(root, (*path, str(here.chooser)), f"missing; expected {either(list(here.kinds))}")
    if kind == "union_tag_invalid":
        chosen = root.nearest((*path, str(here.chooser)))
        return problem_at(root, (*path, str(here.chooser)), unknown_name(chosen.plain(), list(here.kinds)))
    if kind == "value_error":
        return _own_words(str(detail["ctx"]["error"]), root, path, here)
    return problem_at(root, path, f"expected {here.in_words()}, found {in_words(value)}{_hint(here, value)}")


def _where(steps: tuple[str | int, ...], root: Entry, recipe: Shape) -> tuple[KeyPath, Shape, Shape] | None:
    """The key path of pydantic's location, what may stand there, and the block around it.

    pydantic also names the member of a union it tried. Returns None for an error of a member that cannot be meant.
    """
    path: KeyPath = ()
    here = block = recipe
    for step in steps:
        if here.chooser:
            here = here.kinds[str(step)]
            continue
        if len(here.options) > 1:
            meant = _meant(here, root.nearest(path).value)
            if meant is None:
                return path, here, block
            if meant.schema.get("title", "list[") not in str(step):
                return None
            here = meant
            continue
        path, block = (*path, step), here.options[0]
        here = block.child(step) or block
    return path, here, block


def _meant(here: Shape, value: Any) -> Shape | None:
    """The list or block, among the shapes allowed here, that this value is meant to be."""
    if not isinstance(value, list | dict):
        return None
    kind = "array" if isinstance(value, list) else "object"
    return next((option for option in here.options if option.schema.get("type") == kind), None)


def _own_words(message: str, root: Entry, path: KeyPath, block: Shape) -> Problem:
    """A validator of ours names the key it is about first: `key: what is wrong`."""
    key, _, rest = message.partition(": ")
    return problem_at(root, (*path, key), rest) if key in block.keys else problem_at(root, path, message)


def _unknown_key(path: KeyPath, block: Shape, recipe: Shape) -> str:
    key = str(path[-1])
    # a study extends nothing
    allowed = ["extends", *block.keys] if len(path) == 1 and "model" in block.keys else block.keys
    others = sorted({home for home in homes(recipe) if home[-1] == key})
    elsewhere = f"; did you mean {spell(others[0])}?" if len(others) == 1 else ""
    return f"unknown key{did_you_mean(key, allowed) or elsewhere} (allowed: {', '.join(allowed)})"


def homes(block: Shape, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys in a block."""
    for kind in block.kinds.values() or [block]:
        for key in kind.keys:
            yield (*path, key)
            if inner := kind.child(key):
                yield from homes(inner, (*path, key))


def in_words(value: Any) -> str:
    """A value for a message, cut after 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a block with the keys {_cut(', '.join(value))}" if value else "an empty block"
    # `str`: a checkpoint's recipe may hold what no YAML can
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _hint(here: Shape, value: Any) -> str:
    """How to fix common mistakes."""
    if value is None:
        return "; give a value or remove the line"
    if isinstance(value, str):
        return _text_hint(here, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if here.takes("number") and _upper(here) <= 1 < value <= 100:
        return f"; it is a share: {value / 100:g}, not {value:g}"
    if here.takes("integer") and isinstance(value, float) and value.is_integer() and value > 0:
        return f"; write {int(value)}"
    numeric = here.takes("number") or here.takes("integer")
    return f'; put it in quotes: "{value}"' if here.takes("string") and not numeric and not here.choices else ""


def _text_hint(here: Shape, value: str) -> str:
    if here.takes("boolean") and value.lower() in _BOOLEANS:
        return f"; write {_BOOLEANS[value.lower()]}"
    numeric = here.takes("number") or here.takes("integer")
    if numeric and re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", value):
        return f"; write {value} without quotes"
    if here.takes("number") and _upper(here) <= 1 and re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        return f"; write {float(value.rstrip('% ')) / 100:g}"
    return did_you_mean(value, here.choices)


def _upper(here: Shape) -> float:
    """The largest number allowed here, or the bound it must stay below."""
    bounds = (option.schema.get("maximum", option.schema.get("exclusiveMaximum")) for option in here.options)
    return min((float(bound) for bound in bounds if bound is not None), default=float("inf"))
