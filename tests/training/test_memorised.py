from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_trainer import MiniRun, StopAtCall
from torch import Tensor

from acdc_cli.data.batches import Batch
from acdc_cli.errors import Stopped
from acdc_cli.models.tensors import load_tensors
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.tasks.base.memorised import Memorisation
from acdc_cli.training import checkpoint
from acdc_cli.training.evaluate import Probe
from acdc_cli.training.trainer import Trainer

ACDC = {
    "method": "acdc",
    "target": 0.9,
    "warmup_epochs": 1,
    "dense_epochs": 1,
    "sparse_epochs": 1,
    "last_dense_epochs": 1,
    "last_sparse_epochs": 1,
}
TRUE = torch.tensor([0, 1, 2, 0, 1])
GIVEN = torch.tensor([1, 2, 0, 2, 0])


class Corrupted:
    """Five images in batches of two, whose labels are their numbers."""

    kind = "torch"
    samples, steps = 5, 3

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        yield (Batch(self.images[part], part, 7 * part) for part in torch.arange(5).split(2))

    def prepare(self, epoch: int) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


def probe() -> Probe:
    return Probe("corrupted samples", Corrupted(), Memorisation(TRUE, GIVEN))  # type: ignore[arg-type]


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in record if key not in ("seconds", "images_per_second")} for record in records]


def one_hot(classes: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def test_shares_are_of_all_samples_whichever_batch_they_come_in() -> None:
    measure = Memorisation(TRUE, GIVEN)
    # samples 4, 0 and 2 are shown as true, given and neither; 1 and 3 both as given
    batches = [([4, 0, 2], [1, 1, 1]), ([1, 3], [2, 2])]
    sums: dict[str, float] = {}
    for numbers, predicted in batches:
        for name, value in measure.sums(one_hot(predicted), torch.tensor(numbers)).items():
            sums[name] = sums.get(name, 0.0) + value.item()
    assert measure.metrics(sums, 5) == {
        "corrupted_true": 1 / 5, "corrupted_given": 3 / 5, "corrupted_neither": 1 / 5,
    }  # fmt: skip


def test_a_sample_whose_drawn_label_is_its_true_one_counts_as_both() -> None:
    measure = Memorisation(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]))
    sums = measure.sums(one_hot([0, 0, 2]), torch.tensor([0, 1, 2]))
    assert [value.item() for value in sums.values()] == [2, 2, 1]


def test_each_epochs_record_has_the_shares_of_its_model_in_eval_mode(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 4, ACDC, probes=[probe()], checkpoint={"keep_every": 1})
    run.fit()
    records = run.directory.records()
    images = (Corrupted().images.float() / 255 - 0.5) / 0.5
    seen = []
    for kept, record in zip(run.directory.kept_models(), records, strict=True):
        run.model.load_state_dict(load_tensors(kept.file)[0])
        run.model.eval()
        predicted = [int(run.model(image[None]).argmax()) for image in images]
        shares = [
            sum(one == other for one, other in zip(predicted, classes.tolist(), strict=True)) / 5
            for classes in (TRUE, GIVEN)
        ]
        assert [record["corrupted_true"], record["corrupted_given"]] == shares
        seen.append(tuple(shares))
    # else nothing was compared
    assert len(set(seen)) > 1


def test_the_probe_changes_nothing_else(tmp_path: Path) -> None:
    without = MiniRun(tmp_path / "without", 4, ACDC)
    without.fit()
    with_it = MiniRun(tmp_path / "with", 4, ACDC, probes=[probe()])
    with_it.fit()
    ours = untimed(with_it.directory.records())
    assert set(Memorisation.names) == ours[0].keys() - untimed(without.directory.records())[0].keys()
    for record in ours:
        for name in Memorisation.names:
            del record[name]
    assert ours == untimed(without.directory.records())
    for name, value in without.model.state_dict().items():
        assert torch.equal(value, with_it.model.state_dict()[name]), name


def test_the_method_is_told_the_validation_of_the_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = MiniRun(tmp_path / "run", 1, {"method": "dense"}, probes=[probe()]), []
    monkeypatch.setattr(run.sparsifier, "on_epoch_end", lambda moment, metrics: told.append(dict(metrics)))
    run.fit()
    assert told[0]["samples"] == 12
    assert told[0]["corrupted_true"] == run.directory.records()[0]["corrupted_true"]


def test_the_summary_has_the_shares_of_the_pair(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 6, ACDC, probes=[probe()])
    summary = run.fit()
    for kind, epoch in (("dense", 4), ("sparse", 5)):
        for key in ("corrupted_true", "corrupted_given"):
            assert summary[kind][key] == run.directory.records()[epoch][key]


def test_the_probes_loader_is_warmed_up_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, warmed = probe(), []
    monkeypatch.setattr(asked.loader, "warm_up", lambda: warmed.append(True))
    MiniRun(tmp_path / "run", 1, {"method": "dense"}, probes=[asked]).fit()
    assert warmed == [True]


def test_a_run_that_is_stopped_again_and_again_records_the_same_shares(tmp_path: Path) -> None:
    whole = MiniRun(tmp_path / "whole", 6, ACDC, probes=[probe()])
    whole.fit()
    run = RunDir(tmp_path / "cut")
    stopped_while_judging = 0
    # three steps, three validation batches and three of the probe an epoch
    resumed = MiniRun(run.path, 6, ACDC, probes=[probe()], stop_asked=StopAtCall(8))
    while True:
        try:
            resumed.fit()
            break
        except Stopped as stopped:
            stopped_while_judging += "after step 3 of 3" in str(stopped)
        resumed = _gone_on(run)
    assert stopped_while_judging > 1
    assert untimed(run.records()) == untimed(whole.directory.records())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def _gone_on(run: RunDir) -> MiniRun:
    state = checkpoint.load_state(run.checkpoints)
    assert state is not None
    run.rewind_metrics(state["epoch"])
    resumed = MiniRun(run.path, 6, ACDC, probes=[probe()], stop_asked=StopAtCall(10))
    trainer: Trainer = resumed.trainer
    trainer.load_state_dict(state)
    return resumed
