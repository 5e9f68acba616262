"""A checkpoint whose seal holds may still be no state of the run: that is said, and no number changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mini_trainer import ADAMW, SGD, FewImages, MiniRun

from acdc_cli.errors import CheckpointError
from acdc_cli.recipe.blocks.run import EMABlock
from acdc_cli.training import saved_state
from acdc_cli.training.distributed import Ranks

RIGL = {"method": "rigl", "target": 0.5, "distribution": "erk", "every": 2}
RUNS: dict[str, dict[str, Any]] = {
    name: keys
    for file in sorted((Path(__file__).parents[1] / "sparsity" / "runs").glob("*.yaml"))
    for name, keys in yaml.safe_load(file.read_text()).items()
}
FOLDER = Path("checkpoints")


def accept(state: dict[str, Any], run: MiniRun) -> None:
    saved_state.require_form(state, FOLDER)
    saved_state.require_fit(state, run.parts, FOLDER)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], MiniRun]:
    """A state with everything in it, and a new run that takes it."""
    folder = tmp_path_factory.mktemp("run")
    run = MiniRun(folder / "one", 2, RIGL, ema=EMABlock(decay=0.9))
    run.fit()
    return run.trainer.state_dict(), MiniRun(folder / "other", 2, RIGL, ema=EMABlock(decay=0.9))


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def bomb() -> list[Any]:
    shared: list[Any] = [0]
    for _ in range(60):
        shared = [shared] * 10
    return shared


KEYS = ("epoch", "step", "finished", "processes", "ends", "seconds", "model", "optimizer", "sparsifier", "ema")
CHANGES = {
    **{f"without {key}": without(key) for key in (*KEYS, "precision", "train_flops", "metadata")},
    **{f"text for {key}": put("x", key) for key in (*KEYS, "precision", "metadata")},
    "epoch below zero": put(-1, "epoch"),
    "epoch beyond the end": put(3, "epoch"),
    "step beyond the epoch": put(9, "step"),
    "no processes": put([], "processes"),
    "no loss sums": without("processes", 0, "running", "losses"),
    "weight gone": without("model", "0.weight"),
    "weight of one number, which would spread": put(torch.ones(1), "model", "0.weight"),
    "weight of integers": put(torch.ones(6, 3, 3, 3, dtype=torch.long), "model", "0.weight"),
    "mask of one number": put(torch.ones(1, dtype=torch.bool), "sparsifier", "masks", "forward", "0.weight"),
    "mask transposed": put(torch.ones(3, 6, 3, 3, dtype=torch.bool), "sparsifier", "masks", "forward", "0.weight"),
    "mask of numbers": put(torch.ones(6, 3, 3, 3), "sparsifier", "masks", "forward", "0.weight"),
    "mask that is text": put("x", "sparsifier", "masks", "forward", "0.weight"),
    "mask gone": without("sparsifier", "masks", "forward", "0.weight"),
    "backward mask of another shape": put(
        {"0.weight": torch.ones(1, dtype=torch.bool), "6.weight": torch.ones(3, 216, dtype=torch.bool)},
        *("sparsifier", "masks", "backward"),
    ),
    "method's count is text": put("x", "sparsifier", "updates"),
    "method's key gone": without("sparsifier", "gradients"),
    "method's sums of another shape": put({"0.weight": torch.ones(1)}, "sparsifier", "gradients"),
    "momentum of another shape": put(torch.ones(1), "optimizer", "state", 0, "momentum_buffer"),
    "momentum gone": without("optimizer", "state", 0),
    "another group": without("optimizer", "param_groups", 1),
    "average of another shape": put(torch.ones(1), "ema", "average", "0.weight"),
    "a tensor where the summary has a number": put(torch.ones(1), "ends", "sparse", "train_loss"),
    "an end without accuracy": put(None, "ends", "sparse", "top1"),
    "a tensor in the recipe": put(torch.ones(2), "metadata", "recipe", "seed"),
    "a tensor for the seconds": put(torch.ones(1), "seconds"),
    "shared lists": put(bomb(), "metadata", "recipe", "model"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_state_that_is_not_of_this_run_is_refused(
    trained: tuple[dict[str, Any], MiniRun], change: Callable[[dict[str, Any]], None]
) -> None:
    state, fresh = trained
    state = copy.deepcopy(state) | {"metadata": {"recipe": {}}}
    accept(state, fresh)
    change(state)
    with pytest.raises(
        CheckpointError, match=r"checkpoints is no state of this run \(.*\); restore a copy, or"
    ) as said:
        accept(state, fresh)
    assert len(str(said.value)) < 400


def test_an_average_with_a_weight_missing_is_refused(trained: tuple[dict[str, Any], MiniRun]) -> None:
    state = copy.deepcopy(trained[0])
    del state["ema"]["average"]["0.weight"]
    with pytest.raises(CheckpointError, match="average is of other weights"):
        trained[1].trainer.load_state_dict(state)


def test_what_a_method_itself_cannot_load_is_told(trained: tuple[dict[str, Any], MiniRun]) -> None:
    state = copy.deepcopy(trained[0])
    state["processes"][0]["random"]["cpu"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="is no state of this run"), saved_state.loading(FOLDER, ranks=1):
        trained[1].trainer.load_state_dict(state)


def test_a_state_without_the_cost_that_its_run_counts_is_refused(trained: tuple[dict[str, Any], MiniRun]) -> None:
    state, fresh = trained
    cost: Any = object()
    with pytest.raises(CheckpointError, match="no train_flops"):
        saved_state.require_fit(state | {"metadata": {}}, replace(fresh.parts, cost=cost), FOLDER)


def test_memory_that_runs_out_is_no_fault_of_the_checkpoint() -> None:
    with pytest.raises(torch.OutOfMemoryError), saved_state.loading(FOLDER, ranks=1):
        raise torch.OutOfMemoryError("2 GiB")


def test_a_rank_that_the_saved_run_did_not_have_keeps_its_own_random_state(
    trained: tuple[dict[str, Any], MiniRun], tmp_path: Path
) -> None:
    state = copy.deepcopy(trained[0])
    states = {}
    for rank in range(2):
        run = MiniRun(tmp_path / str(rank), 2, RIGL, ema=EMABlock(decay=0.9), ranks=Ranks(rank, 2))
        torch.manual_seed(rank)
        run.trainer.load_state_dict(state)
        states[rank] = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(states[1], torch.get_rng_state())
    assert torch.equal(states[0], state["processes"][0]["random"]["cpu"])


@pytest.mark.parametrize(
    ("name", "optim"),
    [
        ("gmp", ADAMW),
        # the first word is the method, what follows a variant
        *(pytest.param(name, SGD, marks=pytest.mark.slow if " " in name else ()) for name in RUNS),
    ],
)
def test_every_method_s_states_are_its_own(
    tmp_path: Path, name: str, optim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from acdc_cli.training import checkpoint

    keys = {"method": name.split()[0], **RUNS[name]}
    keys |= {"samples": 3} if "samples" in keys else {}
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(checkpoint, "save_state", lambda folder, state: states.append(copy.deepcopy(dict(state))))
    val = FewImages(samples=4)
    run = MiniRun(tmp_path / "one", 12, keys, optim=optim, checkpoint={"every_epochs": 1}, val=val)
    first = run.trainer.state_dict()
    run.fit()
    fresh = MiniRun(tmp_path / "other", 12, keys, optim=optim, val=val)
    assert len(states) == 12
    for state in (first, *states):
        accept(state | {"metadata": {"recipe": {}}}, fresh)
