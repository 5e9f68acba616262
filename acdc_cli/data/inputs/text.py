"""A running text, as `data/segments.py` cuts it: each token is predicted from those before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acdc_cli import memory
from acdc_cli.data.data_set import Preparation
from acdc_cli.data.token_files import fingerprints as fingerprints
from acdc_cli.data.token_set import expected_set as expected_set
from acdc_cli.data.token_set import open_set as open_set
from acdc_cli.recipe.blocks.text import TextBlock

engine_inputs_are = "int64 tokens of a segment that stands alone"


def vocabulary(block: TextBlock) -> None:
    return None


def blank(size: int, device: torch.device) -> Tensor:
    return torch.zeros(1, 2 + size, dtype=torch.int64, device=device)


def output_shape(size: int, outputs: int) -> tuple[int, ...]:
    return 1, size, outputs


def preparation(block: TextBlock, device: torch.device, layout: torch.memory_format) -> Preparation:
    return _arguments


class Alone(nn.Module):
    """A model of text without its memory: every segment begins a text."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, length) -> (rows, length, vocabulary)."""
        with memory.disabled(self.model):
            logits: Tensor = self.model(tokens)
        return logits


def deployed(model: nn.Module) -> nn.Module:
    return Alone(model)


def engine_inputs(inputs: Tensor, block: TextBlock) -> Tensor:
    return inputs[:, 1:-1].contiguous()


def _arguments(inputs: Tensor, training: bool) -> tuple[Tensor | None, ...]:
    """Tokens, targets in training, and which rows begin."""
    return inputs[:, 1:-1], inputs[:, 2:] if training else None, inputs[:, 0] != 0
