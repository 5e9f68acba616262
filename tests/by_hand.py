"""A method of sparse training on layers whose weights, gradients and answers are written down by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from acdc_cli.recipe import kinds
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.training.precision import Precision

T = TypeVar("T")


class ByHand:
    """A run whose hooks the test calls, each with what the trainer does around it.

    What it shows of a layer is flat; `layer` counts the layers from 0.
    """

    def __init__(
        self,
        method: str,
        keys: Mapping[str, Any],
        weights: Mapping[str, Any],
        *,
        epochs: int,
        steps: int = 1,
        seed: int = 0,
        training: Any = None,
        optimizer: Callable[..., Optimizer] = SGD,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> None:
        """keys: those of the recipe's block `sparsity`.

        weights: by name, as lists or tensors, which are copied.
        steps: of an epoch.
        settings: further ones of the optimiser.
        """
        self.config: Any = kinds.method_config(method)(method=method, **keys)
        self.epochs, self.steps = epochs, steps
        self.weights = {
            name: nn.Parameter(torch.as_tensor(values, dtype=torch.float32).clone()) for name, values in weights.items()
        }
        self._names, self._layers = list(self.weights), list(self.weights.values())
        self.weight = self._layers[0]
        self.masked = MaskedParameters(self.weights)
        self.method = kinds.method_class(method)(self.config, self.masked, epochs, seed)
        groups = self.method.parameter_groups(weight_decay)
        taken = {id(weight) for group in groups for weight in group["params"]}
        if others := [weight for weight in self._layers if id(weight) not in taken]:
            groups.append({"params": others, "weight_decay": weight_decay})
        self.optimizer = optimizer(groups, lr=lr, fused=True, **settings)
        self.method.attach(self.optimizer, training)
        self._precision = Precision("fp32", torch.device("cpu"))

    def at(self, step: int) -> Moment:
        return Moment(step // self.steps, step, self.epochs, self.steps)

    def start(self, epoch: int) -> None:
        self.method.on_epoch_start(self.at(epoch * self.steps))

    def set_gradients(self, *gradients: Any) -> None:
        """One for each layer, or one for all: a number for every weight, or a list or tensor of as many."""
        every = gradients if len(gradients) > 1 else gradients * len(self._layers)
        for weight, gradient in zip(self._layers, every, strict=True):
            values = torch.as_tensor(gradient, dtype=weight.dtype).flatten()
            weight.grad = values.expand(weight.numel()).reshape(weight.shape).clone()

    def step(self, step: int, *gradients: Any) -> bool:
        """Whether the method leaves the step to the optimiser, which skips it if a gradient is not finite."""
        self.set_gradients(*gradients)
        self._precision.unscale(self.optimizer)
        if taken := bool(self.method.on_gradients(self.at(step))):
            self._precision.step(self.optimizer)
        self.method.after_step(self.at(step))
        return taken

    def end(self, epoch: int, **metrics: float) -> None:
        self.method.on_epoch_end(self.at((epoch + 1) * self.steps - 1), metrics)

    def values(self, layer: int = 0) -> list[float]:
        return self._layers[layer].flatten().tolist()

    def gradient(self, layer: int = 0) -> list[float]:
        gradient = self._layers[layer].grad
        assert gradient is not None
        return gradient.flatten().tolist()

    def momentum(self, layer: int = 0) -> list[float]:
        return self.optimizer.state[self._layers[layer]]["momentum_buffer"].flatten().tolist()

    def latent(self, layer: int = 0) -> list[float]:
        """The dense weights behind those of the model."""
        return self.method.latent.weights[self._names[layer]].flatten().tolist()

    def living(self, layer: int = 0) -> list[int]:
        """Where the weights live."""
        return self.masked.masks[self._names[layer]].flatten().nonzero().flatten().tolist()

    def learning(self, layer: int = 0) -> list[int]:
        """Where they have gradients."""
        return self.masked.backward_masks[self._names[layer]].flatten().nonzero().flatten().tolist()


def of_two_layers(show: Callable[[int], T]) -> list[T]:
    """What this shows of the first layer and of the second."""
    return [show(0), show(1)]
