"""A folder with all that a command may be given: a recipe, images, a written set, a run, checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from corpus import PAGE
from PIL import Image

RECIPE = """\
extends: demo
name: small
epochs: 2
data: {name: folder, path: photos, batch_size: 8, val_batch_size: 4, loader: torch, workers: 0}
optim: {lr: 0.05, schedule: {warmup_epochs: 0}}
sparsity: {method: oneshot, target: 0.5, at: 1}
"""


@pytest.fixture(scope="module", autouse=True)
def _small_pages() -> Iterator[None]:
    """Data sets of 100 KB, because they are copied for every case."""
    from acdc_cli.data import beton, manifest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton, "PAGE_SIZE", PAGE)
        patch.setattr(manifest, "PAGE", PAGE)
        yield


@pytest.fixture(scope="module")
def _template(_small_pages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from acdc_cli.data.inventory import WriteOptions, write_set
    from acdc_cli.jobs.training_run import train

    home = tmp_path_factory.mktemp("template")
    noise = np.random.default_rng(0).integers(0, 256, (24, 28, 28, 3), np.uint8)
    for index, pixels in enumerate(noise):
        place = home / "photos" / ("train" if index < 16 else "val") / ("cat", "dog")[index % 2] / f"{index:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    (home / "small.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        write_set("folder", WriteOptions(source=Path("photos"), out=Path("set"), workers=0))
        train("small.yaml", out=Path("run"))
    return home


@pytest.fixture
def home(_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`small.yaml`, the images `photos`, the same written as `set`, and `run`, which was trained on them."""
    shutil.copytree(_template, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"
