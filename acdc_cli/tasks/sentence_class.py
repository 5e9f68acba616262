"""One class per sentence, or pair of sentences: softmax cross entropy, accuracy and macro F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc_cli.quantities import ACCURACY, Measures, Quantity
from acdc_cli.tasks import multiclass
from acdc_cli.tasks.base import scores

ENTROPY = Quantity("entropy", "entropy", "entr.", "nats")


class Task(multiclass.Task):
    measures: ClassVar[Measures] = Measures(
        headline=ACCURACY,
        confidence=ENTROPY,
        more=(Quantity("macro_f1", "macro F1", "F1", "%", counts_answers=False),),
    )
    inputs: ClassVar[str] = "sentences"
    scores: ClassVar[Mapping[str, Callable[[scores.Values, scores.Values], float]]] = {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
    }
    """What `metrics` computes from the answers and the true classes."""

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("loss", "entropy", *self.scores)

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        return {
            "loss": -log_probabilities.gather(1, targets[:, None]).sum(dtype=torch.float64),
            "entropy": -(log_probabilities.exp() * log_probabilities).sum(dtype=torch.float64),
            "answers": self.answers(logits)[:, 0].double(),
            "truth": targets.double(),
        }

    def metrics(self, sums: Mapping[str, Any], samples: int) -> dict[str, float]:
        """loss and entropy in nats, means over the examples; scores of all answers."""
        means = {name: sums[name] / samples for name in ("loss", "entropy")}
        return means | {name: score(sums["answers"], sums["truth"]) for name, score in self.scores.items()}
