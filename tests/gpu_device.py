"""The device of the tests marked `gpu`.

`ACDC_GPU_TESTS_ON=cpu` forces them onto the CPU, where they show that the tests themselves and all but CUDA are right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from in_memory import InMemory
from torch import Tensor

from acdc_cli.data.batches import Batch

NAME = os.environ.get("ACDC_GPU_TESTS_ON", "cuda")
DEVICE = torch.device(NAME)
CPU = torch.device("cpu")
marks = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@contextmanager
def host_never_waits() -> Iterator[None]:
    """Within, whatever makes the host wait for the device raises RuntimeError; on the CPU nothing does."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def host_may_wait() -> Iterator[None]:
    """An exception to `host_never_waits`, for what waits by design."""
    if DEVICE.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Resident(InMemory):
    """Random images of ten classes, as large as digits, on the device."""

    def __init__(self, samples: int, batch_size: int, device: torch.device = DEVICE, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (samples, 28, 28, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (samples,), generator=generator)
        super().__init__(images.to(device).permute(0, 3, 1, 2), labels.to(device), batch_size)

    def batch(self, part: Tensor) -> Batch:
        # by a slice: indices would have to be copied to the device
        here = slice(int(part[0]), int(part[-1]) + 1)
        return Batch(self.images[here], self.labels[here], part)
