"""A text on the disk as numbers of tokens, with its vocabulary and checksums.

A folder holds `train.tokens`, `val.tokens` and perhaps `test.tokens`, arrays of little-endian integers that are mapped
into memory, and `text.json`, the vocabulary and the facts of each.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, PositiveInt

from acdc_cli import files, reading
from acdc_cli.data.tokenisers import tokeniser_of
from acdc_cli.errors import DataError

Tokens = NDArray[np.unsignedinteger]
"""(tokens,), perhaps mapped from a file."""

FACTS = "text.json"
VERSION = 1
Dtype = Literal["<u2", "<u4"]


class Split(reading.Form):
    tokens: PositiveInt
    characters: PositiveInt
    """Length of the text that the tokens stand for."""
    dtype: Dtype
    sha256: str
    """SHA-256 of the file."""
    source: str
    """SHA-256 of the text."""


def _vocabulary(values: dict[str, Any]) -> dict[str, Any]:
    match values:
        case {"kind": "words", "words": list()} | {"kind": "byte pairs", "model": str()}:
            return values
    raise ValueError("this is no vocabulary")


class TextManifest(reading.Form):
    version: Literal[1]
    name: str
    tokeniser: Annotated[dict[str, Any], AfterValidator(_vocabulary)]
    """What `tokeniser_of` takes."""
    splits: dict[str, Split]
    created: str
    acdc_version: str


def fingerprints(root: Path, thorough: bool) -> dict[str, str | None]:
    if not (root / FACTS).is_file():
        return {}
    try:
        return {**fingerprint(read_facts(root))}
    except DataError:
        return {"train": ""}


def fingerprint(facts: TextManifest) -> dict[str, str]:
    vocabulary = vocabulary_digest(facts)
    return {name: f"{split.sha256}-{vocabulary[:16]}" for name, split in facts.splits.items()}


def read_facts(root: Path, name: str = "text") -> TextManifest:
    """Raises DataError if the folder holds no written text, or one of its files has another size."""
    file = root / FACTS
    if not os.path.isfile(file):
        raw = " It holds a text that is not written yet." if os.path.isfile(root / "train.txt") else ""
        raise DataError(
            f"the text {name} is not written: {root.absolute()} has no {FACTS}.{raw} Write it: `acdc data write {name} "
            f"--source FOLDER --out {root}`, or give its location: --set data.path=FOLDER"
        )
    values = reading.read_json(file, TextManifest, DataError, "write the text again")
    facts = TextManifest.model_validate(values)
    for split, known in facts.splits.items():
        mapped(root, split, known)
    return facts


def mapped(root: Path, split: str, known: Split) -> Tokens:
    file = root / f"{split}.tokens"
    expected = known.tokens * np.dtype(known.dtype).itemsize
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; write the text again") from error
    if size != expected:
        raise DataError(f"{file} has {size} bytes, and {FACTS} says {expected}; write the text again")
    tokens: Tokens = np.memmap(file, known.dtype, "r")
    return tokens


def written_tokens(root: Path) -> dict[str, int]:
    """Tokens of each split in a folder; empty if it holds no written text."""
    if not (root / FACTS).is_file():
        return {}
    return {name: split.tokens for name, split in read_facts(root).splits.items()}


def check(root: Path) -> TextManifest:
    """Compares every byte with the checksums. Raises DataError."""
    facts = read_facts(root)
    names = tokeniser_of(facts.tokeniser).names
    for split, known in facts.splits.items():
        file = root / f"{split}.tokens"
        if files.sha256(file) != known.sha256:
            raise DataError(f"{file} has changed since it was written; write the text again, or fetch another copy")
        if (largest := int(mapped(root, split, known).max())) >= len(names):
            raise DataError(f"{file} has token {largest}, and the vocabulary {len(names)}; write the text again")
    return facts


def vocabulary_digest(facts: TextManifest) -> str:
    return hashlib.sha256(repr(sorted(facts.tokeniser.items())).encode()).hexdigest()
