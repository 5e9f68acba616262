"""YAML that means what it says (1.2 scalars, no duplicate keys), every value with the line it stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acdc_cli.errors import RecipeError

KeyPath = tuple[str | int, ...]

_BOOL, _NULL, _INT, _FLOAT, _STR, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "int", "float", "str", "merge")
)
# YAML 1.2's core schema. PyYAML's own rules (1.1) read 2:4 as 124, 1e-4 as text and off as false.
_IMPLICIT = (
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_INT, re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    (_FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), "-+.0123456789"),
    (_MERGE, re.compile(r"^<<$"), "<"),
)
_HINTS = {
    "mapping values are not allowed here": "put a value that holds a colon in quotes, or mend the indentation",
    "found character '\\t'": "indent with spaces, not with tabs",
    "that cannot start any token": "put the value in quotes",
    "expected <block end>": "the indentation does not match the lines above",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "expected a single document": "a recipe is one document, without `---` in between",
    "expected ',' or": "a bracket is not closed",
    "unexpected end of stream": "a quote is not closed",
}


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and a line (1-based), or `--set a.b.c`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """Something to mend, found at `place`; `path` is the key it is about."""

    place: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        about = "" if str(self.place) == f"--set {spell(self.path)}" else f"{spell(self.path)}: "
        # one line, whatever the keys are
        return f"{self.place}: {about}{self.message}".replace("\n", " ")


@dataclass(frozen=True)
class Entry:
    """A value with its place; the value of a key stands where its key does."""

    value: dict[str, Entry] | list[Entry] | str | int | float | bool | None
    place: Place

    @classmethod
    def of(cls, value: Any, place: Place) -> Entry:
        """Plain values, all at one place."""
        if isinstance(value, Mapping):
            return cls({str(key): cls.of(inner, place) for key, inner in value.items()}, place)
        if isinstance(value, list | tuple):
            return cls([cls.of(inner, place) for inner in value], place)
        return cls(value, place)

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def nearest(self, path: KeyPath) -> Entry:
        """The entry at `path`, or the innermost one around it where `path` was not written."""
        if not path:
            return self
        head, rest = path[0], path[1:]
        if isinstance(self.value, dict) and head in self.value:
            return self.value[str(head)].nearest(rest)
        if isinstance(self.value, list) and isinstance(head, int) and head < len(self.value):
            return self.value[head].nearest(rest)
        return self


def spell(path: KeyPath) -> str:
    """`data.resolution[1].size`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def read_file(path: Path) -> tuple[Entry, list[Problem]]:
    """The file's mapping, and its duplicate keys. Raises RecipeError where the file is no YAML mapping."""
    source = shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise RecipeError(f"{source}: not UTF-8 text; is this a recipe?") from e
    except OSError as e:
        raise RecipeError(f"{source}: cannot be read: {e.strerror}") from e
    reading = _Reading(source, text)
    value = reading.value
    if not isinstance(value, dict):
        found = "nothing" if value is None else "a list" if isinstance(value, list) else f"{value!r}"
        raise RecipeError(f"{source}: a recipe is a block of keys such as `epochs: 100`, found {found}")
    return Entry(value, Place(source)), reading.problems


def read_value(text: str, source: str) -> tuple[Entry, list[Problem]]:
    """One value given on the command line, by the same rules as in a file."""
    reading = _Reading(source, text, lines=False)
    return Entry(reading.value, Place(source)), reading.problems


def shown(path: Path) -> str:
    """The path as a reader here would write it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def dump(value: Mapping[str, Any]) -> str:
    """YAML that these rules, and those of YAML 1.1, read back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Composer(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, yaml.resolver.BaseResolver
):
    """PyYAML's front end up to nodes, with our scalars."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as something else, and keeps short lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds these line breaks into spaces in every style but this
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar(_STR, data, style)

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        short = not any(isinstance(item, Mapping | Sequence) and not isinstance(item, str) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=short)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_list)
for _tag, _pattern, _first in _IMPLICIT:
    _Composer.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


class _Reading:
    """One document turned into entries; `lines=False` for text that has none worth naming."""

    def __init__(self, source: str, text: str, lines: bool = True) -> None:
        self._source = source
        self._lines = lines
        self.problems: list[Problem] = []
        try:
            node = _Composer(text).get_single_node()
        except yaml.MarkedYAMLError as e:
            mark = e.problem_mark or e.context_mark
            raise self._error(mark.line if mark else 0, _explained(e)) from e
        except yaml.reader.ReaderError as e:
            raise self._error(text.count("\n", 0, e.position), e.reason) from e
        self.value = None if node is None else self._build(node, (), ())

    def _place(self, line: int) -> Place:
        return Place(self._source, line + 1 if self._lines else None)

    def _error(self, line: int, message: str) -> RecipeError:
        return RecipeError(f"{self._place(line)}: not valid YAML: {message}")

    def _build(self, node: yaml.Node, path: KeyPath, around: tuple[yaml.Node, ...]) -> Any:
        """The value of a node; `around` are the nodes it lies in."""
        if node in around:
            raise self._error(node.start_mark.line, "an anchor that holds itself")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*around, node))
        if isinstance(node, yaml.SequenceNode):
            return [
                Entry(self._build(item, (*path, position), (*around, node)), self._place(item.start_mark.line))
                for position, item in enumerate(node.value)
            ]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, around: tuple[yaml.Node, ...]) -> dict[str, Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key, value in node.value:
            place = self._place(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key.start_mark.line, "a key must be text")
            if key.tag == _MERGE:
                merged = self._merge(value, path, around) | merged
                continue
            inner = (*path, key.value)
            if key.value in own:
                self.problems.append(Problem(place, inner, f"given twice, first at {own[key.value].place}"))
                continue
            own[key.value] = Entry(self._build(value, inner, around), place)
        return merged | own

    def _merge(self, node: yaml.Node, path: KeyPath, around: tuple[yaml.Node, ...]) -> dict[str, Entry]:
        """What `<<: *anchor` or `<<: [*first, *second]` brings in; the first wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Entry] = {}
        for source in sources:
            value = self._build(source, path, around)
            if not isinstance(value, dict):
                raise self._error(source.start_mark.line, "`<<` takes a mapping or a list of mappings")
            merged = value | merged
        return merged

    def _scalar(self, node: yaml.Node) -> str | int | float | bool | None:
        text = str(node.value)
        try:
            if node.tag in (_STR, "!", _MERGE):
                return text
            if node.tag == _NULL:
                return None
            if node.tag == _BOOL:
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _INT:
                return int(text)
            if node.tag == _FLOAT:
                return float(text)
        except (KeyError, ValueError) as e:
            raise self._error(node.start_mark.line, f"{text[:40]!r} is no {node.tag.rpartition(':')[2]}") from e
        raise self._error(node.start_mark.line, f"the tag {node.tag} has no meaning in a recipe")


def _explained(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    text = f"{error.context}, {problem}" if problem.startswith("but ") or not problem else problem
    begun = f" in what begins on line {error.context_mark.line + 1}" if error.context_mark else ""
    hint = next((f"; {hint}" for symptom, hint in _HINTS.items() if symptom in text), "")
    return f"{text}{begun}{hint}"
