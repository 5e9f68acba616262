from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from acdc_cli.data.augment import CENTRED, PADDED, RANDOM_RESIZED, Crop
from acdc_cli.data.batches import Plan
from acdc_cli.data.beton import BetonFile, Sample, write_beton
from acdc_cli.data.image_folder import folder_source
from acdc_cli.data.torch import FolderImages, Images, TorchLoader
from acdc_cli.errors import DataError

CPU = torch.device("cpu")
SHUFFLED = Plan(4, lambda epoch: 64, Crop(RANDOM_RESIZED), 0.5, seed=1, shuffle=True)
VALIDATION = Plan(7, lambda epoch: 56, Crop(CENTRED, share=56 / 64))


@pytest.fixture
def load() -> Iterator[Any]:
    """load(images, plan, workers)"""
    made: list[TorchLoader] = []

    def make(images: Images, plan: Plan, workers: int = 0) -> TorchLoader:
        made.append(TorchLoader(images, plan, workers, CPU))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """val/ with an image of every kind that is found in the wild."""
    random = np.random.default_rng(0)
    for number, (name, mode) in enumerate(
        [
            ("cat/b.jpg", "RGB"),
            ("cat/a.JPEG", "L"),
            ("cat/deep/c.jpg", "RGB"),
            ("dog/x.png", "RGBA"),
            ("dog/y.png", "P"),
            ("ant/z.jpg", "CMYK"),
        ]
    ):
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (70 + number, 90, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
    (tmp_path / "val" / "dog" / "notes.txt").write_text("no image")
    return tmp_path


def _drain(loader: TorchLoader, epoch: int = 0) -> list[int]:
    with loader.epoch(epoch) as batches:
        return [index for batch in batches for index in batch.indices.tolist()]


def test_a_folder_is_read_in_the_order_and_with_the_labels_of_torchvisions_image_folder(
    load: Any, folder: Path
) -> None:
    reference = ImageFolder(str(folder / "val"), v2.Compose([v2.Resize(64), v2.CenterCrop(56), v2.PILToTensor()]))
    with load(FolderImages(folder_source("pets", "val", folder)), VALIDATION).epoch(0) as batches:
        batch = next(batches)
    assert batch.targets.tolist() == [label for _, label in reference.samples]
    for image, (expected, _) in zip(batch.inputs, reference, strict=True):
        # Pillow and torch round the filtered pixels differently, by a level
        assert (image.int() - expected.int()).abs().max() <= 1


def test_validation_images_are_those_of_torchvisions_resize_and_centre_crop(load: Any, photographs: Path) -> None:
    images = BetonFile(photographs)
    transform = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])
    with load(images, VALIDATION).epoch(0) as batches:
        for batch in batches:
            for image, index in zip(batch.inputs, batch.indices.tolist(), strict=True):
                assert torch.equal(image, transform(torch.from_numpy(images.decode(index)).permute(2, 0, 1)))


def test_an_unreadable_image_of_a_folder_is_an_error_that_names_it(load: Any, folder: Path) -> None:
    bad = folder / "val" / "dog" / "x.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DataError, match=r"dog/x\.png: the image cannot be read"):
        _drain(load(FolderImages(folder_source("pets", "val", folder)), VALIDATION))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_jpeg_that_does_not_decode_is_an_error_that_names_it(load: Any, tmp_path: Path, workers: int) -> None:
    Image.new("RGB", (80, 80), (200, 10, 30)).save(tmp_path / "red.jpg")
    data = (tmp_path / "red.jpg").read_bytes()
    broken = data[: len(data) // 2]
    path = tmp_path / "train.beton"
    write_beton(path, (Sample(0, "jpg", 80, 80, broken if index == 9 else data) for index in range(12)), 12)
    loader = load(BetonFile(path), SHUFFLED, workers)
    for epoch in range(2):
        with pytest.raises(DataError, match=r"^\S*train\.beton: image 9 does not decode"):
            _drain(loader, epoch)


def test_workers_live_on_over_epochs_and_early_leaves_and_end_with_the_loader(load: Any, photographs: Path) -> None:
    others = {child.pid for child in multiprocessing.active_children()}
    loader = load(BetonFile(photographs), SHUFFLED, 2)
    loader.warm_up()
    workers = {child.pid for child in multiprocessing.active_children()} - others
    assert len(workers) == 2
    whole = _drain(loader)
    for _ in range(15):
        with loader.epoch(1) as batches:
            next(batches)
    assert _drain(loader) == whole
    assert {child.pid for child in multiprocessing.active_children()} - others == workers
    loader.close()
    assert not workers & {child.pid for child in multiprocessing.active_children()}


def test_a_worker_that_is_killed_is_an_error_and_no_hang(load: Any, photographs: Path) -> None:
    others = {child.pid for child in multiprocessing.active_children()}
    loader = load(BetonFile(photographs), SHUFFLED, 1)
    with loader.epoch(0) as batches:
        next(batches)
        (worker,) = {child.pid for child in multiprocessing.active_children()} - others
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(DataError, match=r"Memory probably ran out: lower data\.workers"):
            list(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_global_generator_is_neither_used_nor_moved(load: Any, photographs: Path, workers: int) -> None:
    before = torch.get_rng_state()
    _drain(load(BetonFile(photographs), SHUFFLED, workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_padded_crops_larger_than_the_padded_image_are_an_error(load: Any, noise: Path) -> None:
    plan = Plan(4, lambda epoch: 41, Crop(PADDED, padding=4), seed=0, shuffle=True)
    with pytest.raises(DataError, match=r"shorter side is 32 pixels.*no crop of 41 fits"):
        _drain(load(BetonFile(noise), plan))


def test_the_thread_that_copies_takes_its_loaders_device(
    load: Any, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be the first device, whichever this process trains on."""
    taken: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: taken.append((threading.current_thread().name, device))
    )
    loader = load(BetonFile(noise), SHUFFLED)
    _drain(loader)
    assert taken == []
    # as on a GPU, but for the copies
    monkeypatch.setattr(loader._transfer, "pinned", True)
    monkeypatch.setattr(loader._transfer, "device", torch.device("cuda", 3))
    _drain(loader)
    assert taken == [("send_0", torch.device("cuda", 3))]


def test_workers_that_cannot_start_are_an_error_of_the_data(
    load: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Any) -> None:
        # as of a fork server that a signal has ended
        raise EOFError

    loader = load(FolderImages(folder_source("folder", "val", folder)), VALIDATION, workers=1)
    monkeypatch.setattr(type(loader._workers), "__iter__", lost)
    with pytest.raises(DataError, match="a process that draws images ended"):
        loader.warm_up()


def test_an_error_of_our_own_in_a_process_that_draws_is_not_taken_for_its_end(
    load: Any, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Any) -> None:
        raise RuntimeError("a mistake")

    loader = load(BetonFile(noise), SHUFFLED, workers=1)
    monkeypatch.setattr(type(loader._workers), "__iter__", wrong)
    with pytest.raises(RuntimeError, match="a mistake"):
        loader.warm_up()
