"""Groups of images from a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acdc_cli import files
from acdc_cli.errors import RunError

_INDEX = "index"


def read_groups(path: str, indices: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """The images of each group, by `column: value`, as masks over the images at these positions of the split.

    Raises RunError if the file does not give each of them one row.
    """
    columns, rows = _read(Path(path).expanduser())
    if absent := [index for index in indices.tolist() if index not in rows]:
        raise RunError(
            f"{path}: {len(absent)} of the {len(indices)} images have no row, image {absent[0]} for one; "
            "add the missing rows"
        )
    groups: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        values = np.array([rows[index][column] for index in indices.tolist()])
        groups |= {f"{column}: {value}": values == value for value in sorted(set(values.tolist()))}
    return groups


def _read(path: Path) -> tuple[list[str], dict[int, Mapping[str, str]]]:
    """The columns of groups, and the rows by index."""
    try:
        reader = csv.DictReader(io.StringIO(files.read_bytes(path).decode("utf-8-sig"), newline=""))
        table = list(reader)
    except OSError as cause:
        raise RunError(f"{path}: cannot be read: {cause.strerror}") from cause
    except (UnicodeDecodeError, csv.Error) as cause:
        raise RunError(f"{path}: is no CSV file ({cause}); write it as UTF-8 text with commas") from cause
    columns = [name for name in reader.fieldnames or [] if name != _INDEX]
    if _INDEX not in (reader.fieldnames or []) or not columns:
        raise RunError(f"{path}: expected a column {_INDEX} and one for each kind of groups, found {reader.fieldnames}")
    rows: dict[int, Mapping[str, str]] = {}
    for line, row in enumerate(table, 2):
        number = row[_INDEX] or ""
        if not number.isdecimal() or None in row or None in row.values():
            raise RunError(
                f"{path}: line {line}: expected an index and {len(columns)} values; complete or remove the line"
            )
        if rows.setdefault(int(number), row) is not row:
            raise RunError(f"{path}: line {line}: image {number} has a row already; remove one of them")
    return columns, rows
