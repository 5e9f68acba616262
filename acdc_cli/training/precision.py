"""Mixed precision, and the rule that a step with non-finite gradients changes nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from acdc_cli.errors import RunError

PrecisionName = Literal["auto", "bf16", "fp16", "tf32", "fp32"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast, TF32 settings, fp16's gradient scaler, and a check of the gradients without waiting for the device.

    One fused operation searches for infinities and NaNs and leaves the result on the device, where the fused optimiser
    reads it and skips a bad step.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = _choose(name, device)
        self._device = device
        _round_float32(to_tf32=self.name == "tf32")
        self._scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16) if self.name == "fp16" else None

    @cached_property
    def _found_inf(self) -> Tensor:
        """1 if a gradient of this step is not finite; created at the first step."""
        return torch.zeros((), device=self._device)

    @cached_property
    def _one(self) -> Tensor:
        return torch.ones((), device=self._device)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, _AUTOCAST.get(self.name), enabled=self.name in _AUTOCAST)

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def unscale(self, optimizer: Optimizer) -> None:
        """Unscales the gradients and searches them for infinities and NaNs."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
            return
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self._found_inf.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found_inf, self._one)

    def step(self, optimizer: Optimizer) -> None:
        """Takes the optimiser's step unless a gradient is not finite: then only fp16's scale changes."""
        if self._scaler is not None:
            self._scaler.step(optimizer)
        else:
            # what the scaler passes to a fused optimiser
            optimizer.grad_scale, optimizer.found_inf = None, self._found_inf  # type: ignore[attr-defined]
            optimizer.step()
        self.end_step()

    def end_step(self) -> None:
        """Prepares for the next backward pass; also called if the optimiser takes no step."""
        if self._scaler is not None:
            self._scaler.update()

    def state_dict(self) -> dict[str, float]:
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("device: cuda is requested, but torch finds no CUDA device; use `--set device=cpu`")
    return torch.device(name)


def _round_float32(to_tf32: bool) -> None:
    """Sets whether convolutions and matrix products on CUDA round float32 to TF32, for this process from now on.

    torch's own default is TF32 in convolutions and IEEE float32 in matrix products.
    """
    # not through the newer `fp32_precision`: after it torch's own compiler fails where it still reads these flags
    torch.backends.cuda.matmul.allow_tf32 = to_tf32
    torch.backends.cudnn.allow_tf32 = to_tf32


def _choose(name: PrecisionName, device: torch.device) -> Literal["bf16", "fp16", "tf32", "fp32"]:
    if name == "tf32" and device.type != "cuda":
        raise RunError(
            f"precision: tf32 exists only on CUDA, and the device is {device.type}; use --set precision=fp32"
        )
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return name
