"""Tasks of GLUE (P2, Table O.11), and your own tables of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from acdc_cli.data.sentence_set import SentenceSet, open_set
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.sentences import SentencesBlock
from acdc_cli.recipe.blocks.task import is_task
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.schema import Recipe
from acdc_cli.transfer import target

_LARGE = 50_000
"""Training examples from which fewer epochs are enough."""


def _finetuning(examples: int) -> target.Hyperparameters:
    """The protocol of the recipes `language/bert_glue_*` and of the study `glue`."""
    epochs = 10 if examples >= _LARGE else 30
    optim = {"name": "adamw", "lr": 5e-5, "weight_decay": 0.01, "clip_norm": 1.0}
    return target.Hyperparameters(epochs, 32, optim, lambda asked: {"name": "linear", "warmup_epochs": asked / 15})


@dataclass(frozen=True)
class Target(target.Target):
    data: SentenceSet

    @classmethod
    def open(cls, to: str, upstream: Recipe) -> Self:
        assert isinstance(upstream.data, SentencesBlock)
        is_folder, name = Path(to).is_dir(), to.removeprefix("glue/")
        where = {"name": "sentences", "path": to} if is_folder else {"name": name, "path": None}
        data = open_set(upstream.data.model_copy(update={**where, "examples": None, "val_examples": None}))
        measures = measures_of(_task_of(data))
        metrics = tuple(each.key for each in (measures.headline, *measures.more))
        own = Path(to).absolute().name if is_folder else name
        return cls(own, data, metrics, _finetuning(data.stored("train")))

    @property
    def fingerprint(self) -> Mapping[str, str]:
        # the tokenizer is the model's, not the set's
        return {key: value for key, value in self.data.fingerprint.items() if key != "tokenizer"}

    def blocks(self, upstream: Recipe) -> dict[str, dict[str, Any]]:
        block = upstream.data.model_dump(mode="json")
        own = {"name": self.data.block.name, "path": self.data.block.path, "examples": None, "val_examples": None}
        return {"task": {"name": _task_of(self.data)}, "data": block | own}

    def preparation(self, block: DataBlock) -> dict[str, Any]:
        assert isinstance(block, SentencesBlock)
        tokenizer = replace(self.data, block=block).tokenizer.digest
        return {"length": block.length, "tokenizer": tokenizer, "used": [block.examples, block.val_examples]}

    def used(self, block: DataBlock) -> int:
        assert isinstance(block, SentencesBlock)
        stored = self.data.stored("train")
        return min(stored, block.examples or stored)


def _task_of(data: SentenceSet) -> str:
    glue = f"glue/{data.block.name}"
    return glue if is_task(glue) else "sentence_class"
