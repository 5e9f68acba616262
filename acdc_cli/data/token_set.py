"""The data set of a text: its vocabulary and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet, root_of
from acdc_cli.data.known_texts import known_texts
from acdc_cli.data.labels import Labels
from acdc_cli.data.segments import Segments, all_rows, equal_rows, grouped, single_segments
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.data.token_files import FACTS, TextManifest, Tokens, fingerprint, mapped, read_facts, vocabulary_digest
from acdc_cli.data.tokenisers import Tokeniser, tokeniser_of
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.text import TextBlock


@dataclass(frozen=True)
class TokenSet(DataSet):
    block: TextBlock
    facts_: TextManifest = field(kw_only=True)

    @cached_property
    def tokeniser(self) -> Tokeniser:
        return tokeniser_of(self.facts_.tokeniser)

    @cached_property
    def labelled(self) -> Labels:
        return Labels(self.tokeniser.names, "tokens")

    @property
    def fingerprint(self) -> dict[str, str]:
        return fingerprint(self.facts_)

    def facts(self) -> dict[str, Any]:
        # the vocabulary may have hundreds of thousands of names
        return {key: value for key, value in super().facts().items() if key != "class_names"} | {
            "vocabulary": vocabulary_digest(self.facts_)
        }

    def stored(self, split: str) -> int:
        return self.facts_.splits[split].tokens if split in self.facts_.splits else 0

    def tokens(self, split: str) -> Tokens:
        """The tokens of a split that the recipe uses. Raises DataError if there is no such split, or it is damaged."""
        if split not in self.facts_.splits:
            raise DataError(f"{self.path} has no {split}, only {', '.join(self.facts_.splits)}; write the set again")
        stored = mapped(self.path, split, self.facts_.splits[split])
        return stored[: self.block.tokens if split == "train" else self.block.val_tokens]

    def train_loader(self, seed: int, sizes: Sequence[int], device: torch.device, shard: Shard = UNDIVIDED) -> Loader:
        return self._training(device, shard, seed if self.block.roll else None)

    def calibration_loader(self, seed: int, device: torch.device) -> Loader:
        return self._training(device)

    def _training(self, device: torch.device, shard: Shard = UNDIVIDED, roll_seed: int | None = None) -> Segments:
        block, tokens = self.block, self.tokens("train")
        require_segments(block, len(tokens))
        rows = equal_rows(len(tokens), block.batch_size)
        return Segments(
            tokens, f"{self.path}/train.tokens", self.classes, block.length, (rows,), device, roll_seed, True, shard
        )

    def val_loader(
        self, device: torch.device, split: str = "val", shard: Shard = UNDIVIDED, count: int | None = None
    ) -> Loader:
        """count: so many single segments, each without what stands before it."""
        block, tokens = self.block, self.tokens(split)
        if len(tokens) <= block.val_rows:
            raise DataError(f"{self.path}: {split} has {len(tokens)} tokens; lower data.val_rows, or raise val_tokens")
        if count is None:
            rows = all_rows(len(tokens), block.val_rows)
        else:
            rows = single_segments(len(tokens), block.val_size, count)
        at_once = block.val_batch_size or len(rows) if count is None else block.val_batch_size or block.batch_size
        groups = grouped(rows, at_once * shard.size)
        name = f"{self.path}/{split}.tokens"
        return Segments(tokens, name, self.classes, block.val_size, groups, device, shard=shard)


def require_segments(block: TextBlock, tokens: int) -> int:
    """Steps of an epoch of that many tokens. Raises DataError if there is none."""
    if steps := (tokens // block.batch_size - 1) // block.length:
        return steps
    raise DataError(
        f"data.batch_size {block.batch_size} cuts the {tokens:,} training tokens of {block.name} into rows shorter "
        f"than data.length {block.length}, so an epoch would have no step. Lower one of them."
    )


def open_set(block: TextBlock) -> TokenSet:
    """Raises DataError if there is no set, or its files are not those that were written."""
    return TokenSet(block, facts_=read_facts(root_of(block), block.name))


def expected_set(block: TextBlock) -> tuple[int, int, bool]:
    known = known_texts().get(block.name)
    if known and known.vocabulary and known.train_tokens and not (root_of(block) / FACTS).is_file():
        vocabulary, stored, is_there = known.vocabulary, known.train_tokens, False
    else:
        data = open_set(block)
        vocabulary, stored, is_there = data.classes, data.stored("train"), True
    return vocabulary, require_segments(block, min(stored, block.tokens or stored)) * block.batch_size, is_there
