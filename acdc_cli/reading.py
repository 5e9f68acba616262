"""Values that come from files: of bounded size and depth and of an expected form, or one error that says what is wrong;
and what JSON can hold of values that go to files.

The forms are pydantic's. A form names what its readers rely on; other keys, of older and newer versions, are let
through.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from acdc_cli import files
from acdc_cli.errors import AcdcError, RunError

_DEEPEST = 100
"""Most levels of nested lists and objects. Provenance has the most: a few for each fork of a fork."""
_MOST_VALUES = 5_000_000
_LARGEST = 64 << 20
"""Most bytes of a JSON document."""

Count = Annotated[int, Field(ge=0, le=1 << 53)]
EpochNumber = Annotated[int, Field(ge=0, le=1_000_000)]


class Form(BaseModel):
    """The keys that a reader relies on, with their types, which are not converted."""

    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True)


def read_json(path: Path, form: Any, error: type[AcdcError] = RunError, remedy: str = "restore a copy") -> Any:
    """A file's JSON value, as it was written. Raises `error` if it cannot be read or does not have this form."""
    try:
        with files.open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
                raise error(f"{path} is damaged ({size:,} bytes are too many); {remedy}")
            text = file.read()
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}; {remedy}") from cause
    return parse_json(text, form, lambda cause: error(f"{path} is damaged ({cause}); {remedy}"))


def parse_json(text: str | bytes, form: Any, refusal: Callable[[str], Exception]) -> Any:
    """The JSON value of a text, as it was written. Raises `refusal` of the cause if it does not have this form."""
    try:
        value = json.loads(text)
        require(value, form)
    except (ValueError, RecursionError) as error:
        raise refusal(in_words(error)) from error
    return value


def require(value: Any, form: Any) -> None:
    """Raises ValueError, with one line, unless the value is bounded and has this form."""
    require_bounds(value)
    try:
        _adapter(form).validate_python(value)
    except ValidationError as error:
        raise ValueError(in_words(error)) from error


def require_bounds(value: Any, deepest: int = _DEEPEST, most_values: int = _MOST_VALUES) -> None:
    """Raises ValueError for containers that are nested too deep, contain themselves or hold too many values.

    A list that lies in several places counts in each, because its readers visit it in each.
    """
    level, count = [value], 1
    for _ in range(deepest + 1):
        containers = [each for each in level if isinstance(each, Mapping | list | tuple | set)]
        if not containers:
            return
        count += sum(map(len, containers))
        if count > most_values:
            raise ValueError(f"it holds more than {most_values:,} values")
        level = [inner for each in containers for inner in (each.values() if isinstance(each, Mapping) else each)]
    raise ValueError(f"it is nested more than {deepest} deep")


def plain(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON cannot express, by None."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(error: Exception) -> str:
    """One line."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)
