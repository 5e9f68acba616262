"""Every analysis that shows images to a model finds on a GPU what it finds on the CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SMALL: dict[str, tuple[str, ...]] = {
    "agreement": (),
    "calibration": (),
    "channels": (),
    "corruptions": ("corruptions=[fog,pixelate]",),
    "interpolate": ("images=100", "bn_images=50", "points=1"),
    "sharpness": ("images=60", "batch_size=30", "trace_samples=2", "tolerance=1e-9"),
}


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of nested blocks by its place."""
    if isinstance(value, dict):
        return {key: number for name, each in value.items() for key, number in numbers(each, f"{path}/{name}").items()}
    if isinstance(value, list):
        pairs = enumerate(value)
        return {key: number for name, each in pairs for key, number in numbers(each, f"{path}/{name}").items()}
    return {path: float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else {}


@pytest.mark.parametrize("name", SMALL)
def test_devices_find_the_same(acdc: Acdc, trained: Path, tmp_path: Path, name: str) -> None:
    by_device = []
    for device in ("cpu", "cuda"):
        settings = (f"device={device}", "precision=fp32", *SMALL[name])
        sets = [word for setting in settings for word in ("--set", setting)]
        result = acdc("analyze", name, trained, *sets, "--out", tmp_path / device, "--json")
        assert result.exit_code == 0, result.output
        by_device.append(numbers(json.loads(result.stdout)["results"]))
    cpu, gpu = by_device
    assert cpu.keys() == gpu.keys()
    assert len(cpu) > 3
    differing = {
        key: (cpu[key], gpu[key]) for key in cpu if not math.isclose(cpu[key], gpu[key], rel_tol=2e-2, abs_tol=2e-3)
    }
    # counts of images whose two largest logits all but coincide may go either way
    assert len(differing) <= len(cpu) // 50, differing
