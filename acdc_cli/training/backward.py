"""The gradients of a training step: forward and backward, part after part, with the teacher if there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from acdc_cli import memory
from acdc_cli.data.batches import Batch
from acdc_cli.training.distributed import Replica
from acdc_cli.training.parts import Parts
from acdc_cli.training.teacher import Teacher


class Backward:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._accumulate = parts.optim.accumulate
        self._replica = Replica(parts.model, parts.forward, parts.ranks, self._accumulate)
        self._teacher: Teacher | None = None

    def begin(self, epoch: int) -> None:
        """Call before the steps of an epoch, also where a run resumes within it."""
        teacher = self._parts.teacher
        self._teacher = teacher if teacher and teacher.teaches(self._parts.sparsifier.phases, epoch) else None

    def __call__(self, batch: Batch) -> Tensor:
        """Adds the gradients of the batch's mean loss to the existing ones; returns its `Running.add` losses, on the
        device."""
        if self._accumulate == 1:
            return self._add(batch.inputs, batch.targets)
        chunks = list(zip(batch.inputs.chunk(self._accumulate), batch.targets.chunk(self._accumulate), strict=True))
        losses = torch.zeros(2, device=batch.inputs.device)
        for number, (inputs, targets) in enumerate(chunks, 1):
            with self._replica.part(last=number == len(chunks)), memory.part(self._parts.model, number - 1):
                losses += self._add(inputs, targets, len(targets) / len(batch.targets))
        return losses

    def _add(self, inputs: Tensor, targets: Tensor, share: float = 1.0) -> Tensor:
        """The same for `share` times the mean loss of these samples."""
        parts = self._parts
        with parts.precision.autocast():
            logits = self._replica.forward(inputs)
            loss = parts.task.loss(logits, targets)
            unsmoothed = parts.task.unsmoothed_loss(logits, targets)
            if unsmoothed is None:
                unsmoothed = loss.detach()
            if self._teacher:
                loss = self._teacher.loss(loss, logits, inputs)
        if share != 1:
            loss = loss * share
        # which exchanges gradients
        with parts.ranks.waiting():
            parts.precision.backward(loss)
        return torch.stack([loss.detach(), share * unsmoothed])
