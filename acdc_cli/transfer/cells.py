"""Results of transfers as files, one for each model, set, mode and seed: a folder gathers those of many commands."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from acdc_cli import files, reading
from acdc_cli.errors import RunError
from acdc_cli.transfer.aie import Answers

Mode = Literal["linear", "full"]


class Identity(NamedTuple):
    """What a name in tables stands for."""

    group: str
    experiment: str
    to: str
    fingerprint: Mapping[str, str]
    mode: Mode
    protocol: Mapping[str, Any]


class Cell(reading.Form):
    """One transfer; accuracies and sparsities are fractions."""

    key: str
    """Changes with the weights, the samples, the protocol and the seed."""
    model: str
    """The upstream model's name."""
    group: str
    """The model's name without its seed."""
    experiment: str
    """The same for models that differ in their seed alone."""
    upstream_seed: int
    to: str
    """The set's name."""
    fingerprint: dict[str, str]
    """Fingerprint of the set's samples."""
    metric: str
    """The one of AIE."""
    mode: Mode
    seed: int
    scores: dict[str, float]
    """By metric."""
    logistic: float | None
    """The metric of the best classifier on the same features; None if it was not asked for."""
    sparsity: float
    """Share of zeros among all conv and linear weights except the classifier's."""
    classes: int
    train_samples: int
    val_samples: int
    protocol: dict[str, Any]
    source: str
    sha256: str
    acdc: str

    @property
    def identity(self) -> Identity:
        return Identity(self.group, self.experiment, self.to, self.fingerprint, self.mode, self.protocol)

    @property
    def score(self) -> float:
        return self.scores[self.metric]


def require_clear(identities: Iterable[Identity], folder: Path) -> None:
    """Raises RunError if a name stands for two sets or models, or a model is taken to a set in two ways."""
    meanings: dict[str, str] = {}
    for each in identities:
        claims = {
            f"sets that are called {each.to}": each.fingerprint,
            f"models that are called {each.group}": {"experiment": each.experiment},
            f"protocols of {each.group} on {each.to} ({each.mode})": each.protocol,
        }
        for what, value in claims.items():
            meaning = json.dumps(value, sort_keys=True)
            if meanings.setdefault(what, meaning) != meaning:
                raise RunError(f"{folder} would hold results of two {what}; choose another folder with --out")


@dataclass(frozen=True)
class Cells:
    """The cells in a folder."""

    folder: Path

    def find(self, key: str) -> Cell | None:
        file = self.folder / f"{key}.json"
        return self._read(file) if file.exists() else None

    def all(self) -> Iterator[Cell]:
        for file in sorted(self.folder.glob("*.json")):
            yield self._read(file)

    def answers(self, cell: Cell) -> Answers:
        """(2, samples): the truth and the model's answers on the validation samples."""
        file = self.folder / f"{cell.key}.npy"
        try:
            content: Answers = np.load(io.BytesIO(files.read_bytes(file)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(
                f"{file} cannot be read ({error}); delete {cell.key}.json, and run the command again"
            ) from error
        return content

    def add(self, cell: Cell, answers: Answers) -> None:
        """Raises RunError if it cannot be written."""
        content = io.BytesIO()
        np.save(content, answers)
        with files.explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self.folder / f"{cell.key}.npy", content.getvalue())
        # last: a cell with this file is complete
        files.write_text(self.folder / f"{cell.key}.json", json.dumps(cell.model_dump(), indent=2) + "\n")

    def _read(self, file: Path) -> Cell:
        return Cell.model_validate(reading.read_json(file, Cell, remedy="delete it, and run the command again"))
