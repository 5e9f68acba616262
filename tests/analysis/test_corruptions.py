"""Corrupted images, wherever they come from, and the errors that models make on them."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import Acdc
from numpy.typing import NDArray
from PIL import Image

from acdc_cli.analysis.base.subject import Loaded
from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.analysis.corruptions import (
    Options,
    Scores,
    _findings,
    correct,
    corruption_errors,
    relative_corruption_errors,
    scores_of,
)
from acdc_cli.data import image_corruption
from acdc_cli.data.batches import Batch, Loader
from acdc_cli.data.data_set import open_set
from acdc_cli.data.image_corruption import COMMON, CORRUPTIONS, GROUPS, Corrupter, Corruption, corrupt
from acdc_cli.data.image_set import images_of
from acdc_cli.data.imagenet_c import Corrupted, Folders, MadeAnew, pictures
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError
from acdc_cli.jobs.subjects import Asked, open_subjects
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.kinds import measures_of

Pixels = NDArray[np.uint8]


@pytest.fixture
def library() -> None:
    """Skips what makes images, where OpenCV's system libraries are missing."""
    try:
        import imagecorruptions  # noqa: F401
    except ImportError as cause:
        pytest.skip(f"images cannot be corrupted here: {cause}")


def waves(side: int, images: int = 3) -> Pixels:
    rows, columns, number = np.ogrid[:side, :side, :images]
    grey = 128 + 90 * np.sin(rows / 3 + number) * np.cos(columns / 5)
    return np.stack([grey.transpose(2, 0, 1) * share for share in (1.0, 0.8, 0.6)], -1).astype(np.uint8)


# --- measures -----------------------------------------------------------------------------------


def test_a_corruption_error_is_a_ratio_of_sums_over_severities() -> None:
    errors = corruption_errors({"fog": [0.2, 0.4], "snow": [0.3, 0.3]}, {"fog": [0.4, 0.8], "snow": [0.3, 0.2]})
    assert errors == pytest.approx({"fog": 0.5, "snow": 1.2})


def test_a_relative_corruption_error_is_one_of_what_the_corruption_adds() -> None:
    errors, baseline = {"fog": [0.2, 0.4], "snow": [0.3, 0.3]}, {"fog": [0.4, 0.8], "snow": [0.3, 0.2]}
    assert relative_corruption_errors(errors, 0.1, baseline, 0.2) == pytest.approx({"fog": 0.5, "snow": 4.0})


def test_a_ratio_to_nothing_is_no_number() -> None:
    assert math.isnan(corruption_errors({"fog": [0.1]}, {"fog": [0.0]})["fog"])
    # 1 - 0.9 - (1 - 0.9) in floats need not be 0
    for top1 in (0.9, 0.7, 0.3):
        baseline = Scores(top1, {"fog": {1: top1}}).errors
        assert math.isnan(relative_corruption_errors({"fog": [0.5]}, 0.1, baseline, 1 - top1)["fog"])


def test_the_mean_top1_is_over_corruptions_and_severities() -> None:
    scores = Scores(1.0, {"fog": {1: 0.8, 3: 0.4}, "snow": {1: 0.2, 3: 0.0}})
    assert scores.top1("fog") == pytest.approx(0.6)
    assert scores.top1("fog", "snow") == pytest.approx(0.35)
    assert math.isnan(scores.top1())


def test_many_models_have_a_row_each_with_means_over_groups() -> None:
    # the errors of the first are those that all are divided by: 0.2 and 0.4
    models = {f"m{number}": Scores(0.9, {"fog": {1: 0.8}, "jpeg_compression": {1: 0.6}}) for number in range(7)}
    models["m6"] = Scores(0.95, {"fog": {1: 0.9}, "jpeg_compression": {1: 0.8}})
    top1 = measures_of("multiclass").headline
    options = Options(corruptions=["fog", "jpeg_compression"], severities=[1])
    table = _findings(models, options, top1).summary
    assert table.columns == ("top-1 % under", "clean", "weather", "digital", "mean", "mCE")
    assert [row for row in table.rows if row[0] in ("m0", "m6")] == [
        ("m0", "90.00", "80.00", "60.00", "70.00", "100.00"),
        ("m6", "95.00", "90.00", "80.00", "85.00", "50.00"),
    ]


def test_fifteen_corruptions_are_common_and_four_extra() -> None:
    assert len(CORRUPTIONS) == 19
    assert sum(GROUPS.values(), ()) == CORRUPTIONS
    assert set(CORRUPTIONS) - set(COMMON) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}


# --- images made anew ---------------------------------------------------------------------------


# numba compiles glass_blur for seconds
SLOWLY = [pytest.param(each, marks=pytest.mark.slow) if each == "glass_blur" else each for each in CORRUPTIONS]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("corruption", SLOWLY)
def test_a_corrupted_image_depends_on_its_index_and_not_on_its_batch(corruption: Corruption) -> None:
    images = waves(40)
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    together = corrupt(images, [7, 3, 5], corruption, 2, seed=1)
    alone = corrupt(images[2:], [5], corruption, 2, seed=1)
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    assert np.array_equal(together[2], alone[0])
    assert not np.array_equal(together, images)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "corruption",
    [
        "gaussian_noise",
        "impulse_noise",
        "snow",
        "elastic_transform",
        pytest.param("glass_blur", marks=pytest.mark.slow),
    ],
)
def test_another_seed_index_or_severity_is_another_corruption(corruption: Corruption) -> None:
    image = waves(40, 1)
    images = {
        corrupt(image, [index], corruption, severity, seed).tobytes()
        for index, severity, seed in [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    }
    assert len(images) == 4


@pytest.mark.usefixtures("library")
def test_an_image_that_is_too_small_is_mirrored_at_its_edges_and_cut_back() -> None:
    image = waves(12, 1)
    # (32 - 12) / 2 pixels on each side
    mirrored = np.pad(image, ((0, 0), (10, 10), (10, 10), (0, 0)), mode="symmetric")
    for corruption in ("brightness", "elastic_transform", "frost"):
        small, large = (corrupt(each, [4], corruption, 3, seed=0) for each in (image, mirrored))
        assert np.array_equal(small[0], large[0, 10:22, 10:22])


@pytest.mark.usefixtures("library")
def test_a_spatter_that_hits_nothing_leaves_the_image_as_it_was() -> None:
    image = waves(32, 1)
    spattered = [corrupt(image, [index], "spatter", 1, seed=0) for index in range(300)]
    missed = sum(np.array_equal(each, image) for each in spattered)
    # otherwise the library divides by nothing and gives a black image
    assert 0 < missed < 30
    assert all(each.max() > 0 for each in spattered)


def test_an_invalid_number_in_another_corruption_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(image: Pixels, severity: int, corruption: Corruption) -> Pixels:
        made: Pixels = image * np.log(np.float64(-1))
        return made

    monkeypatch.setattr(image_corruption, "_library", lambda: SimpleNamespace(corrupt=corrupted))
    image = waves(32, 1)
    assert np.array_equal(corrupt(image, [0], "spatter", 1, seed=0), image)
    with pytest.raises(FloatingPointError):
        corrupt(image, [0], "fog", 1, seed=0)


def test_without_the_library_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagecorruptions", None)
    with pytest.raises(DataError, match=r"pip install 'acdc-cli\[corruptions\]'.*--set path=FOLDER"):
        Corrupter()


@contextmanager
def digits(run: Path, batch: int = 30) -> Iterator[tuple[dict[str, Loaded], Loader]]:
    (subject,) = open_subjects([run], Asked(overrides=(f"data.val_batch_size={batch}", "data.workers=0")))
    with subject.images() as loader:
        yield {"run": subject.load()}, loader


def drawn(loader: Loader, corrupter: Corrupter, corruption: Corruption, start: int = 0) -> list[Batch]:
    with Corrupted(loader, corrupter, corruption, 2).epoch(0, start) as batches:
        return list(batches)


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_processes_make_the_same_images_as_this_one(trained: Path) -> None:
    with digits(trained, batch=7) as (_, loader), Corrupter(5, workers=0) as here, Corrupter(5, workers=2) as others:
        for corruption in ("impulse_noise", "shot_noise"):
            expected, made = (drawn(loader, each, corruption, start=11) for each in (here, others))
            assert len(made) == loader.steps - 11 == 4
            for one, other in zip(expected, made, strict=True):
                assert torch.equal(one.inputs, other.inputs)
                assert torch.equal(one.indices, other.indices)
                assert torch.equal(one.targets, other.targets)


class OneByOne(ThreadPoolExecutor):
    """Takes the place of the processes, which take seconds to start."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(1)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("workers", [2, 4])
def test_a_batch_that_workers_share_comes_back_in_its_order(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(image_corruption, "ProcessPoolExecutor", OneByOne)
    images, indices = waves(32), [7, 3, 5]
    with Corrupter(1, workers) as corrupter:
        made = corrupter.begin(images, indices, "gaussian_noise", 2)()
    assert np.array_equal(made, corrupt(images, indices, "gaussian_noise", 2, seed=1))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_process_that_ended_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    class Ended(OneByOne):
        def submit(self, *_: object) -> Future[Pixels]:  # type: ignore[override]
            if when == "before":
                raise BrokenProcessPool("killed")
            future: Future[Pixels] = Future()
            future.set_exception(BrokenProcessPool("killed"))
            return future

    monkeypatch.setattr(image_corruption, "ProcessPoolExecutor", Ended)
    with (
        Corrupter(1, 2) as corrupter,
        pytest.raises(DataError, match=r"a process that corrupts images ended \(killed\).*--set workers=1"),
    ):
        corrupter.begin(waves(32), [7, 3, 5], "fog", 2)()


@pytest.mark.usefixtures("library")
def test_a_process_that_corrupts_images_takes_one_core_and_leaves_signals_to_the_run() -> None:
    import cv2

    threads, handlers = cv2.getNumThreads(), {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)}
    try:
        image_corruption._begin()
        assert cv2.getNumThreads() == 1
        assert [signal.getsignal(each) for each in handlers] == 2 * [signal.SIG_IGN]
    finally:
        cv2.setNumThreads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("library")
def test_scores_are_those_of_every_image_by_itself(trained: Path) -> None:
    with digits(trained) as (models, loader), Corrupter(3, workers=0) as corrupter:
        scores = scores_of(models, loader, MadeAnew(corrupter).under, ["motion_blur"], [2])["run"]
        hits = clean_hits = 0
        with loader.epoch(0) as batches, torch.no_grad():
            for batch in batches:
                for image, label, index in zip(batch.inputs, batch.targets, batch.indices, strict=True):
                    pixels = image.permute(1, 2, 0).numpy()[None]
                    bad = torch.from_numpy(corrupt(pixels, [int(index)], "motion_blur", 2, 3)).permute(0, 3, 1, 2)
                    hits += int(models["run"].forward(bad).argmax() == label)
                    clean_hits += int(models["run"].forward(image[None]).argmax() == label)
    assert (scores.clean, scores.under) == (clean_hits / 100, {"motion_blur": {2: hits / 100}})


@pytest.mark.usefixtures("library")
def test_broken_off_and_gone_on_with_gives_the_same_numbers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count()

    def dying(*arguments: object) -> dict[str, torch.Tensor]:
        if next(calls) == 6:  # of 4 clean batches and 4 corrupted ones
            raise KeyboardInterrupt
        return correct(*arguments)  # type: ignore[arg-type]

    def measured(workspace: Workspace) -> Scores:
        with digits(trained) as (models, loader), Corrupter(0, workers=0) as corrupter:
            return scores_of(models, loader, MadeAnew(corrupter).under, ["gaussian_noise"], [3], workspace)["run"]

    workspace = Workspace(tmp_path / "workspace")
    with monkeypatch.context() as patched:
        patched.setattr("acdc_cli.analysis.corruptions.correct", dying)
        with pytest.raises(KeyboardInterrupt):
            measured(workspace)
    made: list[int] = []
    original: Callable[..., Pixels] = corrupt
    monkeypatch.setattr(
        "acdc_cli.data.image_corruption.corrupt",
        lambda images, indices, *rest: made.extend(indices) or original(images, indices, *rest),  # type: ignore[func-returns-value]
    )
    assert measured(workspace) == measured(UNSAVED)
    # 60 of 100 images were done
    assert made == [*range(60, 100), *range(100)]


# --- ImageNet-C's folders -----------------------------------------------------------------------


@pytest.fixture
def imagenet_c(few_digits: Path, tmp_path: Path) -> Path:
    """`fog` shows the validation images as they are, `snow` black ones."""
    root = tmp_path / "imagenet-c"
    shutil.copytree(few_digits / "val", root / "fog" / "1")
    shutil.copytree(few_digits / "val", root / "snow" / "1")
    for file in (root / "snow").rglob("*.png"):
        Image.new("RGB", (7, 7)).save(file)
    return root


def test_folders_are_judged_in_the_validation_sets_order(trained: Path, imagenet_c: Path, acdc: Acdc) -> None:
    # another set's class, which sorts first
    shutil.copytree(imagenet_c / "fog" / "1" / "3", imagenet_c / "fog" / "1" / "!other")
    result = acdc(
        *("analyze", "corruptions", trained, "--json", "--out", imagenet_c / "out", "--set", f"path={imagenet_c}"),
        *("--set", "corruptions=[fog,snow]"),
    )
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["results"]["models"]["small-0"]
    assert model["top1"]["fog"]["1"] == model["clean_top1"] != 0.1
    # one answer to all black images: ten of each class
    assert model["top1"]["snow"]["1"] == pytest.approx(0.1)


def test_classes_come_in_the_order_that_is_asked_for(imagenet_c: Path) -> None:
    source = pictures(imagenet_c, "fog", 1, ["9", "2"])
    assert source.labels.tolist() == 10 * [0] + 10 * [1]
    assert {Path(path).parent.name for path in source.images[:10]} == {"9"}


def test_missing_folders_are_named(trained: Path, imagenet_c: Path, acdc: Acdc) -> None:
    asked = ("analyze", "corruptions", trained, "--out", imagenet_c / "out", "--set", f"path={imagenet_c}")
    result = acdc(*asked, "--set", "corruptions=[fog,frost]", "--set", "severities=[1,2]")
    assert result.exit_code == 2
    assert "has no fog/2, frost/1, frost/2; unpack" in result.stderr
    shutil.rmtree(imagenet_c / "fog" / "1" / "7")
    result = acdc(*asked, "--set", "corruptions=[fog]")
    assert result.exit_code == 2
    assert "no folder for 1 of the 10 classes: 7." in result.stderr


def test_a_set_of_other_images_is_refused(trained: Path, imagenet_c: Path, acdc: Acdc) -> None:
    next((imagenet_c / "fog").rglob("*.png")).unlink()
    result = acdc(
        *("analyze", "corruptions", trained, "--out", imagenet_c / "out", "--set", f"path={imagenet_c}"),
        *("--set", "corruptions=[fog]"),
    )
    assert result.exit_code == 2
    assert "holds 99 images of" in result.stderr
    assert "data.val_images" not in result.stderr


@pytest.mark.parametrize("holds", ["all", "the subset"])
def test_a_subset_of_the_validation_images_is_compared_with_the_same_corrupted_ones(
    trained: Path, imagenet_c: Path, acdc: Acdc, holds: str
) -> None:
    if holds == "the subset":
        files = sorted((imagenet_c / "fog" / "1").rglob("*.png"))
        for file in (file for number, file in enumerate(files) if number % 5):
            file.unlink()
    result = acdc(
        *("analyze", "corruptions", trained, "--json", "--out", imagenet_c / "out", "--set", f"path={imagenet_c}"),
        *("--set", "corruptions=[fog]", "--set", "data.val_images=20"),
    )
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["results"]["models"]["small-0"]
    assert model["top1"]["fog"]["1"] == model["clean_top1"]


def test_folders_that_hold_neither_all_images_nor_the_subset_are_refused(
    trained: Path, imagenet_c: Path, acdc: Acdc
) -> None:
    next((imagenet_c / "fog").rglob("*.png")).unlink()
    result = acdc(
        *("analyze", "corruptions", trained, "--out", imagenet_c / "out", "--set", f"path={imagenet_c}"),
        *("--set", "corruptions=[fog]", "--set", "data.val_images=20"),
    )
    assert result.exit_code == 2
    assert (
        "holds 99 images of the validation set's classes, which has 100, or the 20 of data.val_images" in result.stderr
    )


def test_alexnets_published_errors_may_be_the_baseline(trained: Path, imagenet_c: Path, acdc: Acdc) -> None:
    for severity in "2345":
        shutil.copytree(imagenet_c / "fog" / "1", imagenet_c / "fog" / severity)
    result = acdc(
        *("analyze", "corruptions", trained, "--json", "--out", imagenet_c / "out", "--set", f"path={imagenet_c}"),
        *("--set", "corruptions=[fog]", "--set", "severities=[1,2,3,4,5]", "--set", "alexnet=true"),
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    model = results["models"]["small-0"]
    assert results["baseline"] == "AlexNet"
    assert model["mce"]["common"] == pytest.approx((1 - model["clean_top1"]) / 0.819324)
    assert model["relative_mce"]["common"] is None
    (groups,) = (imagenet_c / "out").glob("*-groups.csv")
    assert groups.read_text().splitlines()[1].startswith("small-0,weather,1,")


# --- the command --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_two_runs_are_compared_under_images_made_anew(trained: Path, other: Path, tmp_path: Path, acdc: Acdc) -> None:
    result = acdc(
        *("analyze", "corruptions", trained, other, "--out", tmp_path, "--set", "workers=0"),
        *("--set", "corruptions=[contrast,gaussian_noise,saturate]", "--set", "severities=[1,5]"),
    )
    assert result.exit_code == 0, result.output
    assert "severities are meant for images of 224 pixels; these have 5" in result.stderr
    assert max(map(len, result.stdout.split("\n\n")[0].splitlines())) <= 80
    (file,) = tmp_path.glob("*.json")
    results = json.loads(file.read_text())["results"]
    assert results["baseline"] == "small-0"
    first, second = results["models"].values()
    assert first["corruption_error"]["contrast"] == first["mce"]["common"] == 1
    errors = [
        [2 - sum(model["top1"][each].values()) for each in ("contrast", "gaussian_noise")] for model in (first, second)
    ]
    assert second["mce"]["common"] == pytest.approx(sum(b / a for a, b in zip(*errors, strict=True)) / 2)
    # clean, three corruptions at two severities, two models, and the names of the columns
    assert len(file.with_suffix(".csv").read_text().splitlines()) == 2 * 7 + 1
    assert file.with_suffix(".png").exists()
    assert file.with_suffix(".svg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("path=x", "workers=2"), "has no effect when `path` names"),
        (("severities=[0]",), "severities"),
        (("severities=[2,2]",), "has a duplicate"),
        (("alexnet=true",), "set severities: [1, 2, 3, 4, 5]"),
        (("corruptions=[fogg]",), "fog"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    trained: Path, tmp_path: Path, acdc: Acdc, options: tuple[str, ...], message: str
) -> None:
    sets = [part for option in options for part in ("--set", option)]
    result = acdc("analyze", "corruptions", trained, "--out", tmp_path, *sets)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_subset_of_a_set_in_another_order_than_the_folders_is_refused(tmp_path: Path) -> None:
    # by turns, where folders have one class after the other
    source = Source("tiny", "val", np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1]), ("a", "b"), "")
    write(source, tmp_path / "set" / "val.beton", Settings(), workers=0)
    for name in ("a", "b"):
        (tmp_path / "fog" / "1" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "fog" / "1" / name / f"{number}.png")
    block = ImagesBlock(name="tiny", path=str(tmp_path / "set"), batch_size=2, workers=0)
    for val_images, message in ((None, ""), (2, "in another order of classes.*--set data.val_images=null")):
        data = images_of(open_set(block.model_copy(update={"val_images": val_images})))
        folders = Folders(tmp_path, data, torch.device("cpu"))
        with (
            pytest.raises(DataError, match=message) if message else nullcontext(),
            folders.under(None, "fog", 1) as loader,  # type: ignore[arg-type]
        ):
            assert loader.samples == 4
