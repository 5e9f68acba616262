"""mkdocs hooks: markers in docs/*.md become text that is generated from the code when the site is built.

`<!-- generated: keys -->`, `methods`, `api`, `papers`: every recipe key, every method, the Python API, and the tables
and figures of the papers.
`<!-- include: PATH -->`: a file of the repository as a code block.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from acdc_cli import api
from acdc_cli.recipe import shipped
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.sparsity import PrunedBlock, SparsityBlock, TargetBlock
from acdc_cli.recipe.kinds import DATA_BLOCKS, method_class, method_config, methods, recipe_class, shape_of
from acdc_cli.recipe.load import load
from acdc_cli.recipe.shape import Shape
from acdc_cli.studies.paper_items import paper_items

ROOT = Path(__file__).resolve().parents[1]
_MARKER = re.compile(r"<!-- (generated|include): (\S+) -->")
_WIDTH = 70
"""Characters of a signature's parameters that fit on a line."""
_HEAD = "| key | takes | default | meaning |\n|---|---|---|---|\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls it with every page."""
    return _MARKER.sub(lambda match: PAGES[match[2]]() if match[1] == "generated" else _code(match[2]), markdown)


def keys() -> str:
    """Every recipe key: the run's own first, then a table for each block and each kind of block."""
    parts = ["### The run\n", *_block(shape_of(recipe_class(SparsityBlock)), "", 3)]
    for name, block in DATA_BLOCKS.items():
        if block is not ImagesBlock:
            parts += [f"### `data` of tasks on {name}\n", _table(shape_of(block), "data.", shape_of(block).keys)]
    for title, block, parent in (
        ("Every method that prunes", PrunedBlock, SparsityBlock),
        ("Every method with a target", TargetBlock, PrunedBlock),
    ):
        parts += [f"### {title}\n", _table(shape_of(block), "sparsity.", _own(block, parent))]
    return "\n".join(parts)


def method_keys(method: str) -> list[str]:
    """The keys that a method's own file adds or gives another meaning."""
    config = method_config(method)
    parent = next(base for base in (TargetBlock, PrunedBlock, SparsityBlock) if issubclass(config, base))
    return _own(config, parent)


def method_pages() -> str:
    """Every method: what it does, equations, its own keys, and the recipes that use it."""
    users: dict[str, list[str]] = {}
    for name in shipped.names():
        users.setdefault(load(name).sparsity.method, []).append(f"`{name}`")
    return "\n".join(_method(name, users.get(name, [])) for name in methods())


def api_page() -> str:
    """What `acdc_cli.api` exports, less the errors and values that it passes on."""
    own = [getattr(api, name) for name in ("load_recipe", "train", "evaluate", "open_run", "SparseTraining")]
    parts = []
    for thing in own:
        parts.append(_signature(thing, "###"))
        if inspect.isclass(thing):
            public = ("epochs", "step", "validated", "sparsity", "state_dict", "load_state_dict")
            parts.append(_list_of_parameters(inspect.getdoc(thing.__init__) or ""))
            parts += [_signature(getattr(thing, name), "####") for name in public]
    return "\n".join(parts)


def papers() -> str:
    """Every table and figure, with the commands that train and draw it."""
    parts = []
    for item in paper_items():
        commands = "\n".join([*item.train, *item.draw])
        runs = f"{item.runs()} run{'s' if item.runs() > 1 else ''}"
        parts.append(f"**{item.paper}, {item.item}**: {item.shows} ({runs})\n\n```\n{commands}\n```\n")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {"keys": keys, "methods": method_pages, "api": api_page, "papers": papers}


def _block(shape: Shape, prefix: str, depth: int) -> Iterator[str]:
    yield _table(shape, prefix, shape.keys)
    for key in shape.keys:
        for title, path, inner in _inner_blocks(shape, key, prefix):
            yield f"{'#' * depth} {title}\n"
            yield from _block(inner, path, min(depth + 1, 4))


def _inner_blocks(shape: Shape, key: str, prefix: str) -> Iterator[tuple[str, str, Shape]]:
    """Heading, path of the keys within, and shape of every block that may stand at a key."""
    child = shape.child(key)
    assert child is not None
    for option in child.options:
        if option.schema.get("type") == "array" and (item := option.child(0)) and "properties" in item.schema:
            yield f"`{prefix}{key}` as a list", f"{prefix}{key}[].", item
        elif "properties" in option.schema:
            yield f"`{prefix}{key}`", f"{prefix}{key}.", option
        for kind, inner in option.kinds.items():
            yield f"`{prefix}{key}` with `{option.chooser}: {kind}`", f"{prefix}{key}.", inner


def _table(shape: Shape, prefix: str, names: list[str]) -> str:
    required = shape.schema.get("required", [])
    rows = []
    for key in names:
        child, schema = shape.child(key), shape.schema["properties"][key]
        assert child is not None
        takes = Shape(schema, shape.definitions).in_words() if "$ref" not in schema else child.in_words()
        default = "required" if key in required else f"`{_yaml(schema.get('default'))}`"
        meaning = " ".join(str(schema.get("description", child.schema.get("description", ""))).split())
        if "properties" in child.schema and key not in required:
            default = "see below" if schema.get("default") is not None else default
        rows.append(f"| `{prefix}{key}` | {_cell(takes)} | {_cell(default)} | {_cell(_linked(meaning))} |")
    return _HEAD + "\n".join(rows) + "\n"


def _own(config: type[SparsityBlock], parent: type[SparsityBlock]) -> list[str]:
    mine, theirs = config.model_fields, parent.model_fields
    return [
        key
        for key, field in mine.items()
        if key not in theirs or (field.default, field.description) != (theirs[key].default, theirs[key].description)
    ]


def _method(name: str, recipes: list[str]) -> str:
    config, hooks = method_config(name), method_class(name)
    module = inspect.getdoc(importlib.import_module(hooks.__module__)) or ""
    title, colon, summary = module.partition(": ")
    parts = [f"## `{name}`: {title}\n" if colon else f"## `{name}`\n", _linked(_sentence(summary or module)), ""]
    if hooks.__doc__ and "all that it takes" not in hooks.__doc__:
        parts += [_linked(_spaced(inspect.getdoc(hooks) or "")), ""]
    if own := method_keys(name):
        parts += [_table(shape_of(config), "sparsity.", own)]
    else:
        parts += ["No keys of its own.", ""]
    parts += [f"Recipes: {', '.join(recipes)}." if recipes else "No shipped recipe.", ""]
    return "\n".join(parts)


def _signature(thing: Any, heading: str) -> str:
    parameters = [each for each in inspect.signature(thing).parameters.values() if each.name != "self"]
    listed = [str(each).replace("'", "") for each in parameters]
    shown = ", ".join(listed)
    if len(shown) > _WIDTH:
        shown = "".join(f"\n    {each}," for each in listed) + "\n"
    code = f"```python\n{thing.__name__}({shown})\n```\n"
    return f"{heading} `{thing.__name__}`\n\n{code}\n{_list_of_parameters(inspect.getdoc(thing) or '')}"


def _list_of_parameters(doc: str) -> str:
    """A docstring whose lines `name: meaning`, `Returns …` and `Raises …` are a list."""
    lines, in_list = [], False
    for line in doc.splitlines():
        starts = re.match(r"(Returns|Raises|[a-z_]+(, [a-z_]+)*:) ", line)
        if starts:
            item = re.sub(r"^([a-z_, ]+):", r"`\1`:", line)
            lines += [f"- {item}"] if in_list else ["", f"- {item}"]
            in_list = True
        else:
            in_list = in_list and bool(line.strip())
            lines.append(f"  {line.strip()}" if in_list else line)
    return "\n".join(lines) + "\n"


def _spaced(doc: str) -> str:
    """Markdown has a blank line around what is indented."""
    return re.sub(r"(?m)^(?! {4})(\S.*)\n( {4,}\S)", r"\1\n\n\2", doc)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value) or '""'


def _cell(text: str) -> str:
    """Text within a table: no column ends, and no HTML tag begins, in the middle of it."""
    return re.sub(r"<(?=[a-z])", "&lt;", text).replace("|", "\\|")


def _code(path: str) -> str:
    text = (ROOT / path).read_text()
    return f"```{'python' if path.endswith('.py') else ''}\n{text}```"
