"""Small .beton files whose pixels say where they come from, and loaders of both kinds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile, Sample, write_beton
from acdc_cli.data.torch import TorchLoader

MakeLoader = Callable[..., Loader]


@pytest.fixture(scope="session")
def ffcv() -> ModuleType:
    """The FFCV loader's module; tests that need it are skipped where FFCV's kernels are not installed."""
    try:
        from acdc_cli.data import ffcv
    except (ImportError, OSError) as cause:
        pytest.skip(f"FFCV cannot be used here: {cause}")
    return ffcv


@pytest.fixture(params=["ffcv", "torch"])
def make_loader(request: pytest.FixtureRequest) -> Iterator[MakeLoader]:
    """make_loader(path, plan, workers): a loader of each kind in turn, closed at the end."""
    made: list[Loader] = []

    def make(path: Path, plan: Plan, workers: int | None = None) -> Loader:
        if request.param == "ffcv":
            module = request.getfixturevalue("ffcv")
            made.append(module.FFCVLoader(BetonFile(path), plan, workers or 1, torch.device("cpu")))
        else:
            made.append(TorchLoader(BetonFile(path), plan, workers or 0, torch.device("cpu")))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def jpeg(pixels: NDArray[np.uint8], quality: int = 95) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.fixture(scope="session")
def coordinates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 raw images of 200 x 240 pixels: red is the column, green the row, blue the sample; labels are 59 … 0."""
    rows, columns = np.mgrid[:200, :240].astype(np.uint8)
    path = tmp_path_factory.mktemp("coordinates") / "train.beton"
    images = (np.stack([columns, rows, np.full_like(rows, index)], axis=-1) for index in range(60))
    samples = (Sample(59 - index, "raw", 200, 240, image.tobytes()) for index, image in enumerate(images))
    write_beton(path, samples, 60)
    return path


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 raw images of 32 x 32 random pixels, which no two crops share."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    path = tmp_path_factory.mktemp("noise") / "train.beton"
    write_beton(path, (Sample(index % 7, "raw", 32, 32, image.tobytes()) for index, image in enumerate(pixels)), 50)
    return path


def photograph(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth like a photograph: random colours on a coarse grid, with a little grain."""
    random = np.random.default_rng(index)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 3, (height, width, 1))
    return np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images like photographs, of several sizes, three of four as JPEG, the others raw."""
    path = tmp_path_factory.mktemp("photographs") / "train.beton"

    def samples() -> Iterator[Sample]:
        for index in range(40):
            height, width = 260 + 7 * (index % 9), 300 + 11 * (index % 5)
            pixels = photograph(index, height, width)
            if index % 4 == 3:
                yield Sample(index % 10, "raw", height, width, pixels.tobytes())
            else:
                yield Sample(index % 10, "jpg", height, width, jpeg(pixels))

    write_beton(path, samples(), 40)
    return path


@pytest.fixture(params=["ffcv", "torch"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "ffcv":
        request.getfixturevalue("ffcv")
    return str(request.param)


@pytest.fixture
def opened() -> Iterator[list[Loader]]:
    """Loaders put in here are closed at the end."""
    made: list[Loader] = []
    yield made
    for loader in made:
        loader.close()
