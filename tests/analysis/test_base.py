"""What all analyses share: options, names of files, unfinished work, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from command import Acdc
from torch import Tensor

from acdc_cli.analysis import curves
from acdc_cli.analysis.base import analyses, plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.plotting import png
from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.jobs.analysis_run import _rests_on, _stem
from acdc_cli.jobs.subjects import Asked, open_subjects
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.discovery import ANALYSES
from acdc_cli.recipe.schema import Recipe


class Numbers:
    """Batches of single numbers, that can end early as a killed process does."""

    def __init__(self, values: list[float], dies_at: int | None = None) -> None:
        self.values, self.dies_at = values, dies_at
        self.drawn: list[int] = []
        self.steps = len(values)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Tensor]]:
        yield self._each(start_step)

    def _each(self, start: int) -> Iterator[Tensor]:
        for step in range(start, self.steps):
            if step == self.dies_at:
                raise KeyboardInterrupt
            self.drawn.append(step)
            yield torch.tensor(self.values[step])


def parts(value: Tensor) -> dict[str, Tensor]:
    return {"sum": value, "square": value**2, "count": torch.ones((), dtype=torch.int64)}


VALUES = [0.1, 0.2, 0.7, 1e8, 0.3]


def test_sums_are_of_every_batch_in_float64() -> None:
    totals = UNSAVED.sums("pass", Numbers(VALUES), parts, "numbers")
    assert totals["count"] == 5
    assert totals["sum"].dtype == torch.float64
    expected = sum((torch.tensor(value).double() for value in VALUES), torch.zeros((), dtype=torch.float64))
    assert totals["sum"] == expected


def test_a_pass_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace", "model 1")
    with pytest.raises(KeyboardInterrupt):
        workspace.sums("pass", Numbers(VALUES, dies_at=3), parts, "numbers")
    rest = Numbers(VALUES)
    assert workspace.sums("pass", rest, parts, "numbers") == UNSAVED.sums("pass", Numbers(VALUES), parts, "numbers")
    assert rest.drawn == [3, 4]


def test_a_pass_that_ends_before_its_first_batch_keeps_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace", "model 1")
    with pytest.raises(KeyboardInterrupt):
        workspace.sums("pass", Numbers(VALUES, dies_at=0), parts, "numbers")
    assert not workspace.keeps_something


def test_a_finished_pass_is_not_done_again_and_others_are_not_taken_for_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace", "model 1")
    workspace.sums("pass", Numbers(VALUES), parts, "numbers")
    again, another, changed = Numbers(VALUES), Numbers(VALUES), Numbers(VALUES)
    workspace.sums("pass", again, parts, "numbers")
    workspace.sums("other pass", another, parts, "numbers")
    Workspace(tmp_path / "workspace", "model 2").sums("pass", changed, parts, "numbers")
    assert (again.drawn, another.drawn, changed.drawn) == ([], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_damaged_unfinished_work_is_done_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace", "model 1")
    workspace.keep("pass", {"sum": torch.ones(3)})
    (file,) = (tmp_path / "workspace").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert workspace.kept("pass") is None


def test_what_is_finished_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace", "model 1")
    workspace.keep("pass", {"sum": torch.ones(3)})
    workspace.clear()
    UNSAVED.clear()
    assert list(tmp_path.iterdir()) == []


def test_findings_become_files_without_nan(tmp_path: Path) -> None:
    table = Table(("name", "share"), [("a, b", 0.1), ("c", float("nan"))])
    figure = plotting.new(2, 2)
    figure.subplots().plot([0, 1], **next(plotting.styles()))
    findings = Findings({"share": [float("inf"), 0.5]}, table, {"": table, "more": table}, {"": figure})
    names = [path.name for path in findings.write(tmp_path / "new", "found", {"analysis": "x"})]
    assert names == ["found.json", "found.csv", "found-more.csv", "found.png", "found.svg"]
    document = json.loads((tmp_path / "new/found.json").read_text())
    assert document == {"analysis": "x", "results": {"share": [None, 0.5]}}
    with (tmp_path / "new/found.csv").open() as file:
        assert list(csv.reader(file)) == [["name", "share"], ["a, b", "0.1"], ["c", ""]]


def test_the_same_figure_is_the_same_bytes() -> None:
    def drawn() -> tuple[bytes, str]:
        figure = plotting.new(2, 2)
        figure.subplots().plot([0, 1 / 3], label="a", **next(plotting.styles()))
        return png(figure), plotting.svg(figure)

    assert drawn() == drawn()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.21, 1.38], ["1.225", "1.25", "1.275", "1.3", "1.325", "1.35", "1.375"]),
        ([0.9, 6], ["1", "2", "3", "4", "5", "6"]),
        ([0.15, 2100], ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_plain_numbers(values: list[float], ticks: list[str]) -> None:
    figure = plotting.new(4, 4)
    panel = figure.subplots()
    panel.plot(values)
    plotting.log(panel, "y")
    figure.canvas.draw()
    low, high = panel.get_ylim()
    assert [tick.get_text() for tick in panel.get_yticklabels() if low < tick.get_position()[1] < high] == ticks


def test_phases_are_shaded_for_a_single_run_only() -> None:
    one = [{"epoch": 0, "phase": "sparse", "sparsity_all": 0.5, "sparsity": 0.5, "train_loss": 1.0, "val_loss": 2.0,
            "top1": 0.5}]  # fmt: skip
    top1 = Quantity("top1", "top-1", "top-1", "%")
    runs = {"a": one}, {"a": one, "b": one}
    shaded = [sum(len(panel.patches) for panel in curves.draw(some, dict.fromkeys(some, top1)).axes) for some in runs]
    # three panels, and two lines of steps for each run
    assert shaded == [3 + 2, 2 * 2]


def test_styles_differ_without_colours() -> None:
    drawn = [next(styles) for styles in [plotting.styles()] for _ in range(6)]
    assert len({(str(each["linestyle"]), each["marker"]) for each in drawn}) == 6


@pytest.mark.parametrize("name", ANALYSES.names())
def test_every_analysis_keeps_its_contract(name: str) -> None:
    _, options = analyses.find(name)
    assert len(ANALYSES.described()[name]) > 20
    assert options() == options.model_validate({})
    assert not set(options.model_fields) & set(Recipe.model_fields), "`--set` could not tell them apart"
    for key, field in options.model_fields.items():
        assert field.description, key


def test_analyses_are_listed_with_what_they_are(acdc: Acdc) -> None:
    listed = acdc("analyze").stdout
    assert all(name in listed for name in ANALYSES.names())
    assert "shaded" in listed


def test_the_options_of_an_analysis_are_listed_with_defaults(acdc: Acdc) -> None:
    shown = acdc("analyze", "calibration")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.split()[:3] == ["key", "default", "meaning"]
    assert [line.split()[:2] for line in shown.stdout.splitlines() if line.startswith("bins")] == [["bins", "15"]]
    assert "acdc analyze calibration RUN… [--set KEY=VALUE]…" in shown.stderr


def test_results_name_what_they_are_of(acdc: Acdc, trained: Path, other: Path, in_tmp: Path) -> None:
    result = acdc("analyze", "compare", trained, other, "--which", "dense", "--out", "found", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [subject["name"] for subject in document["subjects"]] == ["small-0 (dense)", "small-1 (dense)"]
    assert document["subjects"][0]["weights"] == "dense.safetensors"
    stem = "compare-small-0-dense-small-1-dense"
    names = {path.name for path in Path("found").iterdir()}
    assert {name for name in names if "." in name.removeprefix(stem)[:1]} == {
        f"{stem}.{end}" for end in ("json", "csv", "png", "svg")
    }
    assert all(name.startswith(stem) for name in names)
    assert json.loads(Path(f"found/{stem}.json").read_text()) == document


def test_results_of_one_run_are_not_overwritten_by_those_of_another(
    acdc: Acdc, trained: Path, other: Path, in_tmp: Path
) -> None:
    for run in (trained, trained, other):
        assert acdc("analyze", "curves", run, "--out", "found").exit_code == 0
    assert {path.name for path in Path("found").glob("*.json")} == {"curves-small-0.json", "curves-small-1.json"}
    shutil.copytree(other, Path("again") / other.name)
    result = acdc("analyze", "curves", Path("again") / other.name, "--out", "found")
    assert result.exit_code == 2
    said = "".join(result.stderr.split())
    assert f"holdstheresultsof{other};chooseanotherfolderforagain/{other.name}with--out" in said


@pytest.mark.parametrize("name", ["curves", "memorisation"])
def test_what_follows_a_whole_run_takes_no_single_model(acdc: Acdc, trained: Path, name: str) -> None:
    result = acdc("analyze", name, trained, "--which", "dense")
    assert result.exit_code == 2
    assert "leave out --which" in " ".join(result.stderr.split())


def test_few_images_are_spread_over_those_that_the_run_was_trained_with(trained: Path) -> None:
    def indices(count: int | None, *overrides: str) -> list[int]:
        (subject,) = open_subjects([trained], Asked(overrides=("data.workers=0", *overrides)))
        with subject.images("train", count) as loader, loader.epoch(0) as batches:
            return [int(index) for batch in batches for index in batch.indices]

    used = indices(None, "data.images=60")
    assert len(used) == 60
    assert indices(7, "data.images=60") == [used[60 * step // 7] for step in range(7)]
    assert indices(1000, "data.images=60") == used
    assert indices(7) == [200 * step // 7 for step in range(7)]


def test_unfinished_work_does_not_count_once_a_kept_model_is_another(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)

    def rests_on() -> str:
        return _rests_on("sharpness", open_subjects([run]), Block())

    before = rests_on()
    assert rests_on() == before
    kept = run / "checkpoints/epoch-0001-sparse.safetensors"
    kept.write_bytes((run / "checkpoints/epoch-0003-sparse.safetensors").read_bytes())
    assert rests_on() != before


def test_a_file_of_a_run_is_a_model_of_its_own(acdc: Acdc, trained: Path) -> None:
    result = acdc("analyze", "curves", trained / "sparse.safetensors")
    assert result.exit_code == 2
    assert "small-0/sparse is a file with weights" in " ".join(result.stderr.split())


def test_what_is_no_option_is_refused(acdc: Acdc, trained: Path) -> None:
    for setting, said in (("epoch=3", "unknown key"), ("sparsity.method=none", "none")):
        result = acdc("analyze", "curves", trained, "--set", setting)
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())


def test_many_models_share_a_name_of_bounded_length_that_depends_on_each(trained: Path, tmp_path: Path) -> None:
    for number in range(13):
        (tmp_path / f"small-{number:02d}").symlink_to(trained)
    subjects = open_subjects(sorted(tmp_path.iterdir()))
    one, other = (_stem("curves", part, of_first=False) for part in (subjects[:12], subjects[1:]))
    assert re.fullmatch("curves-12-models-[0-9a-f]{8}", one)
    assert re.fullmatch("curves-12-models-[0-9a-f]{8}", other)
    assert one != other
    assert _stem("curves", subjects[:2], of_first=False) == "curves-small-00-small-01"


def test_a_model_is_not_analysed_together_with_itself(acdc: Acdc, trained: Path) -> None:
    result = acdc("analyze", "compare", trained, trained)
    assert result.exit_code == 2
    assert f"{trained} is named twice; an analysis compares different models" in " ".join(result.stderr.split())


@pytest.mark.parametrize("begun", [True, False])
def test_who_breaks_off_is_told_how_to_go_on(
    acdc: Acdc, trained: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    from acdc_cli.analysis import calibration

    def broken_off(model: object, images: object, bins: int, workspace: Workspace, *rest: object) -> None:
        if begun:
            workspace.keep("pass", {"sum": torch.ones(1)})
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "calibrate", broken_off)
    result = acdc("analyze", "calibration", trained, "--out", "found")
    assert result.exit_code == 130
    assert ("the same command resumes it" in " ".join(result.stderr.split())) is begun
