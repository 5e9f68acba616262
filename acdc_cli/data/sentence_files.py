"""Reads tables of sentences: lines of columns that are separated by tabs, without quoting, as GLUE publishes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acdc_cli.data.known_sentences import KnownSentences
from acdc_cli.errors import DataError


@dataclass(frozen=True)
class Rows:
    texts: list[tuple[str, ...]]
    """The sentence, or the two, of each row."""
    labels: list[str]
    lines: list[int]
    """The line of each row, from 1."""
    left_out: int
    """Broken rows."""


def read(file: Path, known: KnownSentences) -> Rows:
    """Raises DataError for a table that is missing, empty or damaged."""
    lines = _lines(file)
    header = None if isinstance(known.label, int) else lines[0].split("\t")
    texts, label = _columns(file, known, header)
    rows = Rows([], [], [], 0)
    left_out = 0
    for number, line in enumerate(lines[header is not None :], 1 + (header is not None)):
        cells = line.split("\t")
        if problem := _problem(line, cells, header, (*texts, label), known):
            if not known.has_broken_rows:
                raise DataError(f"{file}, line {number}: {problem}; correct the line, or remove it")
            left_out += 1
            continue
        text = tuple(cells[column].strip() for column in texts)
        if not all(text) and not known.has_broken_rows:
            raise DataError(f"{file}, line {number}: the sentence is empty; correct the line, or remove it")
        rows.texts.append(text)
        rows.labels.append(cells[label].strip())
        rows.lines.append(number)
    if not rows.texts:
        raise DataError(f"{file} has no example; fetch or write it again")
    return Rows(rows.texts, rows.labels, rows.lines, left_out)


def written_examples(root: Path, known: KnownSentences) -> dict[str, int]:
    """Lines of each table that lies in a folder, without its header."""
    headers = not isinstance(known.label, int)
    return {split: file.read_bytes().count(b"\n") - headers for split, file in tables(root, known).items()}


def tables(root: Path, known: KnownSentences) -> dict[str, Path]:
    """The tables that lie in a folder, by split."""
    return {split: root / name for split, name in known.files.items() if (root / name).is_file()}


def _lines(file: Path) -> list[str]:
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{file} is empty; fetch or write it again")
    # not splitlines(): a sentence may hold other characters that end lines
    return [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]


def _columns(file: Path, known: KnownSentences, header: Sequence[str] | None) -> tuple[list[int], int]:
    """The columns of the sentences and of the label. Raises DataError if one is missing."""
    if header is None:
        return [int(column) for column in known.text], int(known.label)
    wanted = [str(column) for column in known.text]
    if known.is_generic:
        # the second sentence may be left out
        wanted = [column for number, column in enumerate(wanted) if number == 0 or column in header]
    if missing := [column for column in (*wanted, str(known.label)) if column not in header]:
        raise DataError(
            f"{file} has no column {', '.join(missing)}: its first line names {', '.join(header)[:200]}; "
            "separate columns by tabs, and name them there"
        )
    return [header.index(column) for column in wanted], header.index(str(known.label))


def _problem(
    line: str, cells: Sequence[str], header: Sequence[str] | None, needed: Sequence[int], known: KnownSentences
) -> str | None:
    """Why the line is no row of the table."""
    if not line.strip():
        return "it is empty"
    # published tables have rows with further columns, which are not read
    wanted = len(header) if header and known.is_generic else max(needed) + 1
    if len(cells) < wanted or (known.is_generic and len(cells) > wanted):
        return f"it has {len(cells)} columns separated by tabs, and should have {wanted}"
    return None
