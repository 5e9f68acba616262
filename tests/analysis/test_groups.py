"""Rates by label and by group of images, and their bootstrap intervals."""

from __future__ import annotations

import csv
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Acdc
from fixed_images import FixedImages, small_bench
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from acdc_cli.analysis.base.group_file import read_groups
from acdc_cli.analysis.base.judgements import Judgements, judge, require_same_images
from acdc_cli.analysis.base.resampling import estimates, rates
from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.analysis.groups import Options, compare, draw, groups_of
from acdc_cli.errors import DataError, RunError
from acdc_cli.jobs.setup import ReadyModel
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.tasks import multiclass, multilabel


def judged(answers: list[list[int]], truth: list[list[int]], options: int = 2) -> Judgements:
    shape = np.array(answers)
    return Judgements(np.arange(len(answers)), shape, np.array(truth), (shape == 1).astype(float), options)


#             a  b        a  b
ANSWERS = [[1, 0], [0, 0], [1, 1], [1, 0]]
TRUTH = [[1, 1], [1, 0], [0, 1], [0, 0]]
ONCE = np.ones((1, 4))


def test_rates_of_four_images_and_two_labels_by_hand() -> None:
    rates_of_images = rates(judged(ANSWERS, TRUTH).of(np.ones(4, bool)), ONCE)
    # a: right, wrong, wrong, wrong; b: wrong, right, right, right. The mean comes first
    assert rates_of_images["accuracy"].tolist() == [[0.5, 0.25, 0.75]]
    # a is absent from two images and found in both; b is absent from two and found in none
    assert rates_of_images["false_positive_rate"].tolist() == [[0.5, 1.0, 0.0]]
    # a is in two images and missed in one, b in two and missed in one
    assert rates_of_images["false_negative_rate"].tolist() == [[0.5, 0.5, 0.5]]
    assert rates_of_images["undecided"].tolist() == [[0.5, 0.75, 0.25]]


def test_a_rate_without_such_images_is_undefined_and_left_out_of_the_mean() -> None:
    rates_of_images = rates(judged([[1, 0], [0, 0]], [[1, 1], [1, 0]]).of(np.ones(2, bool)), np.ones((1, 2)))
    mean, of_a, of_b = rates_of_images["false_positive_rate"][0].tolist()
    assert (mean, np.isnan(of_a), of_b) == (0, True, 0)
    columns = {"m": judged([[1, 0]], [[1, 1]]).of(np.ones(1, bool))}
    ((own, _),) = estimates(columns, 1, 10, 0.95, np.random.default_rng(0)).values()
    assert own["false_positive_rate"] == [None, None, None]


def test_groups_are_the_images_with_and_without_a_label() -> None:
    task = multilabel.Task(names=("a", "b"))
    groups = groups_of(judged(ANSWERS, TRUTH), task, 2, Options(by=["b"]))
    assert {name: members.tolist() for name, members in groups.items()} == {
        "all images": [True] * 4,
        "b: no": [False, True, False, True],
        "b: yes": [True, False, True, False],
    }
    with pytest.raises(RunError, match=r"by: the set has no 'c', only a, b"):
        groups_of(judged(ANSWERS, TRUTH), task, 2, Options(by=["c"]))


def test_the_groups_of_a_multiclass_set_are_its_classes_by_default() -> None:
    each = judged([[0], [2], [2]], [[0], [1], [2]], options=3)
    task = multiclass.Task(names=("x", "y", "z"))
    groups = groups_of(each, task, 3, Options())
    assert list(groups) == ["all images", "x", "y", "z"]
    accuracies = {row.group: row.values["accuracy"].value for row in compare({"m": each}, groups, ("",), Options())}
    assert accuracies == {"all images": pytest.approx(2 / 3), "x": 1, "y": 0, "z": 1}
    assert list(groups_of(each, task, 3, Options(by=["y"]))) == ["all images", "y"]


def test_the_groups_of_a_file_stand_in_place_of_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("index,age\n0,old\n1,young\n2,old\n")
    each, task = judged([[0], [2], [2]], [[0], [1], [2]], options=3), multiclass.Task(names=("x", "y", "z"))
    members_of = groups_of(each, task, 3, Options(file=str(path)))
    assert {name: members.tolist() for name, members in members_of.items()} == {
        "all images": [True, True, True],
        "age: old": [True, False, True],
        "age: young": [False, True, False],
    }
    assert list(groups_of(each, task, 3, Options(file=str(path), by=["y"]))) == [
        "all images",
        "y",
        "age: old",
        "age: young",
    ]


@pytest.mark.parametrize("level", [0, 1, 95])
def test_the_level_of_an_interval_is_a_share(level: float) -> None:
    with pytest.raises(ValidationError, match=f"level: expected a share between 0 and 1, found {level}"):
        Options(level=level)


class Judged:
    """A subject of three classes, whose images are shown to it once; `steps`: batches of 4."""

    name, digest = "m", "0"

    def __init__(self, samples: int) -> None:
        self.loader, self.shown = FixedImages(samples, 4), 0

    def images(self, split: str) -> AbstractContextManager[FixedImages]:
        return nullcontext(self.loader)

    def load(self) -> ReadyModel:
        self.shown += 1
        return small_bench()


def test_images_are_judged_once_in_an_analysis_that_is_interrupted(tmp_path: Path) -> None:
    subject: Any = Judged(9)
    workspace = Workspace(tmp_path / "workspace", "a model")
    first, again = (judge(subject, "val", workspace) for _ in range(2))
    assert subject.shown == 1
    assert first.indices.tolist() == again.indices.tolist() == list(range(9))
    assert first.truth.tolist() == again.truth.tolist() == [[each % 3] for each in range(9)]
    assert (first.options, again.options) == (3, 3)


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    subject: Any = Judged(0)
    with pytest.raises(DataError, match="m: there are no images to evaluate on; name another set with --data"):
        judge(subject, "val", UNSAVED)


def test_sparse_minus_dense_is_paired_image_by_image() -> None:
    sparse, dense = judged(ANSWERS, TRUTH), judged(TRUTH, TRUTH)
    rows = compare({"dense": dense, "sparse": sparse}, {"all": np.ones(4, bool)}, ("a", "b"), Options(resamples=200))
    by = {(row.model, row.label): row for row in rows}
    assert not by["dense", "all"].differences
    lead = by["sparse", "a"].differences["accuracy"]
    assert lead.value == -0.75
    # the dense model is always right: the samples of the difference are those of the sparse model's errors
    own = by["sparse", "a"].values["accuracy"]
    assert (lead.low, lead.high) == (own.low - 1, own.high - 1)
    # a model held against itself differs by nothing in any sample
    same = compare({"a": sparse, "b": sparse}, {"all": np.ones(4, bool)}, ("a", "b"), Options(resamples=50))[-1]
    assert {(each.value, each.low, each.high) for each in same.differences.values()} == {(0, 0, 0)}


@given(st.integers(0, 20), st.integers(1, 20), st.sampled_from([0.5, 0.9]))
def test_the_interval_of_an_accuracy_is_the_binomial_s(right: int, wrong: int, level: float) -> None:
    count = right + wrong
    each = judged([[1, 1]] * right + [[0, 0]] * wrong, [[1, 1]] * count)
    ((own, _),) = estimates({"m": each.of(np.ones(count, bool))}, count, 4000, level, np.random.default_rng(1)).values()
    interval = own["accuracy"][0]
    assert interval is not None
    exact = stats.binom(count, right / count).ppf([(1 - level) / 2, (1 + level) / 2]) / count
    # a quantile of 4000 samples may fall on the neighbour of the exact one
    assert [interval.low, interval.high] == pytest.approx(exact.tolist(), abs=1.001 / count)


def test_the_same_seed_draws_the_same_samples_whatever_their_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"m": judged(ANSWERS, TRUTH).of(np.ones(4, bool))}
    whole = estimates(columns, 4, 64, 0.9, np.random.default_rng(3))
    monkeypatch.setattr("acdc_cli.analysis.base.resampling._AT_ONCE", 8)
    assert estimates(columns, 4, 64, 0.9, np.random.default_rng(3)) == whole


def test_a_file_gives_groups_to_the_images_it_lists(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("index,age,place\n7,old,sea\n0,young,sea\n3,old,land\n")
    groups = read_groups(str(path), np.array([0, 3]))
    assert {name: members.tolist() for name, members in groups.items()} == {
        "age: old": [False, True],
        "age: young": [True, False],
        "place: land": [False, True],
        "place: sea": [True, False],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,age\n1,old\n", "expected a column index and one for each kind of groups, found ['name', 'age']"),
        ("index\n1\n", "expected a column index and one for each kind of groups, found ['index']"),
        ("index,age\n0,old\n", "1 of the 2 images have no row, image 3 for one"),
        ("index,age\n0,\udcff\n", "is no CSV file ('utf-8' codec can't decode"),
        ("index,age\nx,old\n", "line 2: expected an index and 1 values"),
        ("index,age\n0,old,sea\n", "line 2: expected an index and 1 values"),
        ("index,age\n0,old\n0,young\n", "line 3: image 0 has a row already"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "groups.csv"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(RunError) as refused:
        read_groups(str(path), np.array([0, 3]))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_models_on_different_images_are_refused() -> None:
    one, other = judged(ANSWERS, TRUTH), judged(ANSWERS, ANSWERS)
    with pytest.raises(RunError, match=r"a and b are evaluated on different images; name one set with --data"):
        require_same_images({"a": one, "b": other})


def test_the_figure_has_a_panel_for_each_measure_and_a_place_for_each_label() -> None:
    rows = compare({"m": judged(ANSWERS, TRUTH)}, {"all": np.ones(4, bool)}, ("a", "b"), Options(resamples=20))
    measures = measures_of("multilabel")
    figure = draw(rows, ["m"], {"accuracy": measures.headline, "undecided": measures.confidence})
    assert [panel.get_xlabel() for panel in figure.axes] == ["label accuracy (%)", "uncertainty (%)"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["all", "a", "b"]


def test_a_run_on_digits_is_judged_by_class_sparse_against_dense(acdc: Acdc, trained: Path, in_tmp: Path) -> None:
    sets = ("resamples=50", "by=['3', '8']", "data.workers=0")
    done = acdc("analyze", "groups", trained, *(part for each in sets for part in ("--set", each)), "--out", "f")
    assert done.exit_code == 0, done.output
    rows = json.loads(Path("f/groups-small-0.json").read_text())["results"]["rows"]
    assert [(row["model"], row["group"]) for row in rows] == [
        (f"small-0 ({kind})", group) for group in ("all images", "3", "8") for kind in ("dense", "sparse")
    ]
    summary = json.loads((trained / "summary.json").read_text())
    assert [row["top1"]["value"] for row in rows[:2]] == [summary[kind]["top1"] for kind in ("dense", "sparse")]
    assert rows[1]["entropy"]["value"] == pytest.approx(summary["sparse"]["entropy"], rel=1e-4)
    minus = rows[1]["minus_first_top1"]
    assert minus["value"] == pytest.approx(summary["sparse"]["top1"] - summary["dense"]["top1"])
    assert minus["low"] <= minus["value"] <= minus["high"]
    with open("f/groups-small-0.csv") as table:
        assert len(list(csv.DictReader(table))) == len(rows)
