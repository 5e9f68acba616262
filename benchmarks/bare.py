"""The loop that a person writes by hand when nothing but images a second counts: the trainer's competitor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acdc_cli.data.batches import Loader
from acdc_cli.models import build as models
from acdc_cli.recipe.blocks.optim import SGDBlock
from acdc_cli.recipe.schema import Recipe


class BareLoop:
    """The recipe's model, batch, precision and SGD, without a scheduler, masks, checks, or a progress bar."""

    def __init__(
        self, recipe: Recipe, loader: Loader, device: torch.device, classes: int, model: nn.Module | None = None
    ) -> None:
        """model: another one than the recipe's."""
        assert isinstance(recipe.optim, SGDBlock)
        torch.manual_seed(recipe.seed)
        model = models.build(recipe.model, classes) if model is None else model
        self._model = model.to(device).to(memory_format=torch.channels_last)
        self._model.train()
        matrices = [weight for weight in self._model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in self._model.parameters() if weight.ndim == 1]
        self._optimizer = torch.optim.SGD(
            [{"params": matrices, "weight_decay": recipe.optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=recipe.optim.lr,
            momentum=recipe.optim.momentum,
            nesterov=recipe.optim.nesterov,
            fused=True,
        )
        self._loss = nn.CrossEntropyLoss(label_smoothing=recipe.task.label_smoothing)
        self._mean = 255 * torch.tensor(recipe.data.mean, device=device).view(1, 3, 1, 1)
        self._scale = 1 / (255 * torch.tensor(recipe.data.std, device=device).view(1, 3, 1, 1))
        cuda = device.type == "cuda"
        self._forward = torch.compile(self._normalised) if cuda else self._normalised
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=cuda)
        self._loader = loader
        self._recipe = recipe
        self._device = device

    def train_epoch(self, epoch: int) -> float:
        """Mean loss in nats: fetched once, like the trainer's."""
        steps = self._loader.steps
        total = torch.zeros((), device=self._device)
        with self._loader.epoch(epoch) as batches:
            for index, batch in enumerate(batches):
                progress = (epoch + index / steps) / self._recipe.epochs
                for group in self._optimizer.param_groups:
                    group["lr"] = self._recipe.optim.lr * (1 - progress)
                with self._autocast:
                    loss = self._loss(self._forward(batch.inputs), batch.targets)
                loss.backward()
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
                total += loss.detach()
        return total.item() / steps

    def _normalised(self, images: Tensor) -> Tensor:
        logits: Tensor = self._model((images - self._mean) * self._scale)
        return logits
