"""AC/DC whose last phase fine-tunes a dense model instead of a sparse one (P1 3.2): the files of such a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_trainer import ADAMW, SGD, MiniRun
from safetensors.torch import load_file
from torch import Tensor

from acdc_cli.training import checkpoint, validation

# dense 0, sparse 1-2, dense 3, sparse 4-5, dense 6-7, fine-tuned 8-9
EPOCHS = 10
BLOCK = {
    "method": "acdc",
    "target": 0.9,
    "warmup_epochs": 1,
    "sparse_epochs": 2,
    "dense_epochs": 1,
    "last_dense_epochs": 2,
    "last_sparse_epochs": 2,
}
BEST = 6
Wholes = Callable[[dict[str, Any], dict[str, Any]], MiniRun]


class KilledError(Exception):
    pass


@pytest.fixture(params=["dense_best", "dense_last"])
def sparsity(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The block, and a validation by which epoch 6 is the best of the alternation."""
    evaluate = validation.evaluate

    def scored(model: Any, *arguments: Any, **more: Any) -> dict[str, float]:
        metrics = evaluate(model, *arguments, **more)
        # the batch norm has counted the steps, three an epoch
        epoch = int(model[1].num_batches_tracked) // 3 - 1
        return metrics | {"top1": 0.5 if epoch == BEST else 0.25}

    monkeypatch.setattr(validation, "evaluate", scored)
    return BLOCK | {"last_phase": request.param}


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.endswith(("weight", "bias"))}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_sparse_file_is_the_sparse_phase_before_and_the_dense_one_the_fine_tuned_model(
    tmp_path: Path, sparsity: dict[str, Any]
) -> None:
    # without a learning rate the fine-tuned model stays the one it began with
    run = MiniRun(
        tmp_path / "run",
        EPOCHS,
        sparsity,
        checkpoint={"keep_phases": True},
        learning_rate=lambda progress: 0.05 * (progress < 8),
    )
    ends: list[dict[str, Tensor]] = []
    on_epoch_end = run.sparsifier.on_epoch_end

    def kept(moment: Any, metrics: Any) -> None:
        ends.append({name: value.clone() for name, value in run.model.state_dict().items()})
        on_epoch_end(moment, metrics)

    run.sparsifier.on_epoch_end = kept  # type: ignore[method-assign]
    summary = run.fit()

    assert (summary["sparse"]["epoch"], summary["dense"]["epoch"]) == (5, 9)
    sparse, dense = load_file(tmp_path / "run/sparse.safetensors"), load_file(tmp_path / "run/dense.safetensors")
    assert same(sparse, ends[5])
    # 162 + 648 weights, of which 81 are kept
    assert sum(int((sparse[name] == 0).sum()) for name in ("0.weight", "6.weight")) == 729
    assert same(dense, ends[9])
    assert same(weights(dense), weights(ends[BEST if sparsity["last_phase"] == "dense_best" else 7]))
    assert not same(weights(ends[BEST]), weights(ends[7]))
    assert [record["phase"] for record in run.directory.records()] == [
        "dense", "sparse", "sparse", "dense", "sparse", "sparse", "dense", "dense", "dense", "dense",
    ]  # fmt: skip
    phases = sorted(path.stem for path in run.directory.checkpoints.glob("epoch-*"))
    assert phases == [
        f"epoch-000{end}-{kind}"
        for end, kind in ((0, "dense"), (2, "sparse"), (3, "dense"), (5, "sparse"), (7, "dense"), (9, "dense"))
    ]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    """The run of these blocks that nothing interrupts, trained once."""
    made: dict[tuple[str, str], MiniRun] = {}

    def whole(sparsity: dict[str, Any], optim: dict[str, Any]) -> MiniRun:
        key = (sparsity["last_phase"], optim["name"])
        if key not in made:
            made[key] = MiniRun(tmp_path_factory.mktemp("whole"), EPOCHS, sparsity, optim=optim)
            made[key].fit()
        return made[key]

    return whole


@pytest.mark.parametrize(
    ("stop", "optim"),
    [
        (8, SGD),
        (7, ADAMW),
        *(pytest.param(stop, SGD, marks=pytest.mark.slow) for stop in (4, 5, 7, 9)),
        *(pytest.param(stop, ADAMW, marks=pytest.mark.slow) for stop in (4, 5, 8, 9)),
    ],
)
def test_a_resumed_run_ends_bit_identical(
    tmp_path: Path, sparsity: dict[str, Any], wholes: Wholes, stop: int, optim: dict[str, Any]
) -> None:
    whole = wholes(sparsity, optim)
    cut, original = MiniRun(tmp_path / "cut", EPOCHS, sparsity, optim=optim), checkpoint.save_state

    def killed(path: Path, state: dict[str, Any]) -> None:
        original(path, state)
        if state["epoch"] == stop:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", killed)
        with pytest.raises(KilledError):
            cut.fit()
    torch.manual_seed(99)
    resumed = MiniRun(tmp_path / "cut", EPOCHS, sparsity, optim=optim)
    state = checkpoint.load_state(resumed.directory.checkpoints)
    assert state is not None
    resumed.trainer.load_state_dict(state)
    resumed.fit()
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    for kind in ("sparse", "dense"):
        assert same(load_file(tmp_path / f"cut/{kind}.safetensors"), load_file(whole.directory.model_file(kind)))
