"""Perplexity, bits per character and entropy of predicted tokens, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.recipe.blocks.text import IGNORED
from acdc_cli.tasks.causal_lm import Task

HALVES = torch.tensor([0.5, 0.25, 0.25]).log()
"""The probabilities 1/2, 1/4, 1/4: an entropy of 3/2 bits."""
NAMES = ("a ", "the ", "\n")


def test_perplexity_and_bits_per_character() -> None:
    logits = HALVES.expand(2, 3, 3).clone()
    targets = torch.tensor([[0, 1, IGNORED], [2, IGNORED, IGNORED]])
    task = Task(names=NAMES)
    metrics = task.metrics({name: value.item() for name, value in task.sums(logits, targets).items()}, 2)
    # 1 + 2 + 2 bits for "a ", "the " and a line break: 7 characters
    assert metrics["loss"] == pytest.approx(5 / 3 * math.log(2))
    assert metrics["perplexity"] == pytest.approx(2 ** (5 / 3))
    assert metrics["bits_per_character"] == pytest.approx(5 / 7)
    assert metrics["entropy"] == pytest.approx(1.5 * math.log(2))
    assert (metrics["accuracy"], metrics["tokens"]) == (pytest.approx(1 / 3), 3)


def test_the_sums_of_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, generator=generator)
    targets = torch.randint(3, (4, 5), generator=generator)
    targets[3, 2:] = IGNORED
    task = Task(names=NAMES)
    whole, parts = task.sums(logits, targets), [task.sums(logits[rows], targets[rows]) for rows in ([0], [1, 2, 3])]
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in parts))


def test_the_loss_is_the_mean_over_predicted_tokens_also_of_an_adaptive_softmax() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, IGNORED, IGNORED]])
    picked = torch.stack(
        [logits.log_softmax(-1)[row, place, targets[row, place]] for row, place in ((0, 0), (0, 1), (0, 2), (1, 0))]
    )
    assert Task().loss(logits, targets).item() == pytest.approx(-picked.mean().item())
    of_targets = torch.zeros(2, 3)
    of_targets[0], of_targets[1, 0] = picked[:3], picked[3]
    assert Task().loss(of_targets, targets).item() == pytest.approx(-picked.mean().item())


def test_smoothing_changes_the_loss_and_not_the_unsmoothed_one() -> None:
    logits, targets = HALVES.expand(1, 2, 3), torch.tensor([[0, 1]])
    smooth = Task(TaskBlock(name="causal_lm", label_smoothing=0.3))
    # 0.7 of the target's and 0.1 of each token's surprise of 1, 2 and 2 bits
    assert smooth.loss(logits, targets).item() == pytest.approx(math.log(2) * (0.7 * 1.5 + 0.1 * 5))
    unsmoothed = smooth.unsmoothed_loss(logits, targets)
    assert unsmoothed is not None
    assert unsmoothed.item() == pytest.approx(1.5 * math.log(2))
    assert Task().unsmoothed_loss(logits, targets) is None


def test_a_certain_model_has_perplexity_one_and_no_entropy() -> None:
    logits = torch.tensor([[[0.0, -math.inf]]])
    task = Task(names=("x", "y"))
    metrics = task.metrics({name: value.item() for name, value in task.sums(logits, torch.tensor([[0]])).items()}, 1)
    assert (metrics["perplexity"], metrics["entropy"], metrics["bits_per_character"]) == (1, 0, 0)
    assert (
        task.metrics({"loss": 1e4, "tokens": 1, "entropy": 0, "accuracy": 0, "characters": 0}, 1)["perplexity"]
        == math.inf
    )
