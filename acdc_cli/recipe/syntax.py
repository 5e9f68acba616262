"""YAML read strictly (1.2 scalars, no duplicate keys), with the line of every value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from acdc_cli import files
from acdc_cli.errors import RecipeError

KeyPath = tuple[str | int, ...]

DEEPEST = 20
"""Most levels of nested blocks and lists, and of files that extend one another; a recipe has four."""
_LARGEST = 200_000
"""Most bytes of a recipe file; the longest shipped ones have 2,000."""
MOST_VALUES = 5_000
"""Most values in a recipe, including those that aliases repeat."""
_BOOL, _NULL, _INT, _FLOAT, _STR, _MERGE, _LIST, _BLOCK = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "int", "float", "str", "merge", "seq", "map")
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
    "mapping values are not allowed here": "put a value that holds a colon in quotes, or fix the indentation",
    "found character '\\t'": "indent with spaces, not with tabs",
    "that cannot start any token": "put the value in quotes",
    "expected <block end>": "the indentation does not match the lines above",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "expected a single document": "a recipe is one document, without `---` in between",
    "expected ',' or": "a bracket is not closed",
    "unexpected end of stream": "a quote is not closed",
    "found undefined alias": "put a value that begins with * in quotes",
    "found duplicate anchor": "give each anchor a name of its own",
    "incompatible YAML document": "remove the line that begins with %YAML",
}
_TOO_DEEP = f"blocks or lists nested more than {DEEPEST} deep; a recipe has four levels"
_NO_CHARACTER = "an unknown escape; write the character itself"


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and a line (1-based), or `--set a.b.c`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """A mistake at `place`; `path` is its key."""

    place: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        about = "" if str(self.place) == f"--set {spell(self.path)}" else f"{spell(self.path)}: "
        return one_line(f"{self.place}: {about}{self.message}")


@dataclass(frozen=True)
class Entry:
    """A value with its place; for the value of a key, that is the key's place."""

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
        """The entry at `path`, or the innermost one around it if `path` was not written."""
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


def one_line(text: str) -> str:
    """Replace line breaks, control characters and other unprintable characters by spaces."""
    return "".join(char if char.isprintable() else " " for char in text)


def read_file(
    path: Path, form: str = "a recipe is a block of keys such as `epochs: 100`"
) -> tuple[Entry, list[Problem]]:
    """The file's mapping, and its duplicate keys. Raises RecipeError if the file is not a YAML mapping.

    form: the expected form, for that error.
    """
    source = shown(path)
    reading = _Reading(source, read_text(path))
    value = reading.value
    if not isinstance(value, dict):
        content = "nothing" if value is None else "a list" if isinstance(value, list) else _beginning(value)
        raise RecipeError(f"{source}: {form}, found {content}")
    return Entry(value, Place(source)), reading.problems


def read_text(path: Path) -> str:
    """The file's text. Raises RecipeError if it cannot be read or is too long for a recipe."""
    source = shown(path)
    try:
        with files.open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
                raise RecipeError(f"{source}: {size:,} bytes are too many for a recipe, which has a few thousand")
            return file.read().decode()
    except UnicodeDecodeError as e:
        raise RecipeError(f"{source}: not a recipe, or not saved as UTF-8 text") from e
    except OSError as e:
        raise RecipeError(f"{source}: cannot be read: {e.strerror}") from e


def read_value(text: str, source: str) -> tuple[Entry, list[Problem]]:
    """One value given on the command line, by the same rules as in a file."""
    reading = _Reading(source, text, lines=False)
    return Entry(reading.value, Place(source)), reading.problems


def shown(path: Path) -> str:
    """The path, relative to the working directory if it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def dump(value: Mapping[str, Any]) -> str:
    """YAML that both this reader and YAML 1.1 read back as the same value."""
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
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: dict[str, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if any("\ud800" <= char <= "\udfff" for char in node.value):
            raise yaml.composer.ComposerError(None, None, _NO_CHARACTER, node.start_mark)
        return node

    def fetch_more_tokens(self) -> None:
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError) as e:
            # PyYAML's own, over "\U00110000"
            raise yaml.scanner.ScannerError(None, None, _NO_CHARACTER, self.get_mark()) from e


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


@lru_cache(maxsize=256)
def _composed(text: str) -> yaml.Node | None:
    """A document's nodes, which nobody changes: the runs of a study read the same few files many times."""
    return _Composer(text).get_single_node()


class _Reading:
    """One document turned into entries; `lines=False` for text that has none worth naming."""

    def __init__(self, source: str, text: str, lines: bool = True) -> None:
        self._source = source
        self._lines = lines
        self._values = 0
        self.problems: list[Problem] = []
        try:
            node = _composed(text)
        except yaml.MarkedYAMLError as e:
            mark = e.problem_mark or e.context_mark
            raise self._error(mark.line if mark else 0, _explained(e)) from e
        except yaml.reader.ReaderError as e:
            line = text.count("\n", 0, e.position)
            raise self._error(line, f"{e.reason} ({text[e.position]!a}); remove it") from e
        self.value = None if node is None else self._build(node, (), ())

    def _place(self, line: int) -> Place:
        return Place(self._source, line + 1 if self._lines else None)

    def _error(self, line: int, message: str) -> RecipeError:
        return RecipeError(f"{self._place(line)}: not valid YAML: {message}")

    def _build(self, node: yaml.Node, path: KeyPath, around: tuple[yaml.Node, ...]) -> Any:
        """The value of a node; `around` are the nodes it lies in."""
        if node in around:
            raise self._error(node.start_mark.line, "an anchor that contains itself; remove the alias in it")
        if len(around) >= DEEPEST:
            raise self._error(node.start_mark.line, _TOO_DEEP)
        self._values += 1
        if self._values > MOST_VALUES:
            many = f"more than {MOST_VALUES:,} values, aliases included; a recipe has about a hundred"
            raise self._error(node.start_mark.line, many)
        if isinstance(node, yaml.CollectionNode) and node.tag not in (_LIST, _BLOCK):
            raise self._no_meaning(node)
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
                raise self._error(key.start_mark.line, "a key must be text; write KEY: VALUE")
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
            raise self._error(
                node.start_mark.line, f"{_beginning(text)} is not a valid {node.tag.rpartition(':')[2]}"
            ) from e
        raise self._no_meaning(node)

    def _no_meaning(self, node: yaml.Node) -> RecipeError:
        return self._error(node.start_mark.line, f"the tag {node.tag} has no meaning in a recipe; remove it")


def _beginning(value: Any) -> str:
    """The value as it was written, cut after 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _explained(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    text = f"{error.context}, {problem}" if problem.startswith("but ") or not problem else problem
    begun = f" in the text that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
    hint = next((f"; {hint}" for symptom, hint in _HINTS.items() if symptom in text), "")
    return f"{text}{begun}{hint}"
