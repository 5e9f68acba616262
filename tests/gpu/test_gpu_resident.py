"""The resident loader on a CUDA device, or on the device that ACDC_GPU_TESTS_ON names."""

from __future__ import annotations

import gpu_device
import numpy as np
import pytest
import torch
from gpu_device import CPU, DEVICE, host_never_waits
from torch import Tensor

from acdc_cli.data import resident
from acdc_cli.data.augment import CENTRED, PADDED, WHOLE, Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile, Sample, write_beton
from acdc_cli.data.resident import ResidentLoader, cut
from acdc_cli.data.torch import TorchLoader

pytestmark = gpu_device.marks

CROPS = [(Crop(PADDED), 32), (Crop(PADDED), 24), (Crop(WHOLE), 32), (Crop(CENTRED), 32)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> BetonFile:
    """300 images of 32 x 32 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8)
    path = tmp_path_factory.mktemp("noise") / "train.beton"
    write_beton(path, (Sample(index % 10, "raw", 32, 32, image.tobytes()) for index, image in enumerate(pixels)), 300)
    return BetonFile(path)


def plan(crop: Crop, size: int, shuffle: bool = True) -> Plan:
    return Plan(32, lambda epoch: size, crop, 0.5, seed=5, shuffle=shuffle)


def drawn(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """An epoch's batches; the host waits for none."""
    with loader.epoch(epoch) as batches:
        return [(batch.inputs, batch.targets, batch.indices) for batch in batches]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("crop", "size"), CROPS)
def test_an_epoch_is_drawn_without_waiting_and_its_pixels_are_those_on_the_cpu(
    file: BetonFile, monkeypatch: pytest.MonkeyPatch, crop: Crop, size: int, shuffle: bool
) -> None:
    # several goes an epoch, so that page-locked memory is used anew while copies from it may still be under way
    monkeypatch.setattr(resident, "_DRAWN_AT_ONCE", 64)
    here = plan(crop, size, shuffle)
    there, reference = ResidentLoader(file, here, DEVICE), TorchLoader(file, here, 0, CPU)
    drawn(there, 0)
    busy = torch.randn(2048, 2048, device=DEVICE) if DEVICE.type == "cuda" else torch.zeros(1, 1)
    for epoch in (1, 2):
        with host_never_waits():
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)
            actual = drawn(there, epoch)
        expected = drawn(reference, epoch)
        assert len(actual) == len(expected) == there.steps
        for (images, labels, indices), (true_images, true_labels, true_indices) in zip(actual, expected, strict=True):
            assert images.device.type == labels.device.type == DEVICE.type
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(images.cpu(), true_images)
            assert torch.equal(labels.cpu(), true_labels)
            assert torch.equal(indices, true_indices)
            assert indices.device == CPU


def test_crops_cut_on_the_device_are_those_cut_by_hand() -> None:
    random = np.random.default_rng(1)
    padded = random.integers(0, 256, (50, 40, 36, 3), np.uint8)
    places = np.stack([random.integers(0, below, 200) for below in (50, 40 - 24 + 1, 36 - 24 + 1, 2)])
    actual = cut(torch.from_numpy(padded).to(DEVICE), torch.from_numpy(places).to(DEVICE), 24).cpu().numpy()
    for crop, (image, top, left, mirrored) in zip(actual, places.T, strict=True):
        expected = padded[image, top : top + 24, left : left + 24]
        assert np.array_equal(crop, expected[:, ::-1] if mirrored else expected)


def test_closing_frees_the_devices_memory(file: BetonFile) -> None:
    if DEVICE.type != "cuda":
        pytest.skip("the CPU's memory is not counted")
    before = torch.cuda.memory_allocated()
    loader = ResidentLoader(file, plan(Crop(PADDED), 32), DEVICE)
    assert torch.cuda.memory_allocated() >= before + 300 * 3 * 40 * 40
    loader.close()
    assert torch.cuda.memory_allocated() < before + 300 * 3 * 40 * 40
