"""A little data set of real digits, written once by the real command, and a recipe for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits import image_folders


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training and 100 validation digits as .beton files, in `data/digits` of a folder."""
    from acdc_cli.data.inventory import WriteOptions, write_set

    home = tmp_path_factory.mktemp("digits")
    write_set("folder", WriteOptions(source=image_folders(home), out=home / "digits", workers=1))
    return home / "digits"


@pytest.fixture
def recipe(in_tmp: Path, digits: Path) -> Path:
    """Six short epochs of AC/DC: dense 0, sparse 1, dense 2, sparse 3, dense 4, sparse 5."""
    path = in_tmp / "small.yaml"
    path.write_text(
        f"""extends: demo
name: small
epochs: 6
model: {{name: resnet8}}
data: {{name: folder, path: {digits}, batch_size: 50, val_batch_size: 30, loader: torch}}
optim: {{lr: 0.05, schedule: {{warmup_epochs: 0}}}}
sparsity: {{warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}}
"""
    )
    return path
