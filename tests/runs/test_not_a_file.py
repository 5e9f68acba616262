"""Every reader of a file, given what is not a file: it says so at once, whatever waits at the other end of a pipe."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acdc_cli import files
from acdc_cli.data import manifest
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.image_file import read_image
from acdc_cli.errors import AcdcError, RunError
from acdc_cli.jobs.checkpoints import recipe_of
from acdc_cli.jobs.subjects import Asked, Checkpoint
from acdc_cli.models import weights
from acdc_cli.recipe import syntax
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.runs import outcome
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    # a socket's name has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def folder(path: Path) -> None:
    path.mkdir()


def digest(path: Path) -> str:
    recipe: Any = None
    return Checkpoint(path, Asked(), "one", recipe).digest


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "image": ("image.png", read_image),
    "checkpoint": ("last.pt", lambda path: checkpoint.load_state(path.parent)),
    "weights": ("model.pt", weights.read),
    "recipe of weights": ("model.pt", recipe_of),
    "digest of weights": ("model.pt", digest),
    "model": ("model.safetensors", weights.read),
    "recipe of a model": ("model.safetensors", recipe_of),
    "masks": ("masks.safetensors", checkpoint.load_masks),
    "records": ("metrics.jsonl", lambda path: RunDir(path.parent).records()),
    "provenance": ("provenance.json", lambda path: RunDir(path.parent).provenance()),
    "summary": ("summary.json", lambda path: outcome.outcome(RunDir(path.parent), measures_of("multiclass"))),
    "images": ("train.beton", BetonFile),
    "manifest": ("train.beton.json", lambda path: manifest.read(path.with_suffix(""))),
    "recipe": ("recipe.yaml", syntax.read_text),
}
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a record": ("metrics.jsonl", lambda path: files.append_line(path, "{}")),
    "a lock": (".lock", lambda path: files.locked(path, RunError("busy")).__enter__()),
    "whether it is locked": (".lock", files.is_locked),
}


@pytest.fixture(autouse=True)
def _hangs_fail() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("what", "make"),
    [
        (what, make)
        for what in (*READERS, *WRITERS)
        for make in (pipe, listener, device, folder)
        # there, a folder is a run's
        if make is not folder or not what.startswith(("recipe of", "digest"))
    ],
)
def test_what_is_not_a_file_is_refused_at_once(what: str, make: Callable[[Path], None], in_tmp: Path) -> None:
    name, use = (READERS | WRITERS)[what]
    make(in_tmp / name)
    with pytest.raises((AcdcError, ValueError), match=r"not a file|a symbolic link|Is a directory"):
        use(in_tmp / name)


def test_a_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.read_bytes(tmp_path / "link") == b"text"
