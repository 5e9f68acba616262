"""Which algorithms a recipe lets torch choose."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from acdc_cli.errors import RunError
from acdc_cli.jobs import setup
from acdc_cli.recipe.load import load
from acdc_cli.training.distributed import Ranks


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    setup._choose_algorithms(deterministic=False)


def test_a_deterministic_recipe_leaves_no_choice_by_timing() -> None:
    setup.build(load("demo", ["device=cpu", "deterministic=true"]), 10)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_next_recipe_in_the_same_process_has_its_own_choice() -> None:
    for deterministic in (True, False):
        setup.build(load("demo", ["device=cpu", f"deterministic={str(deterministic).lower()}"]), 10)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark


def test_a_workspace_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(RunError, match="CUBLAS_WORKSPACE_CONFIG is :0:0"):
        setup.build(load("demo", ["device=cpu", "deterministic=true"]), 10)


def test_the_compiler_chooses_nothing_by_timing_either() -> None:
    from torch._inductor import config

    for deterministic in (True, False):
        setup._choose_algorithms(deterministic, compiled=True)
        assert config.deterministic is deterministic


def test_a_workspace_that_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    setup.build(load("demo", ["device=cpu", "deterministic=true"]), 10)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_torchs_compiler_is_not_imported_for_what_is_so_already(monkeypatch: pytest.MonkeyPatch) -> None:
    # it imports it
    calls: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
    setup.build(load("demo", ["device=cpu"]), 10)
    assert calls == []


@pytest.mark.parametrize(
    ("key", "mode"), [("auto", None), ("true", "default"), ("off", None), ("reduce-overhead", "reduce-overhead")]
)
def test_a_recipe_chooses_how_its_model_is_compiled(key: str, mode: str | None) -> None:
    assert setup._compile_mode(load("demo", [f"compile={key}"]), torch.device("cpu")) == mode


@pytest.mark.parametrize(
    ("asked", "variable", "expected"), [(None, None, 4), (None, "1", None), (3, None, 3), (3, "1", 3)]
)
def test_processes_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, variable: str | None, expected: int | None
) -> None:
    """Two processes on eight cores; None: torch's own number stays."""
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    setup._share_cores(asked, Ranks(rank=1, size=2, local_rank=1, local_size=2))
    assert chosen == ([] if expected is None else [expected])


def test_batch_norm_is_synchronised_in_every_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
    synchronised = setup._synchronised(model, torch.device("cuda"))
    assert [type(module).__name__ for module in synchronised.modules() if "Norm" in type(module).__name__] == [
        "SyncBatchNorm"
    ]
