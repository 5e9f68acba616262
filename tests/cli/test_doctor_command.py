"""`acdc doctor`, from the command line to its table and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import Acdc

from acdc_cli.doctor import diagnose
from acdc_cli.doctor.verdict import ok

CHECKS = [
    *("python", "packages", "torchvision", "gpu", "processes", "ffcv", "threads", "memory", "shared memory"),
    *("disk of runs", "disk of data", "wandb"),
]


def test_a_machine_that_can_train_is_told_so_with_exit_code_0(acdc: Acdc, in_tmp: Path) -> None:
    result = acdc("doctor", "--json")
    checks = {each["check"]: each for each in json.loads(result.stdout)}
    assert result.exit_code == 0, result.output
    assert list(checks) == [*CHECKS, "training"]
    assert all(set(each) == {"check", "status", "found", "fix"} for each in checks.values())
    assert checks["training"]["status"] == "ok"
    assert "90% of the weights exactly zero, checkpoint read back" in checks["training"]["found"]
    assert all(each["fix"] for each in checks.values() if each["status"] != "ok")
    (said,) = result.stderr.splitlines()
    assert said.startswith("acdc can train here; warnings: ")
    assert list(in_tmp.iterdir()) == []


def test_the_table_fits_80_columns_and_errors_end_with_2(
    acdc: Acdc, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_training", lambda: ok("not tried"))
    result = acdc("doctor", "--data", "imagenet")
    assert result.exit_code == 2
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    words = " ".join(result.stdout.split())
    assert "error data the data set imagenet has no train and val" in words
    assert "`acdc data write imagenet" in words
    assert "error: 1 of 14 checks failed" in result.stderr


def test_a_data_set_is_looked_at_by_folder_by_file_and_where_recipes_expect_it(
    acdc: Acdc, in_tmp: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_training", lambda: ok("not tried"))
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "demo").symlink_to(digits)
    for given in ((), ("--data", "demo"), ("--data", digits), ("--data", digits / "train.beton")):
        checks = {each["check"]: each for each in json.loads(acdc("doctor", "--json", *given).stdout)}
        assert "200 training and 100 validation images of 10 classes" in checks["data"]["found"]


def test_a_broken_torch_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudnn.so.9: cannot open shared object')")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    done = subprocess.run(
        [sys.executable, "-m", "acdc_cli", "doctor", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    checks = {each["check"]: each for each in json.loads(done.stdout)}
    assert list(checks) == [*CHECKS, "training"]
    assert "libcudnn.so.9" in checks["torchvision"]["found"]
    assert "--force-reinstall torch" in checks["torchvision"]["fix"]
    assert {name for name in checks if checks[name]["status"] == "ok"} >= {"python", "packages", "memory"}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_its_help_loads_nothing_heavy(argument: str) -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom acdc_cli.cli.app import app\n"
        f"assert CliRunner().invoke(app, ['doctor', '{argument}']).exit_code == 0\n"
        "print({'torch', 'numpy', 'wandb', 'packaging'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
