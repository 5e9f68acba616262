"""A set of sentences on the disk: its tables, read and tokenised once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acdc_cli import console, files
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet, root_of, steps_per_epoch
from acdc_cli.data.known_sentences import KnownSentences, known_sentences
from acdc_cli.data.labels import Labels
from acdc_cli.data.order import spread
from acdc_cli.data.sentence_files import Rows, read, tables
from acdc_cli.data.sentence_loader import Sentences
from acdc_cli.data.sentence_tokens import Encoded, SentenceTokens, tokens_of
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.sentences import SentencesBlock
from acdc_cli.recipe.suggest import did_you_mean

_MAIN = ("train", "val", "test")


@dataclass(frozen=True)
class SentenceSet(DataSet):
    block: SentencesBlock
    known: KnownSentences = field(kw_only=True)
    _rows: dict[str, Rows] = field(default_factory=dict, init=False, repr=False, compare=False)
    _encoded: dict[str, Encoded] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def tokenizer(self) -> SentenceTokens:
        return tokens_of(self.block.tokenizer)

    @cached_property
    def labelled(self) -> Labels:
        if self.known.scores:
            return Labels(("score",), "score")
        return Labels(tuple(self._classes.values()))

    @cached_property
    def _classes(self) -> Mapping[str, str]:
        """Names of the classes by their labels."""
        if self.known.classes is not None:
            return self.known.classes
        labels = set(self.rows("train").labels)
        if len(labels) == 1:
            raise DataError(f"{self._file('train')} has one class only, {labels.pop()!r}; there must be two or more")
        numbered = all(label.isdecimal() for label in labels)
        return {label: label for label in sorted(labels, key=int if numbered else str)}

    @cached_property
    def fingerprint(self) -> Mapping[str, str]:
        return _digests(self.path, self.known) | {"tokenizer": self.tokenizer.digest}

    @property
    def further(self) -> tuple[str, ...]:
        return tuple(split for split in self.known.files if split not in _MAIN)

    def stored(self, split: str) -> int:
        return len(self.rows(split).texts) if split in self.known.files and self._file(split).is_file() else 0

    def rows(self, split: str) -> Rows:
        """Raises DataError if there is no such split, or it is damaged."""
        if split not in self._rows:
            if split not in self.known.files:
                raise DataError(f"{self.block.name} has no {split}, only {', '.join(self.known.files)}")
            self._rows[split] = rows = read(self._file(split), self.known)
            if rows.left_out:
                console.say(f"{self._file(split)}: {rows.left_out} broken lines are left out")
        return self._rows[split]

    def _file(self, split: str) -> Path:
        return self.path / self.known.files[split]

    def targets(self, split: str) -> NDArray[np.int64] | NDArray[np.float32]:
        """(examples,). Raises DataError for a label that means nothing."""
        rows = self.rows(split)
        if self.known.scores:
            return np.array(
                [self._score(split, label, line) for label, line in zip(rows.labels, rows.lines, strict=True)],
                np.float32,
            )
        numbers = {label: number for number, label in enumerate(self._classes)}
        for label, line in zip(rows.labels, rows.lines, strict=True):
            if label not in numbers:
                known = ", ".join(list(numbers)[:10]) + (", …" if len(numbers) > 10 else "")
                raise DataError(f"{self._file(split)}, line {line}: the label {label!r} is none of {known}")
        return np.array([numbers[label] for label in rows.labels], np.int64)

    def _score(self, split: str, label: str, line: int) -> float:
        assert self.known.scores is not None
        low, high = self.known.scores
        try:
            score = float(label)
        except ValueError:
            score = float("nan")
        if not low <= score <= high:
            raise DataError(f"{self._file(split)}, line {line}: the score {label!r} is none from {low:g} to {high:g}")
        return score

    def encoded(self, split: str) -> Encoded:
        if split not in self._encoded:
            self._encoded[split] = encoded = self.tokenizer.encode(self.rows(split).texts, self.block.length)
            if encoded.cut:
                console.say(
                    f"{self._file(split)}: {encoded.cut:,} of {len(encoded.lengths):,} examples are longer than "
                    f"data.length, {self.block.length} tokens, and are cut"
                )
        return self._encoded[split]

    def train_loader(self, seed: int, sizes: Sequence[int], device: torch.device, shard: Shard = UNDIVIDED) -> Loader:
        used = self._used("train", None)
        steps_per_epoch(self.block, len(used))
        return self._loader("train", used, self.block.batch_size, device, shard, seed)

    def val_loader(
        self, device: torch.device, split: str = "val", shard: Shard = UNDIVIDED, count: int | None = None
    ) -> Loader:
        size = self.block.val_batch_size or max(1, self.block.batch_size // shard.size)
        return self._loader(split, self._used(split, count), size, device, shard)

    def calibration_loader(self, seed: int, device: torch.device) -> Loader:
        return self.train_loader(seed, [self.block.length], device)

    def _used(self, split: str, count: int | None) -> NDArray[np.int64]:
        stored = len(self.rows(split).texts)
        asked = self.block.examples if split == "train" else self.block.val_examples
        used = spread(min(asked or stored, stored), stored)
        return used if count is None else used[spread(min(count, len(used)), len(used))]

    def _loader(
        self,
        split: str,
        used: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
        shard: Shard,
        seed: int | None = None,
    ) -> Sentences:
        targets = self.targets(split)
        encoded, padding = self.encoded(split), self.tokenizer.padding
        return Sentences(encoded, targets, used, batch_size, self.block.length, padding, device, seed, shard)


def open_set(block: SentencesBlock) -> SentenceSet:
    """Raises DataError if the name is unknown, or a table is missing."""
    known = _known(block.name)
    root = root_of(block)
    for split, name in known.files.items():
        if split != "test" and not (root / name).is_file():
            raise DataError(f"{root.absolute()} has no {name}; name the folder of {block.name} with data.path")
    return SentenceSet(block, known=known)


def expected_set(block: SentencesBlock) -> tuple[int, int, bool]:
    known = _known(block.name)
    if known.train_examples and not (root_of(block) / known.files["train"]).is_file():
        classes, stored, is_there = len(known.classes or ("score",)), known.train_examples, False
    else:
        data = open_set(block)
        classes, stored, is_there = data.classes, data.stored("train"), True
    return classes, min(stored, block.examples or stored), is_there


def fingerprints(root: Path, thorough: bool) -> dict[str, str | None]:
    digests: dict[str, str | None] = {}
    for known in known_sentences().values():
        if (root / known.files["val"]).is_file():
            digests |= _digests(root, known)
    return digests


def vocabulary(block: SentencesBlock) -> int:
    return tokens_of(block.tokenizer).size


def _digests(root: Path, known: KnownSentences) -> dict[str, str]:
    """SHA-256 of each table."""
    return {split: files.sha256(file) for split, file in tables(root, known).items()}


def _known(name: str) -> KnownSentences:
    sets = known_sentences()
    if name not in sets:
        hint = did_you_mean(name, list(sets))
        raise DataError(f"data.name: there is no set of sentences {name}, only {', '.join(sets)}{hint}")
    return sets[name]
