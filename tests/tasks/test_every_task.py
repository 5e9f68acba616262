"""Every task keeps the contract of `tasks/base/abstract_task.py`, whatever its metrics are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from acdc_cli.data.labels import KINDS
from acdc_cli.recipe.blocks.task import TaskBlock, task_names
from acdc_cli.tasks.base import registry
from acdc_cli.tasks.base.totals import combined, fetched

OUTPUTS, IMAGES, LENGTH = 6, 40, 5
NAMES = tuple(f"output {number}" for number in range(OUTPUTS))


@pytest.fixture(params=task_names())
def name(request: pytest.FixtureRequest) -> str:
    wanted: str = request.param
    return wanted


@pytest.fixture
def task(name: str) -> Any:
    return registry.build(TaskBlock(name=name), NAMES)


@pytest.fixture
def batch(task: Any) -> tuple[Tensor, Tensor]:
    """Logits and targets. Each token of a text is a sample."""
    random = torch.Generator().manual_seed(0)
    shape = (IMAGES, LENGTH) if task.inputs == "text" else (IMAGES,)
    target_count = 2**OUTPUTS if task.targets == "bits" else OUTPUTS
    targets = torch.randint(target_count, shape, generator=random)
    if task.targets == "score":
        return 3 * torch.randn(*shape, 1, generator=random), targets.float()
    return 3 * torch.randn(*shape, OUTPUTS, generator=random), targets


def samples(task: Any) -> int:
    return IMAGES * LENGTH if task.inputs == "text" else IMAGES


def test_there_is_a_task_for_each_kind_of_targets() -> None:
    kinds = {registry.build(TaskBlock(name=name)).targets for name in task_names()}
    assert kinds == set(KINDS)


def test_metrics_are_those_that_it_names(task: Any, batch: tuple[Tensor, Tensor]) -> None:
    metrics = task.metrics(fetched(task.sums(*batch)), IMAGES)
    assert set(metrics) == set(task.names)
    assert {"loss", *(each.key for each in task.measures.all)} <= set(task.names)
    assert all(0 <= metrics[each.key] <= 1 for each in task.measures.all if each.unit == "%")


def test_sums_of_parts_are_the_sums_of_the_whole(task: Any, batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    whole, first, rest = (task.sums(logits[part], targets[part]) for part in (slice(None), slice(7), slice(7, None)))
    for key, total in whole.items():
        assert total.dtype == torch.float64
        torch.testing.assert_close(combined(first, rest)[key], total, rtol=1e-6, atol=0)


def test_a_headline_in_percent_is_the_share_of_right_answers(task: Any, batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    answers, truth = task.answers(logits), task.truth(targets, OUTPUTS)
    assert answers.dtype == truth.dtype == torch.int64
    assert answers.shape == truth.shape == (samples(task), len(task.decisions(OUTPUTS)))
    metrics = task.metrics(fetched(task.sums(*batch)), IMAGES)
    if task.measures.headline.is_accuracy:
        assert metrics[task.measures.headline.key] == pytest.approx(float((answers == truth).double().mean()))
    assert metrics[task.measures.confidence.key] == pytest.approx(
        float(task.undecided(logits).double().mean()), rel=1e-6
    )


def test_answers_are_the_likeliest_options(task: Any, batch: tuple[Tensor, Tensor]) -> None:
    logits, _ = batch
    log_probabilities = task.log_probabilities(logits)
    assert log_probabilities.shape == (samples(task), len(task.decisions(OUTPUTS)), len(task.options(OUTPUTS)))
    torch.testing.assert_close(log_probabilities.exp().sum(dim=2), torch.ones(log_probabilities.shape[:2]))
    assert torch.equal(log_probabilities.argmax(dim=2), task.answers(logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_a_scalar_that_trains_and_the_unsmoothed_one_has_no_gradient(
    name: str, batch: tuple[Tensor, Tensor], smoothing: float
) -> None:
    logits, targets = batch
    if smoothing and targets.is_floating_point():
        pytest.skip("a score has no label that could be smoothed")
    task = registry.build(TaskBlock(name=name, label_smoothing=smoothing), NAMES)
    logits.requires_grad_()
    loss, plain = task.loss(logits, targets), task.unsmoothed_loss(logits, targets)
    assert loss.shape == ()
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.count_nonzero()
    assert plain is not None or not smoothing
    if plain is not None:
        assert plain.shape == ()
        assert not plain.requires_grad
