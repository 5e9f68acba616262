"""A linear layer on fixed features: by SGD, as transfer learning's protocol has it, and by L-BFGS as a check.

Both minimise the mean loss + decay / 2 (|W|² + |b|²), which is convex: they differ where SGD has not converged. The
loss is the cross entropy of classes, which are integers, and the squared error of scores, which are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from acdc_cli import console
from acdc_cli.data.order import epoch_order
from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.optim import Optim
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.transfer.aie import Answers
from acdc_cli.transfer.features import Features

_CHUNK = 4096
"""Samples that are in memory at once, apart from SGD's batch."""


def train(
    features: Features,
    classes: int,
    optim: Optim,
    learning_rate: Callable[[float], float],
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> nn.Linear:
    """The layer after this many epochs in whole batches. learning_rate: of the epochs elapsed.

    Raises RunError if it diverges.
    """
    samples, width = features.values.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(width, classes).to(device)
    optimizer = build_optimizer(head, optim)
    steps = samples // batch_size
    with console.progress(f"linear classifier, seed {seed}") as bar:
        for epoch in bar.track(range(epochs)):
            order = epoch_order(samples, seed, epoch)
            for step in range(steps):
                # sorted, because a mapped file is read fastest from front to back
                chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(epoch + step / steps)
                optimizer.zero_grad()
                inputs, labels = _selected(device, features, chosen)
                _loss(head(inputs), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    if not all(parameter.isfinite().all() for parameter in head.parameters()):
        raise RunError("the training of the linear layer diverged; lower its learning rate, --set optim.lr=0.001")
    return head


def best(features: Features, classes: int, decay: float, device: torch.device, rounds: int = 500) -> nn.Linear:
    """The minimum itself, by L-BFGS in double precision. rounds: the most that it takes."""
    # here, because it takes half a second
    from scipy.optimize import minimize

    samples, width = features.values.shape
    head = nn.Linear(width, classes, dtype=torch.float64, device=device)

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = _set(head, point)
        head.zero_grad()
        total = decay / 2 * (weight.square().sum() + bias.square().sum())
        total.backward()  # type: ignore[no-untyped-call]
        value = total.item()
        for inputs, labels in _chunks(features, device):
            part = _loss(head(inputs.double()), labels, "sum") / samples
            part.backward()
            value += part.item()
        gradients = [parameter.grad for parameter in (weight, bias) if parameter.grad is not None]
        return value, torch.cat([gradient.flatten() for gradient in gradients]).cpu().numpy()

    start = np.zeros(classes * (width + 1))
    optimum = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": rounds, "maxfun": 2 * rounds})
    if not optimum.success:
        console.warn(f"the regression had not converged after {optimum.nit} rounds: {optimum.message}")
    _set(head, optimum.x)
    return head.float()


def predictions(head: nn.Linear, features: Features, device: torch.device) -> Answers:
    """The class, or the score, of each sample."""
    with torch.inference_mode():
        parts = [answers(head(inputs), labels) for inputs, labels in _chunks(features, device)]
        return np.asarray(torch.cat(parts).cpu().numpy())


def answers(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,): classes, or scores if the labels are some."""
    return logits[:, 0].float() if labels.is_floating_point() else logits.argmax(dim=1)


def _loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    if labels.is_floating_point():
        return F.mse_loss(logits[:, 0], labels.to(logits), reduction=reduction)
    return F.cross_entropy(logits, labels, reduction=reduction)


def _set(head: nn.Linear, point: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    weight, bias = head.weight, head.bias
    values = torch.from_numpy(point)
    with torch.no_grad():
        weight.copy_(values[: weight.numel()].view_as(weight))
        bias.copy_(values[weight.numel() :])
    return weight, bias


def _chunks(features: Features, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    samples = len(features.labels)
    for start in range(0, samples, _CHUNK):
        yield _selected(device, features, np.arange(start, min(start + _CHUNK, samples)))


def _selected(device: torch.device, features: Features, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    # indices, not a slice: torch takes no read-only memory
    inputs, labels = torch.from_numpy(features.values[chosen]), torch.from_numpy(features.labels[chosen])
    return inputs.to(device), labels.to(device)
