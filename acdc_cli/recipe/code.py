"""A model's own code: the file that `model.name: FILE.py:FUNCTION` names, and the modules beside it that it imports.

Here the code is read and identified by its content; `models.own_code` runs it. Only a file that the user names, or the
copy in a run directory, is ever read: a checkpoint says which code it needs, and never brings it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from acdc_cli import files
from acdc_cli.errors import RecipeError
from acdc_cli.recipe.syntax import Entry, Problem, shown

FOLDER = "model"
"""Folder of a run directory that holds the copy of the code."""
_NAME = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_INSTALLED = sys.stdlib_module_names | {"acdc_cli", "numpy", "timm", "torch", "torchvision"}
"""Packages that a file beside the model's never stands for."""
_MOST_FILES, _MOST_BYTES = 200, 5_000_000
_known: dict[str, Code] = {}


@dataclass(frozen=True)
class Code:
    folder: Path
    entry: str
    """The name of the file with the function."""
    files: Mapping[str, bytes] = field(repr=False)
    """Contents by path below the folder."""

    @cached_property
    def sha256(self) -> dict[str, str]:
        """By path."""
        return {path: hashlib.sha256(self.files[path]).hexdigest() for path in sorted(self.files)}

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.sha256).encode()).hexdigest()[:16]


def is_own(name: str) -> bool:
    """Whether the name of a model is FILE.py:FUNCTION. Raises RecipeError for a file without a function."""
    if name.endswith((".py", ".py:")):
        raise RecipeError(f"{name}: name the function that makes the model, too: {name.rstrip(':')}:FUNCTION")
    return _NAME.fullmatch(name) is not None


def named(name: str, folder: Path | None = None) -> dict[str, str]:
    """The keys of a recipe's model: `name`, without the file's folder, and `code`, its digest, for FILE.py:FUNCTION.

    folder: of the recipe, where the file is looked for first, then in its `model/`, then in the working directory.
    Raises RecipeError for a file that is missing, is not Python, or imports from above its folder.
    """
    if not is_own(name):
        return {"name": name}
    match = _NAME.fullmatch(name)
    assert match is not None
    given = Path(os.path.expanduser(match["file"]))
    places = [given] if folder is None else [folder / given, folder / FOLDER / given, given]
    # os.path's, which returns False for a name that no file can have
    code = read(next((place for place in places if os.path.isfile(place)), given))
    return {"name": f"{code.entry}:{match['function']}", "code": code.digest}


def anchored(root: Entry, folder: Path) -> tuple[Entry, list[Problem]]:
    """The keys of a recipe, of which `model.name` may be FILE.py:FUNCTION, as `named` has them."""
    block = root.value.get("model") if isinstance(root.value, dict) else None
    name = block.value.get("name") if block is not None and isinstance(block.value, dict) else None
    if name is None or not isinstance(name.value, str):
        return root, []
    assert isinstance(root.value, dict)
    assert block is not None
    assert isinstance(block.value, dict)
    before = block.value.get("code")
    digest = before.value if before is not None else None
    if isinstance(digest, str) and at_hand(digest) and name.value.startswith(f"{known(digest).entry}:"):
        # of a recipe that this process wrote
        return root, []
    try:
        keys = named(name.value, folder)
    except RecipeError as error:
        return root, [Problem(name.place, ("model", "name"), str(error))]
    problems = []
    if "code" in keys and before is not None and before.value not in (None, keys["code"]):
        file = shown(known(keys["code"]).folder / known(keys["code"]).entry)
        text = (
            f"the code of this model is {before.value}, but {file} with what it imports is {keys['code']}; restore it"
        )
        problems.append(Problem(before.place, ("model", "code"), text))
    own = {key: Entry(value, name.place) for key, value in keys.items()}
    return Entry({**root.value, "model": Entry({**block.value, **own}, block.place)}, root.place), problems


def read(file: Path) -> Code:
    """The code of a file, known from now on by its digest; nothing of it is run."""
    folder, contents = file.absolute().parent, dict[str, bytes]()
    waiting = [file.name]
    while waiting:
        path = waiting.pop()
        if path in contents:
            continue
        contents[path] = _content(folder / path)
        if len(contents) > _MOST_FILES or sum(map(len, contents.values())) > _MOST_BYTES:
            raise RecipeError(
                f"{shown(file.absolute())} imports more than {_MOST_FILES} files or 5 MB from its folder; "
                "give the model a folder of its own"
            )
        waiting += _imported(folder, path, contents[path])
    code = Code(folder, file.name, contents)
    return _known.setdefault(code.digest, code)


def known(digest: str) -> Code:
    """The code that was read with this digest. Raises KeyError."""
    return _known[digest]


def at_hand(digest: str) -> bool:
    return digest in _known


def find_copy(name: str, file: Path) -> None:
    """Reads the copy of the run directory in which this checkpoint lies, if it lies in one."""
    entry = Path(name.rpartition(":")[0]).name
    for folder in list(file.absolute().parents)[:3]:
        if (folder / "resolved.yaml").is_file() and (copy := folder / FOLDER / entry).is_file():
            read(copy)


def facts(digest: str | None) -> dict[str, Any]:
    """For provenance.json: the SHA-256 of each file; empty for a model without code of its own."""
    return {} if digest is None else {"model_code": {"digest": digest, "sha256": known(digest).sha256}}


def files_of(digest: str | None) -> Mapping[str, bytes]:
    """What a run directory keeps; nothing for a model without code of its own."""
    return {} if digest is None else known(digest).files


def blame(error: BaseException) -> str | None:
    """`FILE:LINE: ERROR` of the innermost line of a model's own code; None if the error did not pass through any."""
    paths = {str(code.folder / path) for code in _known.values() for path in code.files}
    place, trace = None, error.__traceback__
    while trace is not None:
        if (file := trace.tb_frame.f_code.co_filename) in paths:
            place = f"{shown(Path(file))}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place and f"{place}: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _content(file: Path) -> bytes:
    try:
        return files.read_bytes(file)
    # a ValueError for a null byte in the name
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = "there is no file" if isinstance(error, FileNotFoundError) else f"{reason}:"
        raise RecipeError(f"{what} {shown(file)}; model.name takes FILE.py:FUNCTION") from error


def _imported(folder: Path, path: str, content: bytes) -> Iterator[str]:
    """The files of the folder that this one imports, inside functions, too."""
    place = shown(folder / path)
    try:
        tree = ast.parse(content)
    # a file with null bytes is a ValueError before Python 3.12
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise RecipeError(f"{place}{line}: not valid Python: {_first_line(error)}; correct it") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _beside(folder, alias.name.split("."), absolute=True)
        elif isinstance(node, ast.ImportFrom):
            own = path.split("/")[:-1]
            if node.level > len(own) + 1:
                raise RecipeError(f"{place}:{node.lineno}: imports from above {shown(folder)}; move the file up")
            base = own[: len(own) + 1 - node.level] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield from _beside(folder, [*module, alias.name], absolute=not node.level)


def _beside(folder: Path, parts: list[str], absolute: bool) -> Iterator[str]:
    """The files that an import of these parts runs, as far as they lie in the folder."""
    if absolute and parts[0] in _INSTALLED:
        return
    for length in range(1, len(parts) + 1):
        stem = "/".join(parts[:length])
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            if (folder / path).is_file():
                yield path
                break
