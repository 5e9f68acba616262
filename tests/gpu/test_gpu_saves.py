"""Checkpoints written beside training on a CUDA device, or on the device that ACDC_GPU_TESTS_ON names."""

from __future__ import annotations

from pathlib import Path

import gpu_device
import torch
from gpu_device import DEVICE, host_never_waits

from acdc_cli.training import checkpoint
from acdc_cli.training.background_saves import BackgroundSaves

pytestmark = gpu_device.marks


def test_a_saved_state_is_that_of_its_step_though_the_host_does_not_wait(tmp_path: Path) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    weights = [torch.randn(2048, 2048, device=DEVICE, generator=generator) for _ in range(4)]
    masks = [weight > 0 for weight in weights]
    with BackgroundSaves() as saves:
        # allocates the host's memory, of which later states are copied without waiting
        saves.save(tmp_path, {"weights": weights, "masks": masks, "step": 0})
        saves.wait()
        for step in (1, 2):
            expected = [weight.clone() for weight in weights]
            with host_never_waits():
                saves.save(tmp_path, {"weights": weights, "masks": masks, "step": step})
                for _ in range(10):
                    for weight in weights:
                        weight.mul_(1.5).clamp_(-1, 1)
            saves.wait()
            state = checkpoint.load_state(tmp_path)
            assert state is not None
            assert state["step"] == step
            pairs = zip(state["weights"], expected, strict=True)
            assert all(torch.equal(saved, weight.cpu()) for saved, weight in pairs)
            assert all(torch.equal(saved, mask.cpu()) for saved, mask in zip(state["masks"], masks, strict=True))
