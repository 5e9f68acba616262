"""One thread (a busy neighbour makes two slower than one), no W&B outside a test's own folder, and the command."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from command import Acdc, run_acdc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_SILENT"] = "true"
# a busy machine is no mistake; `make test-all` draws at length
_unhurried = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("long", _unhurried)
hypothesis.settings.register_profile("short", _unhurried, max_examples=15)
hypothesis.settings.load_profile("short")
# torch's million objects stay alive
gc.set_threshold(200_000)
# what a shell starts in the background, and whatever that starts, is deaf to Ctrl-C otherwise
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    # pytest listens to every logger that does not propagate, and torch traces all exports at length if anyone listens
    logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(autouse=True, scope="session")
def _coarse_figures(pytestconfig: pytest.Config) -> Iterator[None]:
    """The figures of analyses, which nobody looks at here, have few dots and no layout; all are drawn as SVG, and as
    PNG by `make test-all` only."""
    from acdc_cli.analysis.base import plotting

    png, everything = plotting.png, "not slow" not in pytestconfig.getoption("markexpr")

    @cache
    def blank(kind: type[Figure]) -> bytes:
        return png(kind((1, 1)))

    def coarse(figure: Figure) -> bytes:
        figure.set_layout_engine("none")
        return png(figure) if everything else blank(type(figure))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "_DPI", 20)
        patch.setattr(plotting, "png", coarse)
        yield


@pytest.fixture(autouse=True, scope="session")
def _disk_not_waited_for() -> Iterator[None]:
    """Only a power cut would show the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _commit_asked_once() -> Iterator[None]:
    """git, which every run asks three times for the checkout's commit, is asked once."""
    from acdc_cli.runs import provenance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_git", cache(provenance._git))
        yield


@pytest.fixture(autouse=True)
def _wandb_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.getbasetemp() / "home"
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(home / "netrc"))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def acdc() -> Acdc:
    """Runs the command line in this process."""
    return run_acdc
