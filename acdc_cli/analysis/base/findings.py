"""The result of an analysis: numbers, tables and figures, and how they are written to files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc_cli import files
from acdc_cli.analysis.base import plotting
from acdc_cli.reading import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def csv(self) -> str:
        """Numbers in full precision; unknown values are empty."""
        return files.csv_text([self.columns, *plain(self.rows)])


@dataclass(frozen=True)
class Findings:
    """The names of tables and figures become suffixes of their file names; "" is the main one."""

    numbers: Mapping[str, Any]
    """All results, as JSON types; NaN and infinities become null."""
    summary: Table
    """Text for the terminal, at most 80 columns wide."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """Numbers in full precision, shares as fractions."""
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def write(self, folder: Path, stem: str, about: Mapping[str, Any]) -> list[Path]:
        """Writes one .json (beginning with `about`), a .csv per table, a .png and .svg per figure; returns the paths.

        Raises RunError if a file cannot be written.
        """
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps(plain({**about, "results": self.numbers}), indent=2, allow_nan=False)
        contents = {_named(folder, stem, "", "json"): f"{document}\n".encode()}
        contents |= {
            _named(folder, stem, name, "csv"): files.as_bytes(table.csv()) for name, table in self.tables.items()
        }
        for name, figure in self.figures.items():
            contents[_named(folder, stem, name, "png")] = plotting.png(figure)
            contents[_named(folder, stem, name, "svg")] = plotting.svg(figure).encode()
        for path, content in contents.items():
            files.write_bytes(path, content)
        return list(contents)


def _named(folder: Path, stem: str, name: str, ending: str) -> Path:
    return folder / f"{stem}{f'-{name}' if name else ''}.{ending}"
