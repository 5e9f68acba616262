"""Each token of a text from those before it: cross entropy, perplexity, bits per character, entropy (P2 C.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc_cli.quantities import Measures, Quantity
from acdc_cli.recipe.blocks.base import Misfit
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.recipe.blocks.text import IGNORED


class Task:
    """Logits are (rows, length, vocabulary), targets (rows, length).

    In training, a model with an adaptive softmax gives the log-probability of each target instead, (rows, length).
    """

    measures: ClassVar[Measures] = Measures(
        headline=Quantity("perplexity", "perplexity", "ppl", "", better="less"),
        confidence=Quantity("entropy", "entropy", "entr.", "nats"),
        more=(Quantity("bits_per_character", "bits per character", "bpc", "bits", better="less"),),
    )
    inputs: ClassVar[str] = "text"
    targets: ClassVar[str] = "tokens"
    losses: ClassVar[tuple[str, ...]] = ("softmax",)
    names = ("loss", "entropy", "perplexity", "bits_per_character", "accuracy", "tokens")

    def __init__(self, block: TaskBlock | None = None, names: Sequence[str] = ()) -> None:
        """names: the text of each token, whose lengths are the characters."""
        self.label_smoothing = block.label_smoothing if block else 0.0
        self._names = tuple(names)
        self._characters = torch.tensor([len(name) for name in names], dtype=torch.float64)

    @staticmethod
    def check(data: DataBlock) -> Iterator[Misfit]:
        yield from ()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats over the predicted tokens."""
        if logits.ndim == targets.ndim:
            return -logits.float().sum() / (targets != IGNORED).sum()
        smoothing = self.label_smoothing
        return F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )

    @torch.no_grad()
    def unsmoothed_loss(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        if not self.label_smoothing or logits.ndim == targets.ndim:
            return None
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the predicted tokens, as float64 scalars on the logits' device."""
        predicted = targets != IGNORED
        right = targets.clamp(min=0)
        log_probabilities = F.log_softmax(logits.float(), dim=-1)
        entropy = -(log_probabilities.exp() * log_probabilities).nan_to_num().sum(dim=-1)
        self._characters = self._characters.to(targets.device)
        characters = self._characters[right] if len(self._characters) else torch.zeros_like(right)
        loss = -log_probabilities.gather(-1, right[..., None])[..., 0]
        values = {
            "loss": loss,
            "entropy": entropy,
            "accuracy": log_probabilities.argmax(dim=-1) == right,
            "tokens": predicted,
            "characters": characters,
        }
        return {name: torch.where(predicted, value, 0).sum(dtype=torch.float64) for name, value in values.items()}

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """loss and entropy in nats per token; perplexity, exp of the loss; bits per character of the text."""
        tokens = sums["tokens"]
        loss = sums["loss"] / tokens
        bits = sums["loss"] / math.log(2) / sums["characters"] if sums["characters"] else math.nan
        return {
            "loss": loss,
            "entropy": sums["entropy"] / tokens,
            "perplexity": math.exp(loss) if loss < _LARGEST else math.inf,
            "bits_per_character": bits,
            "accuracy": sums["accuracy"] / tokens,
            "tokens": tokens,
        }

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=-1).flatten(0, 1)[:, None]

    def undecided(self, logits: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(logits.float(), dim=-1)
        return -(log_probabilities.exp() * log_probabilities).nan_to_num().sum(dim=-1).flatten()[:, None]

    def answers(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1).flatten()[:, None]

    def truth(self, targets: Tensor, outputs: int) -> Tensor:
        return targets.clamp(min=0).flatten()[:, None]

    def asked(self, targets: Tensor) -> Tensor | None:
        return (targets != IGNORED).flatten()

    def decisions(self, outputs: int) -> tuple[str, ...]:
        return ("",)

    def options(self, outputs: int) -> tuple[str, ...]:
        return self._names or tuple(map(str, range(outputs)))


_LARGEST = 700.0
"""exp of more is infinite."""
