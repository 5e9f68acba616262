"""Two models on the same images: measures by hand and against plain loops, loaders that differ, the command."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Acdc
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import InMemory
from torch import Tensor

from acdc_cli.analysis import agreement
from acdc_cli.analysis.agreement import draw_differences, partners
from acdc_cli.analysis.base.outputs import Pairs, compare, mcnemar, of_sums, same_images, sums
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.data.batches import Batch
from acdc_cli.errors import DataError, RunError
from acdc_cli.jobs.subjects import Asked, Checkpoint, open_subjects
from acdc_cli.runs.run_dir import Kept, open_run
from acdc_cli.tasks import multilabel
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training.precision import Precision

CPU = torch.device("cpu")
NINE = 9


class Drawn(InMemory):
    """Nine images, each nothing but its number, in batches of any size; it can end early as a killed process does."""

    def __init__(self, batch_size: int, labels: list[int], dies_at: int | None = None) -> None:
        super().__init__(torch.arange(NINE, dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels), batch_size)
        self.dies_at = dies_at
        self.drawn: list[int] = []

    def batch(self, part: Tensor) -> Batch:
        step = int(part[0]) // self.batch_size
        if step == self.dies_at:
            raise KeyboardInterrupt
        self.drawn.append(step)
        return super().batch(part)


def model(logits: Tensor) -> Any:
    """Knows the logits of each image by its number."""
    return SimpleNamespace(
        forward=lambda images: logits[images.flatten().long()], precision=Precision("fp32", CPU), task=Classification()
    )


def random_logits(seed: int, classes: int = 4) -> Tensor:
    return 3 * torch.randn(NINE, classes, generator=torch.Generator().manual_seed(seed))


LABELS = [0, 1, 2, 3, 0, 1, 2, 3, 0]


def slowly(a: Tensor, b: Tensor, labels: list[int]) -> dict[str, Any]:
    """The definitions, one image and one class after another."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value - max(row)) for value in row]
        return [power / sum(powers) for power in powers]

    totals: dict[str, Any] = dict.fromkeys(
        ("agreement", "cross_entropy_ab", "cross_entropy_ba", "kl_ab", "kl_ba", "both", "a", "b", "neither"), 0.0
    )
    differences: dict[tuple[int, int], int] = {}
    for row_a, row_b, label in zip(a.tolist(), b.tolist(), labels, strict=True):
        p, q = softmax(row_a), softmax(row_b)
        says_a, says_b = p.index(max(p)), q.index(max(q))
        totals["agreement"] += says_a == says_b
        totals["cross_entropy_ab"] += sum(-x * math.log(y) for x, y in zip(p, q, strict=True))
        totals["cross_entropy_ba"] += sum(-y * math.log(x) for x, y in zip(p, q, strict=True))
        totals["kl_ab"] += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        totals["kl_ba"] += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        right = {(True, True): "both", (True, False): "a", (False, True): "b", (False, False): "neither"}
        totals[right[says_a == label, says_b == label]] += 1
        if says_a != says_b:
            differences[says_a, says_b] = differences.get((says_a, says_b), 0) + 1
    for key in ("agreement", "cross_entropy_ab", "cross_entropy_ba", "kl_ab", "kl_ba"):
        totals[key] /= len(labels)
    return {**totals, "differences": differences}


def test_measures_of_two_images_by_hand() -> None:
    # A: (1/2, 1/2) and (3/4, 1/4); B: (1/4, 3/4) and (3/4, 1/4)
    a = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    a[0, 0] += 1e-6
    b = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log()
    measures, differences = of_sums(sums(a, b, torch.tensor([0, 1]), Classification()))
    same = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert measures.cross_entropy_ab == pytest.approx((-0.5 * math.log(0.25 * 0.75) + same) / 2, abs=1e-6)
    assert measures.cross_entropy_ba == pytest.approx((math.log(2) + same) / 2, abs=1e-6)
    assert measures.kl_ab == pytest.approx((-0.5 * math.log(0.25 * 0.75) - math.log(2)) / 2, abs=1e-6)
    assert measures.kl_ba == pytest.approx((math.log(2) - same) / 2, abs=1e-6)
    assert (measures.samples, measures.agreement, measures.accuracy_a, measures.accuracy_b) == (2, 0.5, 0.5, 0.0)
    assert (measures.both_right, measures.only_a_right, measures.only_b_right, measures.both_wrong) == (0, 1, 0, 1)
    assert differences == [(0, 1, 0, 1)]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 12))
def test_measures_are_those_of_plain_loops_whatever_the_batches(seed_a: int, seed_b: int, batch_size: int) -> None:
    a, b = random_logits(seed_a), random_logits(seed_b)
    measures, differences = compare(model(a), model(b), Pairs(Drawn(batch_size, LABELS)))
    expected = slowly(a, b, LABELS)
    for key in ("agreement", "cross_entropy_ab", "cross_entropy_ba", "kl_ab", "kl_ba"):
        assert getattr(measures, key) == pytest.approx(expected[key], rel=1e-9, abs=1e-12)
    counts = (measures.both_right, measures.only_a_right, measures.only_b_right, measures.both_wrong)
    assert counts == (expected["both"], expected["a"], expected["b"], expected["neither"])
    assert {(x, y): count for x, y, _, count in differences} == expected["differences"]
    assert [count for *_, count in differences] == sorted(expected["differences"].values(), reverse=True)
    assert measures.accuracy_a == (expected["both"] + expected["a"]) / NINE
    assert measures.accuracy_b == (expected["both"] + expected["b"]) / NINE


def test_extreme_logits_give_numbers() -> None:
    a, b = torch.tensor([[1000.0, -1000.0], [1000.0, -1000.0]]), torch.tensor([[-1000.0, 1000.0], [1000.0, -1000.0]])
    measures, _ = of_sums(sums(a, b, torch.tensor([0, 0]), Classification()))
    assert (measures.cross_entropy_ab, measures.cross_entropy_ba, measures.kl_ab, measures.kl_ba) == (
        1000,
        1000,
        1000,
        1000,
    )


def test_a_model_agrees_with_itself() -> None:
    logits = random_logits(0)
    measures, differences = compare(model(logits), model(logits), Pairs(Drawn(4, LABELS)))
    entropy = float(Classification().sums(logits, torch.tensor(LABELS))["entropy"]) / NINE
    assert (measures.agreement, measures.kl_ab, measures.kl_ba, measures.mcnemar_p, differences) == (1, 0, 0, 1, [])
    assert measures.cross_entropy_ab == measures.cross_entropy_ba == pytest.approx(entropy, rel=1e-6)


def test_tied_classes_are_broken_as_acdc_eval_does() -> None:
    logits = torch.zeros(64, 1000)
    labels = Classification().answers(logits)[:, 0]
    assert float(Classification().sums(logits, labels)["top1"]) == 64


def test_mcnemar_is_the_binomial_test_of_a_half() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    # five of five heads, or five tails
    assert mcnemar(5, 0) == mcnemar(0, 5) == 2 / 32
    # at most one of six
    assert mcnemar(1, 5) == 2 * (1 + 6) / 64
    for a, b in ((2, 7), (4, 5), (12, 3)):
        tail = sum(math.comb(a + b, each) for each in range(min(a, b) + 1))
        assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail / 2 ** (a + b)))
    assert 0 <= mcnemar(2000, 20_000) < 1e-300


def test_an_interrupted_comparison_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    first, second = model(random_logits(1)), model(random_logits(2))
    workspace = Workspace(tmp_path / "workspace", "two models", every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        compare(first, second, Pairs(Drawn(2, LABELS, dies_at=3), Drawn(2, LABELS)), workspace)
    rest = Drawn(2, LABELS), Drawn(2, LABELS)
    assert compare(first, second, Pairs(*rest), workspace) == compare(first, second, Pairs(Drawn(2, LABELS)))
    assert (rest[0].drawn, rest[1].drawn) == ([3, 4], [3, 4])


def test_other_images_are_refused() -> None:
    first, second = model(random_logits(1)), model(random_logits(2))
    few, turned = Drawn(3, LABELS), Drawn(3, LABELS)
    few.samples, turned.order = 8, lambda epoch: torch.arange(NINE).flip(0)
    with pytest.raises(DataError, match="one model would be evaluated on 9 images, the other on 8"):
        Pairs(Drawn(3, LABELS), few)
    with pytest.raises(DataError, match="in different orders"):
        compare(first, second, Pairs(Drawn(3, LABELS), turned))
    with pytest.raises(DataError, match="2 images have one label"):
        compare(first, second, Pairs(Drawn(3, LABELS), Drawn(3, [1, *LABELS[1:-1], 1])))
    with pytest.raises(RunError, match="one model has 4 classes, the other 3"):
        compare(first, model(random_logits(2, classes=3)), Pairs(Drawn(3, LABELS)))
    few.steps = 0
    with pytest.raises(DataError, match="there are no images to evaluate on"):
        compare(first, second, Pairs(few))


def test_models_of_different_tasks_are_not_compared() -> None:
    first, second = model(random_logits(1)), model(random_logits(1))
    second.task = multilabel.Task(names=("a", "b"))
    with pytest.raises(RunError, match="the models were trained for different tasks"):
        compare(first, second, Pairs(Drawn(3, LABELS)))


def kept(*epochs: tuple[int, str]) -> list[Kept]:
    return [Kept(epoch, kind, Path(Kept.name(epoch, kind))) for epoch, kind in epochs]


def test_each_kept_model_meets_the_latest_of_the_other_kind() -> None:
    models = kept((0, "dense"), (1, "ramp"), (2, "sparse"), (3, "sparse"), (4, "dense"), (6, "dense"), (7, "sparse"))
    pairs = [(each.epoch, other.epoch) for each, other in partners(models)]
    assert pairs == [(2, 0), (3, 0), (4, 3), (6, 3), (7, 6)]
    assert partners(kept((0, "dense"), (1, "dense"))) == []


def test_a_map_of_many_classes_shows_those_that_differ_most() -> None:
    names = [f"class {each}" for each in range(200)]
    # and of 80 classes that differ in one image, some
    differences = [(150, 151, 0, 9), (3, 150, 0, 2), *((each, each + 1, 0, 1) for each in range(20, 100, 2))]
    (panel, *_) = draw_differences("a", {"b": differences}, names).axes
    shown = [label.get_text() for label in panel.get_xticklabels()]
    assert len(shown) == 30
    assert {"class 3", "class 150", "class 151"} <= set(shown)
    cells = panel.images[0].get_array()
    assert cells[shown.index("class 150"), shown.index("class 151")] == 9
    assert 11 < cells.sum() < 11 + 40


def test_each_model_has_a_map_and_what_is_left_of_the_last_row_is_empty() -> None:
    maps = draw_differences("a", {key: [(0, 1, 0, 1)] for key in "bcde"}, ["x", "y"]).axes[:6]
    assert [each.get_xlabel() for each in maps] == [*(f"class by B: {name}" for name in "bcde"), "", ""]
    assert [each.axison for each in maps] == [True] * 4 + [False] * 2


def in_batches_of(subject: Checkpoint, size: int, **data: Any) -> Checkpoint:
    block = subject.recipe.data.model_copy(update={"val_batch_size": size, **data})
    return replace(subject, recipe=subject.recipe.model_copy(update={"data": block}))


def test_batch_sizes_and_crops_may_differ(trained: Path, other: Path) -> None:
    first, second = open_subjects([trained, other])
    with same_images(first, second) as images:
        expected = compare(first.load(), second.load(), images)
        assert images.steps == 4
    with same_images(in_batches_of(first, 64), in_batches_of(second, 40)) as images:
        assert images.steps == 3
        measures = compare(first.load(), second.load(), images)
    assert measures[0].cross_entropy_ab == pytest.approx(expected[0].cross_entropy_ab, rel=1e-5)
    assert (measures[0].both_right, measures[1]) == (expected[0].both_right, expected[1])
    small = in_batches_of(second, 30, val_resize=4, val_crop=4)
    with same_images(first, small) as images, images.epoch(0) as drawn:
        sides = [[batch.inputs.shape[-1] for batch in pair] for pair in drawn]
    assert sides == 4 * [[5, 4]]


def test_sets_of_other_classes_are_refused(trained: Path, few_digits: Path, tmp_path: Path) -> None:
    (first,) = open_subjects([trained])
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number, folder in enumerate(sorted((few_digits / split).iterdir())):
            (tmp_path / split / f"digit {number}").symlink_to(folder)
    with (
        pytest.raises(DataError, match=r"10 classes \(0, 1, 2, 3, 4, …\).*10 classes \(digit 0, "),
        same_images(first, in_batches_of(first, 30, path=str(tmp_path))),
    ):
        pass
    # one that is named for both serves both
    first, second = open_subjects([trained, trained / "dense.safetensors"], Asked(data=str(tmp_path)))
    assert second.data.class_names[1] == "digit 1"
    with same_images(first, second) as images:
        assert images.samples == 100


def test_the_pair_of_a_run_is_compared_at_the_end_and_over_epochs(acdc: Acdc, trained: Path, in_tmp: Path) -> None:
    result = acdc("analyze", "agreement", trained, "--set", "data.workers=0", "--out", "found", "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    (pair,) = results["pairs"]
    assert (pair["a"], pair["b"], pair["samples"]) == ("small-0 (sparse)", "small-0 (dense)", 100)
    # as validation found when the two were trained
    *_, dense, sparse = open_run(trained).records()
    assert (pair["accuracy_a"], pair["accuracy_b"]) == (sparse["top1"], dense["top1"])
    differences = pair["most_frequent_differences"]
    assert sum(count for *_, count in differences) == round(100 * (1 - pair["agreement"]))
    epochs = results["epochs"]
    assert [(row["epoch"], row["kind"], row["against"]) for row in epochs] == [
        (1, "sparse", 0),
        (2, "dense", 1),
        (3, "sparse", 2),
        (4, "dense", 3),
        (5, "sparse", 4),
    ]
    # the last two are those that the run ended with
    assert {key: epochs[-1][key] for key in ("agreement", "kl_ab", "cross_entropy_ba")} == {
        key: pair[key] for key in ("agreement", "kl_ab", "cross_entropy_ba")
    }
    ends = ("json", "csv", "-differences.csv", "-epochs.csv", "png", "svg", "-epochs.png", "-epochs.svg")
    names = {f"agreement-small-0{end if end.startswith('-') else f'.{end}'}" for end in ends}
    assert {path.name for path in Path("found").iterdir()} == names


@pytest.mark.slow
def test_several_models_are_compared_with_the_first(acdc: Acdc, trained: Path, other: Path, in_tmp: Path) -> None:
    file = trained / "dense.safetensors"
    options = "--set", "split=train", "--set", "data.workers=0"
    result = acdc("analyze", "agreement", trained, other, file, *options, "--out", "found")
    assert result.exit_code == 0, result.output
    (path,) = (path for path in Path("found").glob("*.csv") if "differences" not in path.name)
    with path.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["a"], row["b"], row["samples"]) for row in rows] == [
        ("few0/small-0", "few0/small-1", "200"),
        ("few0/small-0", "small-0/dense", "200"),
    ]


def test_which_chooses_the_first_of_a_pair(trained: Path) -> None:
    (subject,) = open_subjects([trained])
    names = [each.name for each in agreement.both_of(subject.of("dense"))]
    assert names == ["small-0 (dense)", "small-0 (sparse)"]


def test_a_run_with_one_model_is_told_that_another_run_would_do(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("dense.safetensors"))
    result = acdc("analyze", "agreement", bare)
    assert result.exit_code == 2
    assert "has no dense model" in " ".join(result.stderr.split())
    assert "name a second run or file after bare" in " ".join(result.stderr.split())


def test_one_file_alone_is_refused(acdc: Acdc, trained: Path) -> None:
    result = acdc("analyze", "agreement", trained / "dense.safetensors")
    assert result.exit_code == 2
    assert "name a run directory, which holds both models" in " ".join(result.stderr.split())
