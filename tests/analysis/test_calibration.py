"""How sure models are: by hand, against plain loops, and the same numbers as `acdc eval`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Acdc
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.analysis.calibration import Calibration, _summary, calibrate, difference, draw, measured, of_sums, sums
from acdc_cli.data.batches import Batch
from acdc_cli.errors import RunError
from acdc_cli.jobs.subjects import Asked, open_subjects
from acdc_cli.tasks.multiclass import Task
from acdc_cli.training.precision import Precision


class Images:
    """Nothing but numbers, in batches of three; they can end early as a killed process does."""

    def __init__(self, labels: list[int], dies_at: int | None = None) -> None:
        self.labels, self.dies_at = torch.tensor(labels), dies_at
        self.steps = -(-len(labels) // 3)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        yield self._batches(start_step)

    def _batches(self, start: int) -> Iterator[Batch]:
        for step in range(start, self.steps):
            if step == self.dies_at:
                raise KeyboardInterrupt
            part = torch.arange(len(self.labels))[3 * step : 3 * step + 3]
            yield Batch(part.view(-1, 1, 1, 1).to(torch.uint8), self.labels[part], part)


def model(logits: Tensor) -> Any:
    """Knows the logits of each image by its number."""
    return SimpleNamespace(
        forward=lambda images: logits[images.flatten().long()],
        precision=Precision("fp32", torch.device("cpu")),
        task=Task(),
    )


def of(logits: Tensor, labels: list[int], bins: int = 15) -> Calibration:
    return of_sums(sums(logits, torch.tensor(labels), Task(), bins))


def chances(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).log()


def test_measures_of_four_images_by_hand() -> None:
    # confidences 0.6 and 0.7 (bins 0.5 to 0.75), 0.8 and 1 (bin 0.75 to 1); the second is wrong
    logits = chances([0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [1.0, 0.0])
    logits[3] = torch.tensor([200.0, -200.0])
    measures = of(logits, [0, 0, 0, 0], bins=4)
    assert [each.count for each in measures.bins] == [0, 0, 2, 2]
    assert [(each.low, each.high) for each in measures.bins] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert (measures.bins[2].accuracy, measures.bins[3].accuracy) == (0.5, 1)
    assert measures.bins[2].confidence == pytest.approx(0.65)
    assert measures.bins[3].confidence == pytest.approx(0.9)
    assert math.isnan(measures.bins[0].accuracy)
    assert math.isnan(measures.bins[0].confidence)
    assert measures.ece == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)
    assert measures.mce == pytest.approx(0.15)
    assert (measures.samples, measures.accuracy) == (4, 0.75)
    assert measures.confidence == pytest.approx((0.6 + 0.7 + 0.8 + 1) / 4)
    assert measures.brier == pytest.approx((2 * 0.4**2 + 2 * 0.7**2 + 2 * 0.2**2 + 0) / 4)
    assert measures.nll == pytest.approx(-math.log(0.6 * 0.3 * 0.8) / 4)
    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in (0.6, 0.7, 0.8))
    assert measures.entropy == pytest.approx(entropy / 4)


@pytest.mark.parametrize(("classes", "bins", "at"), [(2, 2, 0), (5, 15, 2), (4, 4, 0), (2, 1, 0), (1, 15, 14)])
def test_a_confidence_on_an_edge_lies_in_the_bin_below(classes: int, bins: int, at: int) -> None:
    """Of equal logits it is 1 / classes exactly."""
    measures = of(torch.full((1, classes), 0.3), [0], bins)
    assert [each.count for each in measures.bins] == [int(each == at) for each in range(bins)]
    assert measures.confidence == measures.bins[at].confidence == 1 / classes


def test_extreme_logits_give_numbers() -> None:
    measures = of(torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]]), [0, 0])
    assert (measures.nll, measures.entropy, measures.brier) == (1000, 0, 1)
    assert (measures.ece, measures.mce, measures.confidence, measures.bins[-1].count) == (0.5, 0.5, 1, 2)


def test_one_model_differs_from_nothing() -> None:
    one = of(chances([0.6, 0.4]), [0])
    assert [row[0] for row in _summary({"a": one}, None, "top-1").rows] == ["a"]
    assert [row[0] for row in _summary({"a": one, "b": one}, difference(one, one), "top-1").rows] == [
        "a",
        "b",
        "difference",
    ]


def slowly(logits: Tensor, labels: list[int], bins: int) -> dict[str, float]:
    """The definitions, one image after another."""
    means = dict.fromkeys(("confidence", "nll", "entropy", "brier", "accuracy"), 0.0)
    sorted_in: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.double().tolist(), labels, strict=True):
        powers = [math.exp(value - max(row)) for value in row]
        p = [power / sum(powers) for power in powers]
        sure, right = max(p), p.index(max(p)) == label
        means["confidence"] += sure
        means["accuracy"] += right
        means["nll"] -= math.log(p[label])
        means["entropy"] -= sum(x * math.log(x) for x in p)
        means["brier"] += sum((x - (at == label)) ** 2 for at, x in enumerate(p))
        place = next(each for each in range(bins) if sure <= (each + 1) / bins)
        sorted_in.setdefault(place, []).append((sure, right))
    means = {key: value / len(labels) for key, value in means.items()}
    gaps = {at: abs(sum(right - sure for sure, right in each)) / len(each) for at, each in sorted_in.items()}
    means["ece"] = sum(len(each) / len(labels) * gaps[at] for at, each in sorted_in.items())
    means["mce"] = max(gaps.values())
    return means


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 30), st.floats(0.1, 10))
def test_measures_are_those_of_plain_loops_whatever_the_batches(
    seed: int, bins: int, samples: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, 5, generator=generator)
    labels = torch.randint(0, 5, (samples,), generator=generator).tolist()
    measures = calibrate(model(logits), Images(labels), bins)
    for key, value in slowly(logits, labels, bins).items():
        assert getattr(measures, key) == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert sum(each.count for each in measures.bins) == measures.samples == samples
    assert 0 <= measures.ece <= measures.mce <= 1


def test_an_interrupted_calibration_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    workspace = Workspace(tmp_path / "workspace", "a model", every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model(logits), Images(labels, dies_at=2), workspace=workspace)
    # an empty bin's means are NaN, which equals nothing but in its text
    assert repr(calibrate(model(logits), Images(labels), workspace=workspace)) == repr(
        calibrate(model(logits), Images(labels))
    )


def test_no_image_is_refused() -> None:
    with pytest.raises(RunError, match="no images to evaluate the model on"):
        calibrate(model(torch.zeros(1, 2)), Images([]))


def test_the_diagram_shows_filled_bins_over_their_numbers() -> None:
    measures = of(chances([0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.9, 0.1]), [0, 0, 0, 0], bins=4)
    reliability, counts = draw({"one": measures}).axes
    _, line = reliability.lines
    assert line.get_xdata() == pytest.approx([65, 85])
    assert line.get_ydata() == pytest.approx([50, 100])
    (steps,) = counts.patches
    assert steps.get_data().values.tolist() == [0, 0, 2, 2]


def test_differences_are_the_sparse_models_less_the_dense_ones() -> None:
    sure, unsure = of(chances([0.9, 0.1]), [0]), of(chances([0.6, 0.4]), [0])
    assert difference(sparse=unsure, dense=sure)["confidence"] == pytest.approx(-0.3)
    assert difference(sparse=unsure, dense=sure)["ece"] == pytest.approx(0.3)


def test_both_models_of_a_run_have_the_numbers_of_acdc_eval(acdc: Acdc, trained: Path, in_tmp: Path) -> None:
    result = acdc("analyze", "calibration", trained, "--set", "bins=5", "--set", "data.workers=0", "--out", "f")
    assert result.exit_code == 0, result.output
    assert "difference" in result.stdout
    results = json.loads(Path("f/calibration-small-0.json").read_text())["results"]
    models = results["models"]
    assert list(models) == ["small-0 (sparse)", "small-0 (dense)"]
    for kind in ("sparse", "dense"):
        judged = acdc("eval", "--checkpoint", trained, "--which", kind, "--set", "data.workers=0", "--json")
        expected = json.loads(judged.stdout)
        model = models[f"small-0 ({kind})"]
        assert (model["accuracy"], model["nll"], model["entropy"]) == tuple(
            expected[key] for key in ("top1", "loss", "entropy")
        )
        assert len(model["bins"]) == 5
    sparse, dense = models.values()
    assert results["sparse_minus_dense"]["entropy"] == sparse["entropy"] - dense["entropy"]
    with open("f/calibration-small-0-bins.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert sum(int(row["count"]) for row in rows) == 200


def test_each_of_several_runs_is_measured_once(trained: Path, other: Path) -> None:
    assert [each.name for each in measured(open_subjects([trained, other]))] == ["small-0", "small-1"]
    (dense,) = measured(open_subjects([trained], Asked(which="dense")))
    assert dense.name == "small-0 (dense)"
    (file,) = measured(open_subjects([trained / "sparse.safetensors"]))
    assert file.name == "small-0/sparse"
