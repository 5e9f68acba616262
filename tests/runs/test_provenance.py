"""What is recorded where a package, git or the processor's name is missing."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import pytest

from acdc_cli.runs import provenance


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    assert provenance.versions() == {"numpy": metadata.version("numpy")}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # past the cache of all tests
    assert provenance._git.__wrapped__() is None  # type: ignore[attr-defined]


def test_a_processor_without_a_name_has_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (tmp_path / "missing", tmp_path / "nameless"):
        monkeypatch.setattr(provenance, "Path", lambda _, file=file: file)
        assert provenance.cpu_model() == platform.machine()
        (tmp_path / "nameless").write_text("processor\t: 0\n")
