"""GLUE without WNLI, with the metrics of AC/DC++'s Table O.11 (arXiv 1804.07461); headlines are its first ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from acdc_cli.errors import RecipeError
from acdc_cli.quantities import ACCURACY, Measures, Quantity
from acdc_cli.recipe.blocks.base import Misfit
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.tasks import sentence_class
from acdc_cli.tasks.base import scores
from acdc_cli.tasks.sentence_class import ENTROPY

_F1 = Quantity("f1", "F1", "F1", "%", counts_answers=False)


def _check(task: str, data: DataBlock) -> Iterator[Misfit]:
    if data.name != task:
        text = f"glue/{task} is judged on {task}, found {data.name}; take it, or task.name: sentence_class"
        yield Misfit("name", text)


class _Accuracy(sentence_class.Task):
    """A task of the set of its own name."""

    of: ClassVar[str]
    measures: ClassVar[Measures] = Measures(headline=ACCURACY, confidence=ENTROPY)
    scores = {"accuracy": scores.accuracy}

    @classmethod
    def check(cls, data: DataBlock) -> Iterator[Misfit]:
        return _check(cls.of, data)


class Rte(_Accuracy):
    of = "rte"


class Qnli(_Accuracy):
    of = "qnli"


class Sst2(_Accuracy):
    of = "sst2"


class Mnli(_Accuracy):
    """The mismatched table is a further split of the set (`DataSet.further`)."""

    of = "mnli"


class Mrpc(_Accuracy):
    of = "mrpc"
    measures = Measures(headline=_F1, confidence=ENTROPY, more=(ACCURACY,))
    scores = {"f1": scores.f1, "accuracy": scores.accuracy}


class Qqp(_Accuracy):
    of = "qqp"
    measures = Measures(headline=ACCURACY, confidence=ENTROPY, more=(_F1,))
    scores = {"accuracy": scores.accuracy, "f1": scores.f1}


class Cola(_Accuracy):
    of = "cola"
    measures = Measures(
        headline=Quantity("matthews", "Matthews correlation", "MCC", ""), confidence=ENTROPY, more=(ACCURACY,)
    )
    scores = {"matthews": scores.matthews, "accuracy": scores.accuracy}


class Stsb:
    """The similarity of two sentences, a score from 0 to 5, by least squares.

    Least squares is maximum likelihood for a normal distribution around the output with variance 1; where a choice is
    asked for, it is among the whole scores, each with its density.
    """

    measures: ClassVar[Measures] = Measures(
        headline=Quantity("pearson", "Pearson correlation", "Pears.", ""),
        confidence=ENTROPY,
        more=(Quantity("spearman", "Spearman correlation", "Spear.", ""),),
    )
    inputs: ClassVar[str] = "sentences"
    targets: ClassVar[str] = "score"
    losses: ClassVar[tuple[str, ...]] = ("squared",)
    names = ("loss", "entropy", "pearson", "spearman")
    _WHOLE = 6

    def __init__(self, block: TaskBlock | None = None, names: Sequence[str] = ()) -> None:
        if block and block.label_smoothing:
            raise RecipeError("task.label_smoothing: glue/stsb predicts a score, not classes; leave it out")

    @staticmethod
    def check(data: DataBlock) -> Iterator[Misfit]:
        return _check("stsb", data)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error; logits: (batch, 1), targets: (batch,) float32."""
        return (logits[:, 0].float() - targets).square().mean()

    def unsmoothed_loss(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        return None

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        answers, truth = logits[:, 0].double(), targets.double()
        return {
            "loss": (answers - truth).square().sum(),
            "entropy": self.undecided(logits).sum(dtype=torch.float64),
            "answers": answers,
            "truth": truth,
        }

    def metrics(self, sums: Mapping[str, Any], samples: int) -> dict[str, float]:
        pairs = sums["answers"], sums["truth"]
        means = {name: sums[name] / samples for name in ("loss", "entropy")}
        return means | {"pearson": scores.pearson(*pairs), "spearman": scores.spearman(*pairs)}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        whole = torch.arange(self._WHOLE, device=logits.device)
        return (-(logits[:, :1] - whole).square() / 2).log_softmax(dim=1)[:, None]

    def undecided(self, logits: Tensor) -> Tensor:
        log_probabilities = self.log_probabilities(logits.float())
        return -(log_probabilities.exp() * log_probabilities).sum(dim=2)

    def answers(self, logits: Tensor) -> Tensor:
        return self.log_probabilities(logits).argmax(dim=2)

    def truth(self, targets: Tensor, outputs: int) -> Tensor:
        return targets.round().long()[:, None]

    def decisions(self, outputs: int) -> tuple[str, ...]:
        return ("",)

    def options(self, outputs: int) -> tuple[str, ...]:
        return tuple(map(str, range(self._WHOLE)))


VARIANTS = {
    "rte": Rte,
    "qnli": Qnli,
    "mrpc": Mrpc,
    "sst2": Sst2,
    "cola": Cola,
    "stsb": Stsb,
    "mnli": Mnli,
    "qqp": Qqp,
}
