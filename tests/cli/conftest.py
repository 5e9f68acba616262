"""A little data set of real digits, written once by the real command, and a recipe for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import DENSE, Finished, run_acdc
from digits import TINY, image_folders
from typer.testing import Result


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training and 100 validation digits as .beton files, in `data/digits` of a folder."""
    from acdc_cli.data.inventory import WriteOptions, write_set

    home = tmp_path_factory.mktemp("digits")
    # without compression: every run decodes all of them
    options = WriteOptions(source=image_folders(home, shrink=6), out=home / "digits", workers=0, raw_share=1.0)
    write_set("folder", options)
    return home / "digits"


def _write_recipe(folder: Path, digits: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(
        f"""extends: demo
name: small
epochs: 6
model: {{name: resnet8}}
data: {{name: folder, path: {digits}, batch_size: 50, val_batch_size: 30, loader: torch, {TINY}}}
optim: {{lr: 0.05, schedule: {{warmup_epochs: 0}}}}
sparsity: {{warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}}
"""
    )
    return path


@pytest.fixture
def recipe(in_tmp: Path, digits: Path) -> Path:
    """Six short epochs of AC/DC: dense 0, sparse 1, dense 2, sparse 3, dense 4, sparse 5."""
    return _write_recipe(in_tmp, digits)


def _trained(folder: Path, digits: Path, *sets: str) -> tuple[Path, Result]:
    """The run of `recipe` with these settings, and what `acdc train` said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = run_acdc("train", _write_recipe(folder, digits), *(word for each in sets for word in ("--set", each)))
    assert result.exit_code == 0, result.output
    return folder / "runs/small-0", result


def _copying(run: Path, result: Result) -> Finished:
    def copied(out: str = "runs/small-0") -> Result:
        shutil.copytree(run, out)
        return result

    return copied


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Path, Result]:
    return _trained(tmp_path_factory.mktemp("finished"), digits)


@pytest.fixture(scope="session")
def _finished_dense(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Path, Result]:
    return _trained(tmp_path_factory.mktemp("dense"), digits, *DENSE)


@pytest.fixture
def finished(recipe: Path, _finished: tuple[Path, Result]) -> Finished:
    """Does what `acdc train small.yaml --out OUT` would do, whose run is trained once a session."""
    return _copying(*_finished)


@pytest.fixture
def finished_dense(recipe: Path, _finished_dense: tuple[Path, Result]) -> Finished:
    """The same with one epoch of dense training."""
    return _copying(*_finished_dense)


@pytest.fixture(scope="session")
def _finished_with_state(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Path, Result]:
    return _trained(tmp_path_factory.mktemp("state"), digits, "checkpoint.keep_states=[5]")


@pytest.fixture
def finished_with_state(recipe: Path, _finished_with_state: tuple[Path, Result]) -> Finished:
    """The same with its state after five epochs."""
    return _copying(*_finished_with_state)
