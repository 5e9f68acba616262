"""A running text, as `data/segments.py` cuts it: each token is predicted from those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from acdc_cli.data.data_set import Preparation
from acdc_cli.data.token_set import expected_set, fingerprints, open_set
from acdc_cli.recipe.blocks.text import TextBlock

__all__ = ["blank", "expected_set", "fingerprints", "open_set", "output_shape", "preparation", "vocabulary"]


def vocabulary(block: TextBlock) -> None:
    return None


def blank(size: int, device: torch.device) -> Tensor:
    return torch.zeros(1, 2 + size, dtype=torch.int64, device=device)


def output_shape(size: int, outputs: int) -> tuple[int, ...]:
    return 1, size, outputs


def preparation(block: TextBlock, device: torch.device, layout: torch.memory_format) -> Preparation:
    return _arguments


def _arguments(inputs: Tensor, training: bool) -> tuple[Tensor | None, ...]:
    """Tokens, targets in training, and which rows begin."""
    return inputs[:, 1:-1], inputs[:, 2:] if training else None, inputs[:, 0] != 0
