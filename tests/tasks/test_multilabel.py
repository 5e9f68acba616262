from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.data.labels import Labels
from acdc_cli.errors import RecipeError
from acdc_cli.jobs import setup
from acdc_cli.recipe.bearing import SAME_EXPERIMENT, bearing
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.recipe.load import load
from acdc_cli.tasks.multilabel import Task

LN9 = math.log(9)


def metrics(logits: torch.Tensor, targets: torch.Tensor, *names: str) -> dict[str, float]:
    task = Task(names=names)
    sums = task.sums(logits, targets)
    return task.metrics({name: value.item() for name, value in sums.items()}, len(targets))


def test_two_images_of_two_labels_by_hand() -> None:
    # probabilities 3/4, 1/4 and 1/2 + a little, 9/10 + a little; the labels are yes, yes and no, yes
    logits = torch.tensor([[math.log(3), -math.log(3)], [1e-6, LN9 + 1e-3]])
    measures = metrics(logits, torch.tensor([0b11, 0b10]), "a", "b")
    by_hand = (math.log(4 / 3) + math.log(4) + math.log(2) + math.log(10 / 9)) / 4
    assert measures["loss"] == pytest.approx(by_hand, abs=1e-4)
    # right: a of the first, b of the second; a of the second says yes
    assert (measures["accuracy"], measures["accuracy/a"], measures["accuracy/b"]) == (0.5, 0.5, 0.5)
    assert measures["uncertainty"] == 0.75
    assert tuple(measures) == ("loss", "uncertainty", "accuracy", "accuracy/a", "accuracy/b")


def test_a_prediction_is_uncertain_between_a_tenth_and_nine_tenths() -> None:
    inside, outside = LN9 * (1 - 1e-6), LN9 * (1 + 1e-6)
    logits = torch.tensor([[inside, -inside, outside, -outside, 0.0, 1000.0]])
    assert metrics(logits, torch.tensor([0]))["uncertainty"] == 0.5


def test_targets_above_the_threshold_are_yes_in_training_only() -> None:
    logits, shares = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.3, 0.2]])
    task = Task(TaskBlock(name="multilabel", loss="binary", target_threshold=0.2))
    # yes and no: 0.2 is not above
    assert task.loss(logits, shares).item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    unsmoothed = task.unsmoothed_loss(logits, shares)
    assert unsmoothed is not None
    by_hand = (math.log(2) + 0.2 * math.log(4 / 3) + 0.8 * math.log(4)) / 2
    assert unsmoothed.item() == pytest.approx(by_hand, rel=1e-6)


def test_logits_of_a_thousand_stay_numbers() -> None:
    measures = metrics(torch.tensor([[1000.0, -1000.0]]), torch.tensor([0b10]))
    assert (measures["loss"], measures["accuracy"]) == (1000, 0)


def test_label_smoothing_spreads_a_share_over_yes_and_no_in_training_only() -> None:
    logits, targets = torch.tensor([[math.log(3)]]), torch.tensor([1])
    task = Task(TaskBlock(name="multilabel", label_smoothing=0.2))
    # the target is 0.9
    assert task.loss(logits, targets).item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4), rel=1e-6)
    unsmoothed = task.unsmoothed_loss(logits, targets)
    assert unsmoothed is not None
    assert unsmoothed.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert Task().unsmoothed_loss(logits, targets) is None


@given(st.integers(1, 63), st.integers(0, 1000))
def test_the_loss_is_torch_s_on_rows_of_zeros_and_ones_and_batches_add_up(labels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 2, (5, labels), generator=generator)
    logits = 4 * torch.randn(5, labels, generator=generator)
    targets = (rows << torch.arange(labels)).sum(dim=1)
    expected = F.binary_cross_entropy_with_logits(logits.double(), rows.double()).item()
    assert Task().loss(logits, targets).item() == pytest.approx(expected, rel=1e-4)
    whole = metrics(logits, targets)
    parts = [metrics(logits[part], targets[part]) for part in (slice(0, 2), slice(2, 5))]
    for key, value in whole.items():
        assert value == pytest.approx((2 * parts[0][key] + 3 * parts[1][key]) / 5, rel=1e-6)
    assert whole["accuracy"] == pytest.approx(float(((logits > 0) == rows.bool()).double().mean()))


def test_each_label_is_a_decision_between_no_and_yes() -> None:
    task, logits = Task(names=("a", "b")), torch.tensor([[2.0, -1.0]])
    assert task.log_probabilities(logits).exp()[0, 0].tolist() == pytest.approx(
        [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]
    )
    assert task.answers(logits).tolist() == [[1, 0]]
    assert task.truth(torch.tensor([0b10]), 2).tolist() == [[0, 1]]
    assert (task.decisions(2), task.options(2)) == (("a", "b"), ("no", "yes"))


def test_wrong_labels_for_memorisation_are_refused_with_the_key() -> None:
    with pytest.raises(RecipeError, match=r"data.corrupt_labels: .*a multilabel image has none") as refused:
        load("demo_corrupt_labels", ["task.name=multilabel"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("task", "kind", "other"), [("multiclass", "bits", "multilabel"), ("multilabel", "class", "multiclass")]
)
def test_a_set_with_other_targets_is_refused_with_the_task_that_fits(task: str, kind: str, other: str) -> None:
    recipe = load("demo_multilabel", [f"task.name={task}", "device=cpu"])
    with pytest.raises(RecipeError, match=rf"task.name: {task} does not fit .*take {other}"):
        setup.build(recipe, Labels(("a", "b"), kind))  # type: ignore[arg-type]


def test_a_recipe_with_the_task_s_older_name_is_the_same_recipe() -> None:
    older = load("demo", ["task.name=classification"])
    assert older == load("demo")
    values = older.as_dict()
    assert values["task"]["name"] == "multiclass"
    before = values | {"task": values["task"] | {"name": "classification"}}
    assert bearing(before, SAME_EXPERIMENT) == bearing(values, SAME_EXPERIMENT)
