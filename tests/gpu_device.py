"""The device of the tests marked `gpu`.

`ACDC_GPU_TESTS_ON=cpu` forces them onto the CPU, where they show that the tests themselves and all but CUDA are right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

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
