"""Every part of the GPU's benchmarks runs, from the command line, on a CPU in tiny sizes: a dozen processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import benchmarks
from benchmarks.gpu.parts import PARTS

ROOT = Path(benchmarks.__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def benchmark(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "benchmarks", *(str(argument) for argument in arguments)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The file of results, and what was printed."""
    folder = tmp_path_factory.mktemp("gpu")
    done = benchmark("gpu", "--smoke", "--minutes", "14", "--out", "results", folder=folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "results" / "gpu-cpu.json").read_text())
    return result, done.stdout


FIELDS = {
    "facts": ("torch", "memory", "packages"),
    "tests": ("counts", "failing", "workers"),
    "resident": ("batch 4", "batch 2"),
    "stalls": ("mask_update_ms", "checkpoint_ms", "checkpoint_bytes", "validation_images_per_second"),
    "kernels": ("compiled", "eager"),
    "fed": ("step_ms", "loader_alone_images_per_second", "photos"),
    "train": ("epochs", "seconds_until_the_first_epoch", "command"),
    "resume": ("exact", "kills", "deterministic"),
}


@pytest.mark.parametrize("part", FIELDS)
def test_a_part_gives_its_fields(smoke: tuple[dict[str, Any], str], part: str) -> None:
    fields = smoke[0]["parts"][part]
    if part == "fed" and fields["state"].startswith("skipped: FFCV"):
        pytest.skip(fields["state"])
    assert fields["state"] == "done", fields
    assert not set(FIELDS[part]) - fields.keys()
    assert 0 < fields["seconds"] <= fields["limit_seconds"] + 6


def test_the_result_says_where_it_comes_from(smoke: tuple[dict[str, Any], str]) -> None:
    result = smoke[0]
    assert list(result["parts"]) == [part.name for part in PARTS] == list(FIELDS)
    assert result["smoke"] is True
    assert result["machine"]["gpu"] is None
    assert "torch" in result["versions"]


def test_every_contestant_has_its_speed(smoke: tuple[dict[str, Any], str]) -> None:
    fields = smoke[0]["parts"]["resident"]
    assert len(fields["batch 4"]) == 10
    for contestant in (*fields["batch 4"].values(), fields["batch 2"]["ours, dense"]):
        assert contestant["images_per_second"] > 0
        assert contestant["first_step_seconds"] > 0


def test_the_gpu_tests_really_ran(smoke: tuple[dict[str, Any], str]) -> None:
    fields = smoke[0]["parts"]["tests"]
    assert fields["failing"] == {}
    assert fields["counts"] == {"passed": 2, "failed": 0, "skipped": 0}


def test_goals_stand_in_the_table_which_fits_a_terminal(smoke: tuple[dict[str, Any], str]) -> None:
    result, printed = smoke
    lines = {line["what"]: line for part in result["parts"].values() for line in part.get("lines", ())}
    goals = {what: line["target"] for what, line in lines.items() if line["target"]}
    goals.pop("share of time waiting for data", None)
    assert goals == {
        "batch 4: ours / as FFCV's script": "≥ 1.3",
        "batch 4: ours / as timm's train.py": "≥ 1.05",
        "batch 4: ours / bare loop": "≥ 0.97",
        "batch 2: ours / bare loop": "≥ 0.97",
        "batch 4: AC/DC step / dense step": "≤ 1.01",
        "global mask update": "≤ 30.0",
        "compiled: share of masks": "≤ 0.01",
        "checkpoint, share that training waits": "≤ 0.1",
    }
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert all(what in printed for what in goals)


def test_the_killed_run_ended_as_the_other(smoke: tuple[dict[str, Any], str]) -> None:
    fields = smoke[0]["parts"]["resume"]
    assert fields["exact"] is True
    assert fields["differences"] == {}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of noise in two classes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for label in ("cat", "dog"):
            (folder / "set" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "set" / split / label / f"{index}.jpg")
    subprocess.run(["tar", "cJf", "set.tar.xz", "set"], cwd=folder, check=True)
    return folder / "set.tar.xz"


def test_a_second_call_trains_what_the_first_did_not_reach(images: Path, tmp_path: Path) -> None:
    words = ["gpu_cifar", "--smoke", "--source", images, "--models", "resnet20", "--seeds", "1", "--targets", "0.9"]
    words += ["--work", "work", "--out", "out"]

    def result() -> dict[str, Any]:
        document: dict[str, Any] = json.loads((tmp_path / "out" / "gpu_cifar-cpu.json").read_text())
        return document

    first = benchmark(*words, "--methods", "acdc", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    (run,) = result()["runs"]
    assert run["sparse"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert run["dense"]["sparsity"] < 0.9
    summary = tmp_path / "work" / "runs-4" / "resnet20-acdc-90-0" / "summary.json"
    written = summary.stat().st_mtime_ns
    # no minute is left once data and device are known: nothing starts
    assert benchmark(*words, "--methods", "acdc", "dense", "--minutes", "0", folder=tmp_path).returncode == 0
    assert result()["missing"] == ["resnet20-dense-0"]
    second = benchmark(*words, "--methods", "acdc", "dense", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    document = result()
    assert document["missing"] == []
    assert document["failed"] == {}
    assert {row["method"]: row["runs"] for row in document["table"]} == {"acdc": 1, "dense": 1}
    assert document["data"] == {"source": "set.tar.xz", "train": 80, "val": 20}
    assert summary.stat().st_mtime_ns == written
    assert "| resnet20       | acdc   |   90 % |" in (tmp_path / "out" / "gpu_cifar-cpu.md").read_text()
