"""Sentences or pairs of them, as `data/sentence_loader.py` pads them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc_cli.data.data_set import Preparation
from acdc_cli.data.sentence_set import expected_set as expected_set
from acdc_cli.data.sentence_set import fingerprints as fingerprints
from acdc_cli.data.sentence_set import open_set as open_set
from acdc_cli.data.sentence_set import vocabulary as vocabulary
from acdc_cli.recipe.blocks.sentences import SentencesBlock

engine_inputs_are = "int64 tokens, mask and types of an example, padded to its longest length"


def blank(size: int, device: torch.device) -> Tensor:
    inputs = torch.zeros(1, 3, size, dtype=torch.int64, device=device)
    inputs[:, 1] = 1
    return inputs


def output_shape(size: int, outputs: int) -> tuple[int, ...]:
    return 1, outputs


def preparation(block: SentencesBlock, device: torch.device, layout: torch.memory_format) -> Preparation:
    return _arguments


class OnOneTensor(nn.Module):
    """An encoder on inputs as loaders give them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, 3, length) -> (batch, classes)."""
        logits: Tensor = self.model(*inputs.unbind(1))
        return logits


def deployed(model: nn.Module) -> nn.Module:
    return OnOneTensor(model)


def engine_inputs(inputs: Tensor, block: SentencesBlock) -> Tensor:
    return F.pad(inputs, (0, block.length - inputs.shape[2]))


def _arguments(inputs: Tensor, training: bool) -> tuple[Tensor | None, ...]:
    """Tokens, where they are, and their types."""
    return tuple(inputs.unbind(1))
