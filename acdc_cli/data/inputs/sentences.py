"""Sentences or pairs of them, as `data/sentence_loader.py` pads them."""

from __future__ import annotations

import torch
from torch import Tensor

from acdc_cli.data.data_set import Preparation
from acdc_cli.data.sentence_set import expected_set, fingerprints, open_set, vocabulary
from acdc_cli.recipe.blocks.sentences import SentencesBlock

__all__ = ["blank", "expected_set", "fingerprints", "open_set", "output_shape", "preparation", "vocabulary"]


def blank(size: int, device: torch.device) -> Tensor:
    inputs = torch.zeros(1, 3, size, dtype=torch.int64, device=device)
    inputs[:, 1] = 1
    return inputs


def output_shape(size: int, outputs: int) -> tuple[int, ...]:
    return 1, outputs


def preparation(block: SentencesBlock, device: torch.device, layout: torch.memory_format) -> Preparation:
    return _arguments


def _arguments(inputs: Tensor, training: bool) -> tuple[Tensor | None, ...]:
    """Tokens, where they are, and their types."""
    return tuple(inputs.unbind(1))
