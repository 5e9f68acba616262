"""What is built and pinned: the wheel with its recipes, and lock files that hold on every machine."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK_FILES = ("requirements.lock", "requirements-ffcv.lock")
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_carries_every_shipped_recipe(wheel: zipfile.ZipFile) -> None:
    shipped = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "recipes").rglob("*.yaml")}
    carried = {
        name.removeprefix("acdc_cli/"): wheel.read(name)
        for name in wheel.namelist()
        if name.startswith("acdc_cli/recipes/")
    }
    assert "recipes/resnet50_95.yaml" in shipped
    assert carried == shipped


def test_the_wheel_carries_every_module_and_nothing_but_the_package(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "acdc_cli").rglob("*.py")}
    names = set(wheel.namelist())
    assert modules <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"acdc_cli"}


def test_the_wheel_installs_the_acdc_command(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(path).decode())
    assert dict(entry_points["console_scripts"]) == {"acdc": "acdc_cli.cli.app:main"}


def _pins(python: str, *files: str) -> dict[str, str]:
    """Package to version, of the lines whose markers hold on Linux with that Python."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    pins: dict[str, str] = {}
    for file in files:
        for line in (ROOT / file).read_text().splitlines():
            if line.startswith("#"):
                continue
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                (specifier,) = requirement.specifier
                assert specifier.operator == "=="
                assert requirement.name not in pins
                pins[requirement.name] = specifier.version
    return pins


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_files_pin_every_dependency_within_its_range(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    locked = [line for extra in ("demo", "deploy", "mnn") for line in extras[extra]]
    wanted = [*project["project"]["dependencies"], *locked, *project["dependency-groups"]["dev"]]
    pins = _pins(python, "requirements.lock")
    for line in wanted:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name]), line
    everything = _pins(python, *LOCK_FILES)
    for line in extras["ffcv"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(everything[requirement.name]), line


@pytest.mark.parametrize("python", PYTHONS)
def test_torch_and_torchvision_are_the_pair_that_fits(python: str) -> None:
    pins = _pins(python, "requirements.lock")
    assert (pins["torch"], pins["torchvision"]) == ("2.14.1", "0.29.1")


@pytest.mark.parametrize("file", [*LOCK_FILES, "requirements-docs.lock"])
def test_a_lock_file_names_no_index_and_no_path(file: str) -> None:
    text = (ROOT / file).read_text()
    assert re.findall(r"://|^-|/\w+/", text, re.MULTILINE) == []
