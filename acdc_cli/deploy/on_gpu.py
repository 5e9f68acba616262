"""torch's ways to run a model on a GPU, timed in turn: eager, compiled, bfloat16, and 2:4 sparse matrix products."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from acdc_cli.deploy.contest import Contestant, Measurements, Record, Turn
from acdc_cli.errors import RunError
from acdc_cli.recipe.suggest import did_you_mean

Run = Callable[[Tensor], Tensor]

ENGINES = ("torch", "compiled", "bf16", "bf16-compiled", "2:4")
"""`torch` is eager float32; bfloat16 models and images are channels_last, and so are 2:4 models."""
_ROWS, _COLUMNS = 32, 64
"""The kernels take bfloat16 weights whose sides are multiples of these."""


class _MatrixProduct(nn.Module):
    """A linear layer, or a 1x1 convolution, of channels_last images: one product of a matrix of pixels."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias
        self._stride = layer.stride if isinstance(layer, nn.Conv2d) else None

    def forward(self, inputs: Tensor) -> Tensor:
        if self._stride is None:
            return functional.linear(inputs, self.weight, self.bias)
        down, across = self._stride
        pixels = inputs[:, :, ::down, ::across].permute(0, 2, 3, 1)
        rows = functional.linear(pixels.reshape(-1, pixels.shape[-1]), self.weight, self.bias)
        return rows.view(*pixels.shape[:-1], -1).permute(0, 3, 1, 2)


def is_two_of_four(weight: Tensor) -> bool:
    """Do the kernels take this weight (rows, columns, ...): its sides, and at most 2 nonzeros in each 4 of a row?"""
    matrix = weight.flatten(1)
    if matrix.shape[0] % _ROWS or matrix.shape[1] % _COLUMNS:
        return False
    return bool((matrix.view(len(matrix), -1, 4).count_nonzero(-1) <= 2).all())


def with_sparse_products(model: nn.Module, compress: Callable[[Tensor], Tensor]) -> tuple[nn.Module, int]:
    """A copy whose linear layers and 1x1 convolutions with 2:4 weights are products by `compress(weight)`, and their
    number; other layers stay, because torch has no sparse kernel for them."""
    model, count = copy.deepcopy(model), 0
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if _is_product(layer) and is_two_of_four(layer.weight):
                setattr(parent, name, _MatrixProduct(layer, compress(layer.weight.detach().flatten(1).contiguous())))
                count += 1
    return model, count


def _is_product(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return type(layer) is nn.Linear


def runners(model: nn.Module, names: Sequence[str], device: torch.device) -> dict[str, Run]:
    """By engine; without `2:4` where no layer can use it.

    Raises RunError for an engine that does not exist.
    """
    made: dict[str, Run] = {}
    for name in names:
        if name not in ENGINES:
            raise RunError(
                f"there is no engine {name} on a GPU, only {', '.join(ENGINES)}{did_you_mean(name, ENGINES)}"
            )
        # in place it would change the caller's
        own = copy.deepcopy(model).to(device)
        if name == "torch" or name == "compiled":
            dtype, layout = torch.float32, torch.contiguous_format
        else:
            dtype, layout = torch.bfloat16, torch.channels_last
        own = own.to(dtype).to(memory_format=layout)
        if name == "2:4":
            own, count = with_sparse_products(own, _compress if device.type == "cuda" else lambda weight: weight)
            if not count:
                continue
        run = torch.compile(own) if name.endswith("compiled") else own
        made[name] = _run(run, device, dtype, layout)
    return made


def _compress(weight: Tensor) -> Tensor:
    compressed: Tensor = torch.sparse.to_sparse_semi_structured(weight)
    return compressed


def _run(
    model: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Run:
    def run(images: Tensor) -> Tensor:
        return model(images.to(device=device, dtype=dtype, memory_format=layout))

    return run


@torch.no_grad()
def run(
    variants: Mapping[str, nn.Module],
    names: Sequence[str],
    images: Tensor,
    batches: Sequence[int],
    rounds: Iterable[int],
    turn_seconds: float,
    device: torch.device,
) -> Measurements:
    """As `contest.run`, in this process, with the images already on the device.

    Peak memory is what torch allocated on the device.
    """
    made = {
        Contestant(variant, name, None): runner
        for variant, model in variants.items()
        for name, runner in runners(model, names, device).items()
    }
    on_device = images.to(device)
    logits = {each: torch.cat([runner(part) for part in torch.split(on_device, 1)]) for each, runner in made.items()}
    records = {
        (each, batch): Record(_warm_up(runner, on_device[:batch], device))
        for each, runner in made.items()
        for batch in sorted(batches)
    }
    for _ in rounds:
        for batch in batches:
            for each, runner in made.items():
                records[each, batch].turns.append(_turn(runner, on_device[:batch], turn_seconds, device))
    return Measurements({each: answer.float().cpu().numpy() for each, answer in logits.items()}, records)


def _warm_up(runner: Run, images: Tensor, device: torch.device) -> int:
    if device.type != "cuda":
        runner(images)
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        runner(images)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _turn(runner: Run, images: Tensor, seconds: float, device: torch.device) -> Turn:
    """Each pass is waited for, as one that serves requests does."""
    walls: list[float] = []
    cpu = time.process_time()
    while sum(walls) < seconds:
        began = time.perf_counter()
        runner(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.perf_counter() - began)
    return Turn(tuple(walls), (time.process_time() - cpu) / len(walls))
