"""Outputs of models on images, and loaders that show two models the same images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from acdc_cli.analysis.base.subject import Loaded, Subject
from acdc_cli.analysis.base.workspace import UNSAVED, Batches, Workspace
from acdc_cli.data.batches import Batch, Loader
from acdc_cli.errors import DataError, RunError
from acdc_cli.tasks.base.abstract_task import Task
from acdc_cli.training.precision import choose_device

Split = Literal["train", "val"]
Pair = tuple[Batch, Batch]
"""The same images, prepared for each of two models."""
Difference = tuple[int, int, int, int]
"""A's option, B's option, the decision, and the number of images with this pair of answers to it."""

_MISMATCHED = "labels that differ"
_COUNTS = ("both_right", "only_a_right", "only_b_right", "both_wrong", "agreed")
_MEANS = ("cross_entropy_ab", "cross_entropy_ba", "kl_ab", "kl_ba")


class Pairs:
    """`workspace.Batches` of the same images, from one loader or from two with different preparation.

    Raises DataError if the two loaders do not draw the same images in the same order. The caller compares labels, which
    are on the device.
    """

    def __init__(self, first: Loader, second: Loader | None = None) -> None:
        """second: None if both models use the same preparation."""
        if second is not None and first.samples != second.samples:
            raise DataError(
                f"one model would be evaluated on {first.samples} images, the other on {second.samples}: give both the "
                "same set, with --data or --set data.val_images=COUNT"
            )
        self._first, self._second = first, second

    @property
    def steps(self) -> int:
        return self._first.steps

    @property
    def samples(self) -> int:
        return self._first.samples

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Pair]]:
        with ExitStack() as stack:
            firsts = stack.enter_context(self._first.epoch(epoch, start_step))
            if self._second is None:
                yield ((batch, batch) for batch in firsts)
            else:
                yield _alike(firsts, stack.enter_context(self._second.epoch(epoch, start_step)))


@contextmanager
def same_images(first: Subject, second: Subject, split: Split = "val") -> Iterator[Pairs]:
    """A split's images, prepared as for validation for each of two models, in the smaller batch size.

    Raises DataError if the two models are not evaluated on the same classes and the same number of images.
    """
    data = first.data, second.data
    if data[0].class_names != data[1].class_names:
        judged = (f"{subject.name} is evaluated on {_listed(subject.data.class_names)}" for subject in (first, second))
        raise DataError(f"{', '.join(judged)}; name one set for both with --data")
    size = {"val_batch_size": min(each.block.val_batch_size or each.block.batch_size for each in data)}
    first_view, second_view = (
        (replace(each, block=each.block.model_copy(update=size)), choose_device(subject.recipe.device))
        for each, subject in zip(data, (first, second), strict=True)
    )
    with ExitStack() as stack:
        opened = []
        for each, device in [first_view] if first_view == second_view else [first_view, second_view]:
            opened.append(stack.enter_context(closing(each.val_loader(device, split))))
            opened[-1].warm_up()
        yield Pairs(*opened)


@dataclass(frozen=True)
class Agreement:
    """Models A and B compared over the same images, which ask for one decision (a class) or for several (labels)."""

    samples: int
    """Images."""
    agreement: float
    """Fraction of the decisions in which both give the same answer, right or wrong."""
    cross_entropy_ab: float
    """H(A, B) = -Σ pA ln pB, in nats, mean over the decisions."""
    cross_entropy_ba: float
    kl_ab: float
    """KL(A‖B) = Σ pA (ln pA - ln pB), in nats, mean over the decisions."""
    kl_ba: float
    accuracy_a: float
    """Fraction of right decisions; top-1 where an image has one class."""
    accuracy_b: float
    both_right: int
    """Decisions; likewise the following."""
    only_a_right: int
    only_b_right: int
    both_wrong: int
    mcnemar_p: float
    """The p-value of `mcnemar`; NaN where images ask for several decisions, which are not independent."""


_MOST_OPTIONS = 2000
"""With more options, differences are not counted for each pair of answers: the counts would fill the memory."""


def compare(
    first: Loaded,
    second: Loaded,
    images: Batches[Pair],
    workspace: Workspace = UNSAVED,
    key: str = "agreement",
    description: str = "agreement",
) -> tuple[Agreement, list[Difference]]:
    """Compares model B, the second, with model A over all images; the most frequent differences come first.

    Raises RunError if the models have different numbers of classes, and DataError if the two images of a pair have
    different labels or there are no images.
    """

    if first.task.measures != second.task.measures:
        raise RunError(f"{description}: the models were trained for different tasks; compare models of the same")

    def add(pair: Pair) -> dict[str, Tensor]:
        a, b = (_logits(model, batch.inputs) for model, batch in zip((first, second), pair, strict=True))
        if a.shape != b.shape:
            raise RunError(
                f"{description}: one model has {a.shape[-1]} classes, the other {b.shape[-1]}; compare models "
                "of the same classes"
            )
        labels = pair[0].targets
        return {
            **sums(a, b.to(a.device), labels, first.task),
            _MISMATCHED: (labels != pair[1].targets.to(a.device)).sum(),
        }

    totals = workspace.sums(key, images, add, description)
    if not totals:
        raise DataError(f"{description}: there are no images to evaluate on; name another set with --data")
    if mismatched := int(totals[_MISMATCHED]):
        raise DataError(
            f"{description}: {mismatched} images have one label for the first model and another for the second, so "
            "they are different images; name one set for both with --data"
        )
    return of_sums(totals)


def sums(a: Tensor, b: Tensor, labels: Tensor, task: Task) -> dict[str, Tensor]:
    """The sums over a batch that `of_sums` needs, on the logits' device.

    a, b: (batch, outputs), the logits of the two models.  labels: (batch,) int64.
    """
    asked = task.asked(labels)
    counted = slice(None) if asked is None else asked
    log_a, log_b = (task.log_probabilities(logits.float().double())[counted] for logits in (a, b))
    top_a, top_b, truth = (
        each[counted] for each in (task.answers(a), task.answers(b), task.truth(labels, a.shape[-1]))
    )
    right_a, right_b = top_a == truth, top_b == truth
    differ = top_a != top_b
    (_, decisions, options), of = log_a.shape, torch.arange(log_a.shape[1], device=a.device)
    listed = options if options <= _MOST_OPTIONS else 0
    cells = torch.zeros(decisions * listed**2, dtype=torch.int64, device=a.device)
    places = (of * options + top_a) * options + top_b if listed else top_a[:0]
    return {
        "images": torch.tensor(len(labels), device=a.device),
        # the probabilities may be zeros, but their logarithms stay finite
        "cross_entropy_ab": -(log_a.exp() * log_b).sum(),
        "cross_entropy_ba": -(log_b.exp() * log_a).sum(),
        "kl_ab": (log_a.exp() * (log_a - log_b)).sum(),
        "kl_ba": (log_b.exp() * (log_b - log_a)).sum(),
        "agreed": (~differ).sum(),
        "both_right": (right_a & right_b).sum(),
        "only_a_right": (right_a & ~right_b).sum(),
        "only_b_right": (~right_a & right_b).sum(),
        "both_wrong": (~right_a & ~right_b).sum(),
        "confusion": cells.index_add_(0, places.flatten(), differ[: len(places)].long().flatten()).view(
            decisions, listed, listed
        ),
    }


def of_sums(totals: Mapping[str, Tensor]) -> tuple[Agreement, list[Difference]]:
    """totals: the results of `sums`, added over all batches."""
    both_right, only_a_right, only_b_right, both_wrong, agreed = (int(totals[key]) for key in _COUNTS)
    decisions = both_right + only_a_right + only_b_right + both_wrong
    agreement = Agreement(
        samples=int(totals["images"]),
        agreement=agreed / decisions,
        **{key: float(totals[key]) / decisions for key in _MEANS},
        accuracy_a=(both_right + only_a_right) / decisions,
        accuracy_b=(both_right + only_b_right) / decisions,
        both_right=both_right,
        only_a_right=only_a_right,
        only_b_right=only_b_right,
        both_wrong=both_wrong,
        mcnemar_p=mcnemar(only_a_right, only_b_right) if decisions == totals["images"] else math.nan,
    )
    confusion = totals["confusion"].cpu()
    cells = confusion.nonzero()
    of, by_a, by_b = cells.T.tolist()
    differences = zip(by_a, by_b, of, confusion[tuple(cells.T)].tolist(), strict=True)
    return agreement, sorted(differences, key=lambda difference: -difference[3])


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact test, two-sided: the probability of a split at least this uneven of the images that only one
    model gets right, if either model were equally likely to be the right one; between 0 and 1."""
    images = only_a + only_b
    ways, tail = 1, 0
    for fewer in range(min(only_a, only_b) + 1):
        tail += ways
        ways = ways * (images - fewer) // (fewer + 1)
    return min(1.0, 2 * tail / (1 << images))


def _alike(firsts: Iterator[Batch], seconds: Iterator[Batch]) -> Iterator[Pair]:
    for first, second in zip(firsts, seconds, strict=True):
        # both are on the CPU, so comparing them does not wait for the device
        if not torch.equal(first.indices, second.indices):
            raise DataError("the two sets have their images in different orders; name one set for both with --data")
        yield first, second


def _listed(names: Sequence[str], shown: int = 5) -> str:
    return f"{len(names)} classes ({', '.join(names[:shown])}{', …' if len(names) > shown else ''})"


def _logits(model: Loaded, images: Tensor) -> Tensor:
    with model.precision.autocast():
        return model.forward(images)
