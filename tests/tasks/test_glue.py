"""GLUE's tasks: the metrics of AC/DC++'s Table O.11, and what they are judged on."""

from __future__ import annotations

import math

import pytest
import torch

from acdc_cli.data.known_sentences import known_sentences
from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.sentences import SentencesBlock
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.tasks.base import registry
from acdc_cli.tasks.base.further import OnSplit
from acdc_cli.tasks.base.totals import fetched
from acdc_cli.tasks.glue import VARIANTS

METRICS = {
    "rte": ["accuracy"],
    "qnli": ["accuracy"],
    "mrpc": ["f1", "accuracy"],
    "sst2": ["accuracy"],
    "cola": ["matthews", "accuracy"],
    "stsb": ["pearson", "spearman"],
    "mnli": ["accuracy"],
    "qqp": ["accuracy", "f1"],
}


def test_they_measure_what_the_paper_lists_and_lead_with_its_first_metric() -> None:
    shown = {name: [task.measures.headline, *task.measures.more] for name, task in VARIANTS.items()}
    assert {name: [each.key for each in measures] for name, measures in shown.items()} == METRICS


def test_every_task_has_its_set_and_takes_no_other() -> None:
    for name, task in VARIANTS.items():
        block = SentencesBlock(name=name, batch_size=8, length=8, tokenizer="tokens")
        known = known_sentences()[name]
        assert list(task.check(block)) == []
        assert [key for key, *_ in task.check(block.model_copy(update={"name": "sentences"}))] == ["name"]
        assert (task.targets == "score") == (known.scores is not None)


def test_f1_is_no_share_of_answers() -> None:
    assert not VARIANTS["mrpc"].measures.headline.is_accuracy
    assert VARIANTS["rte"].measures.headline.is_accuracy


def test_a_score_is_learned_by_least_squares() -> None:
    task = VARIANTS["stsb"]()
    logits, targets = torch.tensor([[1.0], [4.5]]), torch.tensor([2.0, 4.0])
    assert task.loss(logits, targets).item() == pytest.approx((1 + 0.25) / 2)
    metrics = task.metrics(fetched(task.sums(logits, targets)), 2)
    assert metrics["loss"] == pytest.approx(0.625)
    assert metrics["pearson"] == pytest.approx(1)
    # of 4 and 5, which 4.5 lies between, each has about half of what the others leave
    weights = [math.exp(-((4.5 - score) ** 2) / 2) for score in range(6)]
    assert task.log_probabilities(logits)[1, 0].exp().tolist() == pytest.approx([w / sum(weights) for w in weights])
    assert task.truth(targets, 1).tolist() == [[2], [4]]


def test_a_score_takes_no_label_smoothing() -> None:
    with pytest.raises(RecipeError, match="label_smoothing"):
        registry.build(TaskBlock(name="glue/stsb", label_smoothing=0.1))


def test_metrics_on_a_further_split_have_its_name() -> None:
    task = VARIANTS["mnli"]()
    measure = OnSplit(task, "mismatched")
    logits, targets = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]]), torch.tensor([0, 2])
    metrics = measure.metrics(fetched(measure.sums(logits, targets)), 2)
    assert set(metrics) == set(measure.names) == {"loss/mismatched", "entropy/mismatched", "accuracy/mismatched"}
    assert metrics["accuracy/mismatched"] == 0.5


def test_a_task_without_its_variant_is_refused_with_the_variants() -> None:
    with pytest.raises(ValueError, match="glue/rte"):
        TaskBlock(name="glue")
