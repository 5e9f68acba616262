"""Writes a text as numbers of tokens (`acdc data write`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from acdc_cli import __version__, console, files
from acdc_cli.data.known_texts import KnownText, known_texts
from acdc_cli.data.token_files import FACTS, VERSION, TextManifest, check, read_facts
from acdc_cli.data.tokenisers import Tokeniser, learnt, tokeniser_of
from acdc_cli.errors import DataError

SPLITS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
"""The splits, and the names of files that hold them; the first two are needed."""


def write_text_set(
    name: str,
    source: Path | None,
    out: Path,
    tokeniser: str | None = None,
    at_least: int | None = None,
    force: bool = False,
) -> None:
    """Writes the files of a text, or leaves the folder as it is.

    tokeniser: `words`, `bpe:SIZE`, or the folder of a written text, whose vocabulary is used.
    at_least: how often a word must occur to have a token of its own; None: the set's own number.
    Raises DataError for a text that is missing, empty, or not of this vocabulary.
    """
    known = known_texts()[name]
    texts = _texts(known, source, name)
    if (out / FACTS).exists() and not force:
        read_facts(out)
        raise DataError(f"{out} holds a text already; --force replaces it, --out writes elsewhere")
    chosen = tokeniser or known.tokeniser
    if Path(chosen).is_dir():
        vocabulary = tokeniser_of(read_facts(Path(chosen)).tokeniser)
    else:
        vocabulary = learnt(chosen, _lines(texts["train"]), at_least or known.at_least)
    names = vocabulary.names
    dtype = "<u2" if len(names) <= 1 << 16 else "<u4"
    lengths = np.array([len(each) for each in names], np.int64)
    with files.explained(out, DataError):
        out.mkdir(parents=True, exist_ok=True)
        # without its facts, a folder that is written to is no set
        (out / FACTS).unlink(missing_ok=True)
        splits = {
            split: _write(text, out / f"{split}.tokens", vocabulary, dtype, lengths) for split, text in texts.items()
        }
        facts = {
            "version": VERSION,
            "name": name,
            "splits": splits,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "acdc_version": __version__,
            "tokeniser": vocabulary.as_dict(),
        }
        files.write_text(out / FACTS, json.dumps(facts, ensure_ascii=False) + "\n", DataError)
    for line in summary(check(out)):
        console.say(f"{out}: {line}")


def summary(facts: TextManifest) -> Iterator[str]:
    yield f"a vocabulary of {len(tokeniser_of(facts.tokeniser).names):,} tokens"
    for split, each in facts.splits.items():
        yield f"{split}: {each.tokens:,} tokens, {each.characters:,} characters"


def _texts(known: KnownText, source: Path | None, name: str) -> dict[str, Path]:
    if (folder := source) is None:
        raise DataError(f"{name}: name the folder of its text with --source")
    texts = {}
    for split, stems in SPLITS.items():
        names = [file.format(stem) for file in known.files for stem in stems]
        if there := next((folder / each for each in names if (folder / each).is_file()), None):
            texts[split] = there
        elif split != "test":
            raise DataError(f"{folder} has no {' or '.join(names)}; name the folder of {name} with --source")
    return texts


def _lines(file: Path) -> Iterator[str]:
    """Raises DataError for a file that is empty or no text."""
    read = 0
    try:
        # in bytes, which are decoded line by line, so that an error knows its line
        with file.open("rb") as opened:
            for line in opened:
                yield line.decode()
                read += 1
    except UnicodeDecodeError as error:
        raise DataError(f"{file}, line {read + 1}: not UTF-8 ({error.reason}); convert the file") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if not read:
        raise DataError(f"{file} is empty")


def _write(text: Path, destination: Path, vocabulary: Tokeniser, dtype: str, lengths: Any) -> dict[str, Any]:
    digest, source, tokens, characters = hashlib.sha256(), hashlib.sha256(), 0, 0

    def read() -> Iterator[str]:
        for line in _lines(text):
            source.update(line.encode())
            yield line

    with files.replacing(destination, DataError) as partial, partial.open("wb") as out:
        try:
            for part in vocabulary.encode(read()):
                content = part.astype(dtype).tobytes()
                out.write(content)
                digest.update(content)
                tokens, characters = tokens + len(part), characters + int(lengths[part].sum())
        except DataError as error:
            raise DataError(f"{text}, {error}") from error
    return {
        "tokens": tokens,
        "characters": characters,
        "dtype": dtype,
        "sha256": digest.hexdigest(),
        "source": source.hexdigest(),
    }
