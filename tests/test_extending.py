"""The pages of docs/extending, followed to the letter: their files are written into a copy, their commands are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGES = sorted((CHECKOUT / "docs/extending").glob("*.md"))
_FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files(page: Path) -> dict[str, str]:
    """Contents by path, as the page gives them."""
    return dict(_FILE.findall(page.read_text()))


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in _COMMANDS.findall(page.read_text()) for line in block.splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the demo recipe, which the pages' commands read as runs/demo."""
    from digits import image_folders

    from acdc_cli.jobs.training_run import train

    home = tmp_path_factory.mktemp("demo")
    data = ("data.name=folder", f"data.path={image_folders(home)}", "data.loader=torch", "data.val_batch_size=50")
    return train("demo_static", ["epochs=1", "optim.schedule.warmup_epochs=0", *data], out=home / "run").path


@pytest.fixture
def copy(tmp_path: Path, demo_run: Path) -> Path:
    """The checkout, but for what no page needs."""
    for folder in ("acdc_cli", "recipes", "tests"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(demo_run)
    return tmp_path


def test_there_is_a_page_for_each_thing_that_is_one_file() -> None:
    assert {page.stem for page in PAGES} == {"analysis", "data-set", "export", "method", "model", "task"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_adds_what_it_says_with_new_files_alone(page: Path, copy: Path) -> None:
    new, steps = files(page), commands(page)
    assert new
    assert steps
    for path, text in new.items():
        file = copy / path
        assert not file.exists(), f"{path} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    programs = {"acdc": [sys.executable, "-m", "acdc_cli"], "python": [sys.executable]}
    for program, *arguments in steps:
        done = subprocess.run(
            [*programs[program], *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # a choice of tests that chooses none is an error of pytest, but one that is skipped is not
        assert "skipped" not in done.stdout
