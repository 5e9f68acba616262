"""Two little runs of AC/DC that every analysis is tried on, trained once a session by the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits import TINY, image_folders

_RECIPE = f"""extends: demo
name: small
epochs: 6
data: {{name: folder, path: DATA, batch_size: 50, val_batch_size: 30, loader: torch, workers: 0, {TINY}}}
optim: {{lr: 0.05, schedule: {{warmup_epochs: 0}}}}
sparsity: {{warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}}
checkpoint: {{keep_every: 1}}
"""


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training and 100 validation digits, of 7 pixels, as image folders."""
    return image_folders(tmp_path_factory.mktemp("few"), shrink=6)


@pytest.fixture(scope="session")
def trained(few_digits: Path) -> Path:
    """A finished run: dense in epochs 0, 2 and 4, sparse in 1, 3 and 5; the model of every epoch is kept."""
    return _train(few_digits, 0)


@pytest.fixture(scope="session")
def other(few_digits: Path) -> Path:
    """The same run with seed 1."""
    return _train(few_digits, 1)


def _train(data: Path, seed: int) -> Path:
    from acdc_cli.jobs.training_run import train

    home = data.parent
    recipe = home / "small.yaml"
    recipe.write_text(_RECIPE.replace("DATA", str(data)))
    out = home / f"small-{seed}"
    train(str(recipe), (f"seed={seed}",), out=out)
    return out
