"""What may not be read or written is told as that."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import Acdc

NOBODY = 65534


@pytest.fixture
def open_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`home` where every user may go: pytest's own folders are closed to all but one."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(home, Path(folder) / "home")
        (Path(folder) / "home").chmod(0o755)
        monkeypatch.chdir(Path(folder) / "home")
        yield Path(folder) / "home"
        monkeypatch.chdir(home)


@contextmanager
def without_privileges() -> Iterator[None]:
    """As an ordinary user; root may read and write whatever the modes say."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize(
    ("closed", "mode", "command", "said"),
    [
        ("small.yaml", 0, "plan small.yaml", "small.yaml: cannot be read: Permission denied"),
        ("photos", 0, "plan small.yaml", "you may not read HOME/photos; ask its owner"),
        ("photos/train", 0, "eval --checkpoint run", "photos/train: Permission denied."),
        ("set/val.beton", 0, "data check set", "set/val.beton: cannot be read: Permission denied"),
        (
            "run/checkpoints/last.pt",
            0,
            "eval --checkpoint run/checkpoints/last.pt",
            "last.pt cannot be read: permission",
        ),
        ("run/sparse.safetensors", 0, "eval --checkpoint run", "sparse.safetensors cannot be read: permission"),
        (
            "figures",
            0o555,
            "analyze curves run --out figures",
            "figures/curves-run.json cannot be written: permission denied; make",
        ),
    ],
)
def test_what_is_closed_is_told_as_that(
    acdc: Acdc, open_home: Path, closed: str, mode: int, command: str, said: str
) -> None:
    Path("figures").mkdir()
    allowed = acdc(*command.split())
    assert allowed.exit_code == 0, allowed.output
    Path(closed).chmod(mode)

    with without_privileges():
        refused = acdc(*command.split())

    assert refused.exit_code == 2, refused.output
    assert said in refused.stderr.replace(str(open_home), "HOME")
    assert "Traceback" not in refused.output
