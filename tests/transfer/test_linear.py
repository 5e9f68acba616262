"""The linear classifier against its own optimum, and features that are extracted once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from in_memory import InMemory
from torch import Tensor, nn

from acdc_cli.data.batches import Batch
from acdc_cli.errors import ModelError, RunError
from acdc_cli.recipe.blocks.optim import LinearSchedule, SGDBlock
from acdc_cli.training.precision import Precision
from acdc_cli.transfer import linear
from acdc_cli.transfer.features import Features, extract

CPU = torch.device("cpu")
DECAY = 0.01


@pytest.fixture
def features() -> Features:
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    values = random.normal(size=(300, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[labels]
    return Features(values, labels)


def loss(head: nn.Linear, features: Features) -> Tensor:
    logits = head(torch.from_numpy(features.values))
    squares = head.weight.square().sum() + head.bias.square().sum()
    return F.cross_entropy(logits, torch.from_numpy(features.labels)) + DECAY / 2 * squares


def test_logistic_regression_is_a_minimum_which_sgd_approaches(features: Features) -> None:
    best = linear.best(features, 3, DECAY, CPU)
    for parameter in best.parameters():
        parameter.requires_grad_(True)
    loss(best, features).backward()
    assert best.weight.grad is not None
    assert best.weight.grad.abs().max() < 1e-4
    optim = SGDBlock(
        name="sgd", lr=0.1, weight_decay=DECAY, decay_norm_and_bias=True, schedule=LinearSchedule(name="linear")
    )
    trained = linear.train(features, 3, optim, lambda progress: 0.1 * (1 - progress / 30), 30, 20, 0, CPU)
    with torch.no_grad():
        assert loss(best, features) <= loss(trained, features) < loss(best, features) + 1e-3
    agree = linear.predictions(best, features, CPU) == linear.predictions(trained, features, CPU)
    assert agree.mean() > 0.97


def test_a_regression_that_runs_out_of_rounds_is_warned_of(
    features: Features, capsys: pytest.CaptureFixture[str]
) -> None:
    linear.best(features, 3, DECAY, CPU, rounds=1)
    assert "the regression had not converged after 1 rounds: " in " ".join(capsys.readouterr().err.split())


def test_scores_are_learned_by_least_squares() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 4)).astype(np.float32)
    scores = (values @ np.array([1, -2, 0.5, 0]) + 3).astype(np.float32)
    features = Features(values, scores)
    ridge = linear.best(features, 1, DECAY, CPU)
    # the minimum of mean((Ax - y)²) + decay / 2 |x|², the bias among x
    inputs = np.column_stack([values, np.ones(200)]).astype(np.float64)
    exact = np.linalg.solve(inputs.T @ inputs * 2 / 200 + DECAY * np.eye(5), inputs.T @ scores * 2 / 200)
    assert [*ridge.weight[0].tolist(), ridge.bias.item()] == pytest.approx(exact, abs=1e-4)
    optim = SGDBlock(
        name="sgd", lr=0.05, weight_decay=DECAY, decay_norm_and_bias=True, schedule=LinearSchedule(name="linear")
    )
    trained = linear.train(features, 1, optim, lambda progress: 0.05 * (1 - progress / 30), 30, 20, 0, CPU)
    assert [*trained.weight[0].tolist(), trained.bias.item()] == pytest.approx(exact, abs=1e-2)
    answers = linear.predictions(ridge, features, CPU)
    assert answers.dtype == np.float32
    assert np.corrcoef(answers, scores)[0, 1] > 0.999


def test_a_training_that_diverges_is_an_error() -> None:
    features = Features(np.ones((40, 4), np.float32) * 100, np.ones(40, np.float32))
    optim = SGDBlock(name="sgd", lr=1.0, schedule=LinearSchedule(name="linear"))
    with pytest.raises(RunError, match="diverged; lower its learning rate"):
        linear.train(features, 1, optim, lambda _: 1.0, 20, 20, 0, CPU)


def test_the_seed_alone_decides_over_sgd(features: Features) -> None:
    optim = SGDBlock(name="sgd", lr=0.1, schedule=LinearSchedule(name="linear"))

    def weights(seed: int) -> Tensor:
        return linear.train(features, 3, optim, lambda _: 0.1, 1, 50, seed, CPU).weight.detach()

    state = torch.get_rng_state()
    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


class Net(nn.Module):
    def __init__(self, repeated: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.repeated = nn.Conv2d(3, 5, 2), nn.Linear(5, 2), repeated

    def forward(self, images: Tensor) -> Tensor:
        vectors = self.body(images.float()).mean(dim=(2, 3))
        logits: Tensor = self.head(vectors)
        return self.head(vectors) + logits if self.repeated else logits


@dataclass
class Small:
    model: nn.Module = field(default_factory=Net)
    precision: Precision = field(default_factory=lambda: Precision("fp32", CPU))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class Counting(InMemory):
    """Stops after so many batches, as an interruption would."""

    def __init__(self, stop_after: int | None = None) -> None:
        images = torch.randint(0, 256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
        super().__init__(images, torch.arange(10), batch_size=4)
        self.stop_after, self.drawn = stop_after, 0

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        with super().epoch(epoch, start_step) as batches:
            yield self._counted(batches)

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.drawn == self.stop_after:
                raise KeyboardInterrupt
            self.drawn += 1
            yield batch


def test_features_are_the_inputs_of_the_classifier_and_are_extracted_once(tmp_path: Path) -> None:
    small, loader = Small(), Counting()
    for _ in range(2):
        features = extract(tmp_path / "a.npy", small, nullcontext(loader), "features")
        assert isinstance(features.values, np.memmap)
        assert features.labels.tolist() == list(range(10))
        with torch.no_grad():
            assert torch.equal(
                torch.from_numpy(np.array(features.values)), small.model.body(loader.images.float()).mean((2, 3))
            )
    assert loader.drawn == 3


def test_an_interrupted_extraction_is_resumed_where_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acdc_cli.transfer.features._EVERY_SECONDS", 0)
    small, whole = Small(), tmp_path / "whole.npy"
    expected = extract(whole, small, nullcontext(Counting()), "features")
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "a.npy", small, nullcontext(Counting(stop_after=2)), "features")
    rest = Counting()
    resumed = extract(tmp_path / "a.npy", small, nullcontext(rest), "features")
    assert rest.drawn == 1
    assert np.array_equal(resumed.values, expected.values)
    assert np.array_equal(resumed.labels, expected.labels)


def test_damaged_features_are_named(tmp_path: Path) -> None:
    extract(tmp_path / "a.npy", Small(), nullcontext(Counting()), "features")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(RunError, match=r"a\.npy is damaged .*; delete it"):
        extract(tmp_path / "a.npy", Small(), nullcontext(Counting()), "features")


def test_a_model_whose_last_linear_layer_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one vector per sample"):
        extract(tmp_path / "a.npy", Small(Net(repeated=True)), nullcontext(Counting()), "features")
    with pytest.raises(ModelError, match="no linear layer"):
        extract(tmp_path / "b.npy", Small(nn.Conv2d(3, 2, 2)), nullcontext(Counting()), "features")
