"""The benchmarks run, in sizes that measure nothing; what they measure is no matter of right or wrong."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.blur import blurred_bytes
from benchmarks.measure import Target, Timing, alternate, compare
from benchmarks.photos import Photos, prepare, repeated


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that `python -m benchmarks NAME --smoke` writes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(benchmarks.__file__).parents[1]))
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--smoke", "--out", str(folder)])
    assert benchmarks.main() == 0
    return list(folder.glob("*.json"))


def check(result: dict[str, Any]) -> None:
    assert result["smoke"] is True
    assert result["machine"]["cores"] >= 1
    assert "torch" in result["versions"]
    assert result["comparisons"]
    for line in result["comparisons"]:
        assert line["ratio"] > 0
        assert (line["target"] is None) == (line["met"] is None)
        assert len({len(values) for values in line["rounds"].values()}) == 1


SLOW = ("startup", "trainer", "sparse_step", "loader", "resident", "blur", "memory", "processes")


@pytest.mark.parametrize(
    "name",
    [
        "host",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_a_benchmark_writes_its_numbers(name: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "loader":
        pytest.importorskip("acdc_cli.data.ffcv", exc_type=ImportError)
    (path,) = run(name, in_tmp / "results", monkeypatch)
    assert path.name == f"{name}-cpu.json"
    check(json.loads(path.read_text()))


def test_the_blurs_of_resnet50_move_what_their_shapes_say() -> None:
    # numbers of one image at 160 px before the 3x3 convolutions and before the shortcuts: 128 and 256 channels of
    # 40 x 40, twice as many of half the side after each stage
    wide, short = (sum(channels * 2**stage * (40 // 2**stage) ** 2 for stage in range(3)) for channels in (128, 256))
    assert (wide, short) == (358_400, 716_800)
    assert blurred_bytes(1024, 160, "whole") == 1024 * 2 * 4 * (wide + short) == 8_808_038_400
    assert blurred_bytes(1024, 160, "convolution") == 1024 * 2 * (4 * wide + 2.5 * short) == 6_606_028_800
    assert blurred_bytes(1024, 160, "shifts") == 1024 * 2 * 2.5 * short == 3_670_016_000


def test_an_unknown_benchmark_is_an_error_that_names_those_there_are(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("speed", in_tmp, monkeypatch)
    assert "no benchmark speed; there are startup, memory" in capsys.readouterr().err


def test_every_file_with_a_benchmark_is_listed() -> None:
    folder = Path(benchmarks.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "\ndef run(smoke: bool)" in path.read_text()}
    assert files == set(benchmarks.NAMES)
    assert all(callable(importlib.import_module(f"benchmarks.{name}").run) for name in benchmarks.NAMES)


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def contestant(name: str) -> Timing:
        order.append(name)
        return Timing(wall=len(order), cpu=0.0)

    rounds = alternate({name: partial(contestant, name) for name in "ab"}, 3)
    assert "".join(order) == "ababab"
    assert [timing.wall for timing in rounds["b"]] == [2, 4, 6]


@pytest.mark.parametrize(
    ("target", "met"), [(Target("≤", 2.0), True), (Target("≤", 1.9), False), (Target("≥", 2.0), True), (None, None)]
)
def test_a_ratio_is_the_median_of_the_rounds_own(target: Target | None, met: bool | None) -> None:
    # 2/1, 60/20, 5/5: medians of each side would give 5/5
    comparison = compare("speed", "s", {"a": [2, 60, 5], "b": [1, 20, 5]}, "a", "b", target)
    assert comparison["ratio"] == 2
    assert comparison["met"] is met


def test_photographs_are_made_once_and_are_the_same_bytes_for_everyone(in_tmp: Path) -> None:
    from acdc_cli.data.beton import BetonFile

    def train(photos: Photos) -> BetonFile:
        return BetonFile(photos.folder / "train.beton")

    first = prepare(12)
    written = (first.folder / "train.beton").stat().st_mtime_ns
    assert prepare(12) == first
    assert (first.folder / "train.beton").stat().st_mtime_ns == written
    jpegs = sorted(first.jpegs.glob("*/*.jpg"), key=lambda path: path.name)
    file, twice = train(first), train(repeated(first, 2))
    assert [bytes(file.image_bytes(index)) for index in range(12)] == [path.read_bytes() for path in jpegs]
    assert [bytes(twice.image_bytes(index)) for index in range(24)] == 2 * [path.read_bytes() for path in jpegs]
    assert file.sizes.max() == 400
    assert twice.labels.tolist() == 2 * [int(path.parent.name) for path in jpegs]
