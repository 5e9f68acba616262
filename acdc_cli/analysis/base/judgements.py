"""What models answer to each image of a split, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acdc_cli import console
from acdc_cli.analysis.base.outputs import Split
from acdc_cli.analysis.base.subject import Subject
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.errors import DataError, RunError

Columns = Mapping[str, NDArray[np.float64]]
"""Per-image counts by name, (images, decisions): `right` and `undecided`; for yes or no also `false_positive`,
`negative`, `false_negative` and `positive`."""
_TWO = 2


@dataclass(frozen=True)
class Judgements:
    """A model on all images of a split; arrays of (images, decisions) but for the indices."""

    indices: NDArray[np.int64]
    """(images,): positions in the data set."""
    answers: NDArray[np.int64]
    truth: NDArray[np.int64]
    undecided: NDArray[np.float64]
    options: int
    """Options of each decision; of two, the second is `yes`."""

    def of(self, members: NDArray[np.bool_]) -> Columns:
        """The columns of a group of images."""
        answers, truth = self.answers[members], self.truth[members]
        columns = {"right": answers == truth, "undecided": self.undecided[members]}
        if self.options == _TWO and truth.shape[1] > 1:
            said, true = answers == 1, truth == 1
            columns |= {"false_positive": said & ~true, "negative": ~true}
            columns |= {"false_negative": ~said & true, "positive": true}
        return {name: each.astype(np.float64) for name, each in columns.items()}


def judge(subject: Subject, split: Split, workspace: Workspace) -> Judgements:
    """Evaluates the model on all images, or takes what an interrupted analysis has kept.

    Raises DataError if there are no images.
    """
    key = f"judgements {subject.digest} {subject.name}"
    if (kept := workspace.kept(key)) is None:
        kept = _evaluated(subject, split)
        workspace.keep(key, kept)
    arrays = {name: tensor.numpy() for name, tensor in kept.items()}
    return Judgements(options=int(arrays.pop("options")), **arrays)


@torch.inference_mode()
def _evaluated(subject: Subject, split: Split) -> dict[str, Tensor]:
    loaded, parts, options = subject.load(), [], 0
    with subject.images(split) as images, console.progress(subject.name) as bar, images.epoch(0) as batches:
        shown = bar.add_task(subject.name, total=images.steps)
        for batch in batches:
            with loaded.precision.autocast():
                logits = loaded.forward(batch.inputs)
            task, outputs = loaded.task, logits.shape[1]
            if task.asked(batch.targets) is not None:
                raise RunError(f"{subject.name}: this analysis judges whole samples, and a text has only tokens")
            options = len(task.options(outputs))
            judged = task.answers(logits), task.truth(batch.targets, outputs), task.undecided(logits).double()
            parts.append((batch.indices.clone(), *(each.cpu().clone() for each in judged)))
            bar.advance(shown)
    if not parts:
        raise DataError(f"{subject.name}: there are no images to evaluate on; name another set with --data")
    names = ("indices", "answers", "truth", "undecided")
    columns = {name: torch.cat(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}
    return {**columns, "options": torch.tensor(options)}


def require_same_images(judged: Mapping[str, Judgements]) -> None:
    """Raises RunError unless all models were evaluated on the same images with the same labels."""
    (name, first), *others = judged.items()
    for other_name, other in others:
        same = np.array_equal(first.indices, other.indices) and np.array_equal(first.truth, other.truth)
        if not same:
            raise RunError(f"{name} and {other_name} are evaluated on different images; name one set with --data")
