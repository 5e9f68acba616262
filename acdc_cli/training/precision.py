"""Mixed precision, and the rule that a step with non-finite gradients changes nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from acdc_cli.errors import RunError

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Precision:
    """Autocast plus a gradient scaler.

    The scaler serves every precision, with its scale fixed at 1 but for fp16: it looks for infinities in one fused
    operation and hands the answer to the fused optimiser on the device, so that a bad step is skipped without the
    host ever waiting.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = _choose(name, device)
        self._device = device
        self._scales = self.name == "fp16"
        self._scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self._scales else 1.0)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, _DTYPES[self.name], enabled=self.name != "fp32")

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(self._scaler.scale(loss))

    def unscale(self, optimizer: Optimizer) -> None:
        """Gradients become those of the unscaled loss, and are looked through for infinities."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """The optimiser's step, unless a gradient is not finite: then nothing changes but fp16's scale."""
        self._scaler.step(optimizer)
        self.end_step()

    def end_step(self) -> None:
        """Ready for the next backward pass; for itself, it ends an iteration that the optimiser skips."""
        self._scaler.update(None if self._scales else 1.0)

    def state_dict(self) -> dict[str, float]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._scaler.load_state_dict(state)


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("device: cuda was asked for, but torch finds no CUDA device; use `--set device=cpu`")
    return torch.device(name)


def _choose(name: PrecisionName, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return name
