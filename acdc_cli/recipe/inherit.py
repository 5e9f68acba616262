"""Merges a recipe with those it extends (`extends`) and with the command line's changes (`--set`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acdc_cli.errors import RecipeError
from acdc_cli.recipe import code, shipped
from acdc_cli.recipe.explain import in_words
from acdc_cli.recipe.kinds import keys_of_kind
from acdc_cli.recipe.syntax import DEEPEST, Entry, KeyPath, Problem, one_line, read_file, read_value, shown

_LONGEST_PATH = 4096
_LONGEST_KEY = 200


@dataclass(frozen=True)
class Draft:
    """A recipe put together from its sources, not validated yet."""

    root: Entry
    problems: list[Problem]
    sources: list[str]
    """In the order in which their problems are reported: the recipe, what it extends, the command line."""

    def in_order(self, problems: Sequence[Problem]) -> list[Problem]:
        return sorted(problems, key=lambda problem: (self.sources.index(problem.place.source), problem.place.line or 0))


def draft(source: str | Path, overrides: Sequence[str]) -> Draft:
    """The recipe of a path or shipped name, merged with what it extends and with `--set` values."""
    return overridden(Draft(*_with_parents(shipped.find(source).resolve(), [])), overrides)


def overridden(given: Draft, overrides: Sequence[str]) -> Draft:
    """The same recipe with `--set` values, applied in order."""
    root, problems, sources = given.root, given.problems, given.sources
    for override in overrides:
        changed, more, name = _override(root, override)
        root = overlay(root, changed)
        problems = problems + more
        sources = [*sources, name]
    return Draft(root, problems, sources)


def overlay(below: Entry, above: Entry, path: KeyPath = ()) -> Entry:
    """Mappings are merged key by key; a list or a value above replaces the one below.

    If `above` picks another kind of block (`sparsity.method`, `optim.name`, `optim.schedule.name`), the keys that only
    the old kind has are dropped: `method: gmp` over an AC/DC block keeps its target and drops its phase lengths.
    Another `model.name` drops the options and the code of the old model.
    """
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    dropped = _dropped(below, above, path)
    kept = {key: entry for key, entry in below.value.items() if key not in dropped}
    merged = {
        key: overlay(kept[key], entry, (*path, key)) if key in kept else entry for key, entry in above.value.items()
    }
    return Entry(kept | merged, above.place)


def _dropped(below: Entry, above: Entry, path: KeyPath) -> frozenset[str]:
    if path == ("model",) and above.plain().get("name", below.plain().get("name")) != below.plain().get("name"):
        return frozenset({"options", "code"})
    before, after = (keys_of_kind(path, entry.plain()) for entry in (below, above))
    return before - after if before and after else frozenset()


def _with_parents(path: Path, children: list[Path]) -> tuple[Entry, list[Problem], list[str]]:
    """A file laid over the files it extends; `children` are those that led to it."""
    root, problems = read_file(path)
    assert isinstance(root.value, dict)
    parent = root.value.pop("extends", None)
    root, lost = code.anchored(root, path.parent)
    problems = [*problems, *lost]
    if parent is None:
        return root, problems, [shown(path)]
    chain = [*children, path]
    file = _parent_file(parent, path)
    if file in chain:
        circle = " → ".join(shown(each) for each in [*chain[chain.index(file) :], file])
        raise RecipeError(f"{parent.place}: extends: is circular: {circle}; remove one extends")
    if len(chain) > DEEPEST:
        raise RecipeError(f"{parent.place}: extends: more than {DEEPEST} files extend one another in a row; use fewer")
    below, inherited, sources = _with_parents(file, chain)
    return overlay(below, root), problems + inherited, [shown(path), *sources]


def _parent_file(entry: Entry, child: Path) -> Path:
    """`extends` names a file relative to the one it stands in, else a shipped recipe."""
    name = entry.value
    if not isinstance(name, str) or not 0 < len(name) < _LONGEST_PATH or not name.isprintable():
        raise RecipeError(
            f"{entry.place}: extends: expected the path of one recipe, or a shipped recipe's name, found "
            f"{one_line(in_words(entry.plain()))}"
        )
    beside = child.parent / name
    try:
        # os.path's, which returns False for a name that no file can have
        return (beside if os.path.isfile(beside) else shipped.find(name)).resolve()
    except RecipeError as e:
        raise RecipeError(f"{entry.place}: extends: there is no {shown(beside)}, and {e}") from e


def _override(root: Entry, text: str) -> tuple[Entry, list[Problem], str]:
    """`a.b.c=value` as a mapping to lay over the recipe, and the name of its source."""
    name, equals, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    source = f"--set {'.'.join(keys)}"
    if not equals or not all(keys) or not name.isprintable() or len(name) > _LONGEST_KEY or len(keys) > DEEPEST:
        shown = text if len(text) <= _LONGEST_KEY else f"{text[:_LONGEST_KEY]}…"
        raise RecipeError(f"--set {one_line(shown)}: expected KEY=VALUE, for example --set optim.lr=0.1")
    if keys[0] == "extends":
        raise RecipeError(f"{source}: only a file can extend another")
    entry, problems = read_value(value, source)
    for depth in reversed(range(len(keys))):
        # the blocks around the value stay where they stand in the file
        entry = Entry({keys[depth]: entry}, root.nearest(keys[:depth]).place)
    entry, lost = code.anchored(entry, Path())
    return entry, [*problems, *lost], source
