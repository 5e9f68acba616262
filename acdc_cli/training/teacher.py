"""Distillation: a second model whose predictions join the training loss (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc_cli.errors import CheckpointError
from acdc_cli.recipe.blocks.task import DistillationBlock
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.tasks.base.abstract_task import Task
from acdc_cli.training.distributed import Ranks
from acdc_cli.training.evaluate import Forward


class Teacher:
    """A model that stays as it is, in eval mode."""

    def __init__(self, model: nn.Module, forward: Forward, task: Task, block: DistillationBlock, digest: str) -> None:
        """forward: the model's, from the images of a batch.  digest: of the model's file."""
        self.model = model.eval().requires_grad_(False)
        self._forward = forward
        self._task = task
        self._block = block
        self.digest = digest

    def teaches(self, phases: PhasePlan, epoch: int) -> bool:
        return True

    def on_epoch_start(self, phases: PhasePlan, epoch: int, model: nn.Module, ranks: Ranks) -> None:
        """Called before the first batch of an epoch and before the method's own work; all ranks call it."""

    def loss(self, label_loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 - w) L + w ((1 - h) T² KL(p ‖ q) + h H), a scalar: L `label_loss`, p and q the teacher's and the model's
        probabilities at temperature T, H the model's cross entropy with the teacher's answers at temperature 1. KL and
        H are means over the images and their decisions.

        logits: (batch, outputs), the model's.  images: those of the batch, as the loader gives them.
        """
        block, task = self._block, self._task
        with torch.no_grad():
            taught = self._forward(images).float()
        logits = logits.float()
        guided = torch.zeros((), device=logits.device)
        if block.hard < 1:
            ours, theirs = (task.log_probabilities(each / block.temperature) for each in (logits, taught))
            divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1).mean()
            guided = guided + (1 - block.hard) * block.temperature**2 * divergence
        if block.hard > 0:
            answers = task.answers(taught)[..., None]
            guided = guided - block.hard * task.log_probabilities(logits).gather(-1, answers).mean()
        return (1 - block.weight) * label_loss + block.weight * guided

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any] | None, phases: PhasePlan, epoch: int, step: int) -> None:
        """state: None from a run that had no teacher.  epoch, step: where the run resumes.

        Raises CheckpointError if the run began with another teacher.
        """
        if state is not None and state["digest"] != self.digest:
            raise CheckpointError(
                "task.teacher: its file is not the one with which the run began; restore that file, or start a new run "
                "with --out"
            )


class LastDense(Teacher):
    """The model itself at the end of its last dense phase; it teaches the phases after that."""

    def __init__(self, model: nn.Module, forward: Forward, task: Task, block: DistillationBlock) -> None:
        """model: another one of the same architecture, on the same device."""
        super().__init__(model, forward, task, block, digest="")
        self._begun = False

    def teaches(self, phases: PhasePlan, epoch: int) -> bool:
        return phases.after_dense(epoch)

    def on_epoch_start(self, phases: PhasePlan, epoch: int, model: nn.Module, ranks: Ranks) -> None:
        if self.teaches(phases, epoch) and phases.at(epoch - 1).kind == "dense":
            self.model.load_state_dict(model.state_dict())
            # each rank has its own running statistics until they are broadcast
            ranks.broadcast_(self.model.buffers())
            self._begun = True

    def state_dict(self) -> dict[str, Any]:
        return {"digest": "", "model": self.model.state_dict() if self._begun else {}}

    def load_state_dict(self, state: Mapping[str, Any] | None, phases: PhasePlan, epoch: int, step: int) -> None:
        super().load_state_dict(state, phases, epoch, step)
        weights = state["model"] if state else {}
        if weights:
            self.model.load_state_dict(weights)
            self._begun = True
            return
        ended = epoch < phases.epochs and self.teaches(phases, epoch)
        if ended and (step or phases.at(epoch - 1).kind != "dense"):
            raise CheckpointError(
                f"task.teacher: the state after {epoch} epochs is within a sparse phase and has no dense model; fork "
                "from a state at the end of a dense phase"
            )
