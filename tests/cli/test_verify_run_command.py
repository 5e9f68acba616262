"""`acdc verify-run` accepts a run as training left it, and names whatever was changed since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc, Finished

from acdc_cli.jobs.run_check import verify_run
from acdc_cli.models.tensors import load_tensors, save_tensors
from acdc_cli.training import checkpoint

RUN = Path("run")


def test_a_finished_run_is_what_it_claims(acdc: Acdc, finished: Finished) -> None:
    finished("run")
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    result = acdc("verify-run", RUN)
    assert result.exit_code == 0, result.output
    assert "run is what it claims to be: 7 checks" in result.stderr
    assert len(result.stdout.splitlines()) <= 10
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_is_checked_as_far_as_it_is(acdc: Acdc, finished: Finished) -> None:
    finished("run")
    (RUN / "summary.json").unlink()
    result = acdc("verify-run", RUN)
    assert result.exit_code == 0, result.output
    assert "unfinished" in result.stdout


def edit_records(change: Callable[[list[dict[str, Any]]], object]) -> None:
    records = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    change(records)
    (RUN / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def lose_a_record() -> None:
    edit_records(lambda records: records.pop(2))


def repeat_a_record() -> None:
    edit_records(lambda records: records.insert(2, records[1]))


def change_the_phase() -> None:
    edit_records(lambda records: records[0].update(phase="sparse"))


def change_the_learning_rate() -> None:
    edit_records(lambda records: records[3].update(lr=records[3]["lr"] * 1.001))


def improve_the_record() -> None:
    edit_records(lambda records: records[-1].update(top1=1.0))


def improve_the_summary() -> None:
    summary = json.loads((RUN / "summary.json").read_text())
    summary["sparse"]["top1"] = 1.0
    (RUN / "summary.json").write_text(json.dumps(summary))


def damage_the_checkpoint() -> None:
    last = RUN / "checkpoints/last.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)


def free_a_weight_in_the_last_mask() -> None:
    file = max((RUN / "masks").iterdir())
    masks = checkpoint.load_masks(file)
    mask = next(iter(masks.values())).view(-1)
    mask[int(mask.logical_not().nonzero()[0])] = True
    checkpoint.save_masks(file, masks)


def change_weights(kind: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = RUN / f"{kind}.safetensors"
    weights, header = load_tensors(path)
    change(weights)
    save_tensors(path, weights, header)


def free_a_weight() -> None:
    mask = checkpoint.load_masks(max((RUN / "masks").iterdir()))
    name = next(iter(mask))

    def free(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(-1)[int(mask[name].view(-1).logical_not().nonzero()[0])] = 1e-30

    change_weights("sparse", free)


def spoil_the_dense_model() -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        for name, value in weights.items():
            if value.ndim == 4:
                weights[name] = value.flip(0)

    change_weights("dense", spoil)


def exchange_the_models() -> None:
    (RUN / "dense.safetensors").write_bytes((RUN / "sparse.safetensors").read_bytes())


def truncate_a_model() -> None:
    path = RUN / "sparse.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("change", "failing", "said"),
    [
        (lose_a_record, {"records"}, "line 3 has epoch 3"),
        pytest.param(repeat_a_record, {"records"}, "line 3 has epoch 1", marks=pytest.mark.slow),
        (change_the_phase, {"schedule"}, "epoch 0: phase is sparse, by the recipe dense"),
        pytest.param(change_the_learning_rate, {"schedule"}, "epoch 3: lr is", marks=pytest.mark.slow),
        (improve_the_record, {"summary", "sparse model"}, "its header is not the record of epoch 5"),
        pytest.param(improve_the_summary, {"summary"}, "sparse: not the record of epoch 5", marks=pytest.mark.slow),
        (damage_the_checkpoint, {"checkpoints"}, "last.pt is damaged"),
        (free_a_weight_in_the_last_mask, {"masks"}, "epoch-0005-sparse.safetensors: sparsity 0."),
        (free_a_weight, {"sparse model"}, "outside its mask are not zero"),
        (spoil_the_dense_model, {"dense model"}, "recorded"),
        pytest.param(exchange_the_models, {"dense model"}, "it is the model of another phase", marks=pytest.mark.slow),
        pytest.param(truncate_a_model, {"sparse model"}, "sparse.safetensors", marks=pytest.mark.slow),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_was_changed_is_named(
    acdc: Acdc, finished: Finished, change: Callable[[], None], failing: set[str], said: str
) -> None:
    finished("run")
    change()
    result = acdc("verify-run", RUN, "--json")
    assert result.exit_code == 2, result.output
    assert "run is not what it claims to be: see " in result.stderr
    wrong = [check for check in json.loads(result.stdout) if check["status"] == "error"]
    assert {check["name"] for check in wrong} == failing
    assert any(said in problem for check in wrong for problem in check["problems"])


def test_all_that_is_wrong_is_listed_at_once(finished: Finished) -> None:
    finished("run")
    edit_records(lambda records: [records[3].update(train_flops=1), records[1].update(train_loss=None)])
    for file in ("last.pt", "previous.pt"):
        (RUN / "checkpoints" / file).unlink()
    last = max((RUN / "masks").iterdir())
    last.with_name("epoch-0007-sparse.safetensors").write_bytes(last.read_bytes())
    assert {check.name: check.problems for check in verify_run(RUN) if check.problems} == {
        "records": ["train_flops decreases", "no finite training loss in epoch 1"],
        "checkpoints": ["there is none"],
        "masks": ["epoch-0007-sparse.safetensors has no record"],
    }


def test_the_table_has_what_is_wrong_below_its_check(acdc: Acdc, finished: Finished) -> None:
    finished("run")
    improve_the_summary()
    result = acdc("verify-run", RUN)
    assert result.exit_code == 2, result.output
    assert "→ sparse: not the record of epoch 5" in " ".join(result.stdout.split())
    assert "run is not what it claims to be: see summary" in result.stderr


def test_images_that_lie_elsewhere_are_named_on_the_command_line(
    acdc: Acdc, finished: Finished, digits: Path, tmp_path: Path
) -> None:
    finished("run")
    resolved = RUN / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace(str(digits), str(tmp_path / "nowhere")))
    refused = acdc("verify-run", RUN)
    assert refused.exit_code == 2
    assert acdc("verify-run", RUN, "--set", f"data.path={digits}").exit_code == 0
