"""What keeps `acdc --help` and `acdc plan` quick, and names apart."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    code = "from typer.testing import CliRunner\nfrom acdc_cli.cli.app import app\n"
    modules = imported_by(code + "assert CliRunner().invoke(app, ['--help']).exit_code == 0")
    assert "typer" in modules
    assert not modules & {"torch", "torchvision", "timm", "ffcv", "wandb", "numpy", "matplotlib", "pydantic", "yaml"}


@pytest.mark.slow
def test_a_plan_and_a_local_model_import_neither_torchs_compiler_nor_torchvision() -> None:
    code = "from typer.testing import CliRunner\nfrom acdc_cli.cli.app import app\n"
    code += "assert CliRunner().invoke(app, ['plan', 'resnet50_95', '--json']).exit_code == 0\n"
    code += "from acdc_cli.models import build\nbuild.find('resnet18')(num_classes=2)"
    modules = imported_by(code)
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "torchvision", "timm", "ffcv", "wandb", "matplotlib"}


def test_a_file_name_repeats_only_where_files_are_looked_up_by_name() -> None:
    """By that of a command, an option, a block, a method."""
    looked_up = {"cli", "data/inputs", "data/policies", "data/sets", "deploy/formats", "recipe/blocks", "tasks"}
    looked_up |= {"sparsity/methods", "transfer/targets"}
    root = Path(__file__).parents[1] / "acdc_cli"
    files = [file.relative_to(root) for file in root.rglob("*.py") if file.name != "__init__.py"]
    often = Counter(file.name for file in files)
    assert [str(file) for file in files if often[file.name] > 1 and file.parent.as_posix() not in looked_up] == []
