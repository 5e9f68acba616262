from __future__ import annotations

import math

import pytest
import torch

from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.tasks.multiclass import Task as Classification


def metrics(logits: list[list[float]], labels: list[int]) -> dict[str, float]:
    task = Classification()
    sums = task.sums(torch.tensor(logits), torch.tensor(labels))
    return task.metrics({name: value.item() for name, value in sums.items()}, len(labels))


def test_uniform_logits_have_the_entropy_and_loss_of_log_classes() -> None:
    measures = metrics([[0.0, 0.0, 0.0, 0.0]], [2])
    assert measures["entropy"] == pytest.approx(math.log(4), rel=1e-6)
    assert measures["loss"] == pytest.approx(math.log(4), rel=1e-6)


def test_two_classes_by_hand() -> None:
    # probabilities 3/4 and 1/4
    measures = metrics([[math.log(3), 0.0], [math.log(3), 0.0]], [0, 1])
    assert measures["loss"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)
    assert measures["entropy"] == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4), rel=1e-6)
    assert measures["top1"] == 0.5


def test_logits_of_a_thousand_stay_numbers() -> None:
    measures = metrics([[1000.0, -1000.0, 0.0]], [1])
    assert measures["entropy"] == 0
    assert measures["loss"] == 2000


def test_top5_counts_the_label_among_the_five_largest() -> None:
    logits = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 3
    measures = metrics(logits, [0, 4, 5])
    assert measures["top1"] == pytest.approx(1 / 3)
    assert measures["top5"] == pytest.approx(2 / 3)


def test_with_fewer_than_five_classes_top5_is_one() -> None:
    assert metrics([[1.0, 0.0]], [1])["top5"] == 1


def test_label_smoothing_bears_on_the_training_loss_only() -> None:
    logits, labels = torch.tensor([[math.log(3), 0.0]]), torch.tensor([0])
    task = Classification(TaskBlock(label_smoothing=0.2))
    # the target is (0.9, 0.1)
    by_hand = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert task.loss(logits, labels).item() == pytest.approx(by_hand, rel=1e-6)
    assert task.sums(logits, labels)["loss"].item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_bfloat16_logits_are_judged_in_float32() -> None:
    logits = torch.zeros(1, 10, dtype=torch.bfloat16)
    assert Classification().loss(logits, torch.tensor([3])).item() == pytest.approx(math.log(10), rel=1e-6)


SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.1, 0.9]])
LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_mixed_targets_is_the_mean_of_the_losses_of_their_classes(smoothing: float) -> None:
    task = Classification(TaskBlock(label_smoothing=smoothing))
    expected = 0.0
    for image in range(2):
        for label in range(3):
            single = task.loss(LOGITS[image : image + 1], torch.tensor([label])).item()
            expected += SOFT[image, label].item() * single / 2
    assert task.loss(LOGITS, SOFT).item() == pytest.approx(expected, rel=1e-6)
    unsmoothed = task.unsmoothed_loss(LOGITS, SOFT)
    assert (unsmoothed is None) == (smoothing == 0)
    if unsmoothed is not None:
        assert unsmoothed.item() == pytest.approx(Classification().loss(LOGITS, SOFT).item(), rel=1e-6)


def binary_by_hand(targets: list[list[float]]) -> float:
    losses = []
    for image, row in enumerate(targets):
        for label, target in enumerate(row):
            yes = 1 / (1 + math.exp(-LOGITS[image, label].item()))
            losses.append(-target * math.log(yes) - (1 - target) * math.log(1 - yes))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("keys", "targets", "expected"),
    [
        ({}, torch.tensor([2, 0]), [[0, 0, 1], [1, 0, 0]]),
        ({}, SOFT, [[0.7, 0.3, 0], [0, 0.1, 0.9]]),
        # t + 0.3 (1/3 - t)
        ({"label_smoothing": 0.3}, SOFT, [[0.59, 0.31, 0.1], [0.1, 0.17, 0.73]]),
        ({"target_threshold": 0.2}, SOFT, [[1, 1, 0], [0, 0, 1]]),
        ({"target_threshold": 0.15, "label_smoothing": 0.3}, SOFT, [[1, 1, 0], [0, 1, 1]]),
    ],
)
def test_a_binary_loss_asks_of_each_class_whether_it_is_there(
    keys: dict[str, float], targets: torch.Tensor, expected: list[list[float]]
) -> None:
    task = Classification(TaskBlock(loss="binary", **keys))
    assert task.loss(LOGITS, targets).item() == pytest.approx(binary_by_hand(expected), rel=1e-5)
    # what is recorded beside it is comparable with the validation loss
    unsmoothed = task.unsmoothed_loss(LOGITS, targets)
    assert unsmoothed is not None
    assert unsmoothed.item() == pytest.approx(Classification().loss(LOGITS, targets).item(), rel=1e-6)
