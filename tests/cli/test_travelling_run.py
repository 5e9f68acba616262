"""Runs that are read from another folder than the one they were trained in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import Acdc, Finished

from acdc_cli.jobs import data_search
from acdc_cli.runs.run_dir import RunDir


@pytest.fixture
def home(
    in_tmp: Path,
    finished: Finished,
    digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with the run in `runs/`, whose recipe names its data `data/digits`, relative to that folder; the working
    directory is elsewhere."""
    finished()
    home = tmp_path_factory.mktemp("home")
    shutil.copytree("runs/small-0", home / "runs/small-0")
    resolved = RunDir(home / "runs/small-0").resolved
    resolved.write_text(resolved.read_text().replace(str(digits), "data/digits"))
    monkeypatch.setattr(data_search, "SEARCHED", home / "config")
    return home


def top1(acdc: Acdc, home: Path) -> float:
    done = acdc("eval", "--checkpoint", home / "runs/small-0", "--json")
    assert done.exit_code == 0, done.output
    return float(json.loads(done.stdout)["top1"])


def expected(home: Path) -> float:
    return float(json.loads(RunDir(home / "runs/small-0").summary.read_text())["sparse"]["top1"])


def refusal(acdc: Acdc, home: Path) -> str:
    refused = acdc("eval", "--checkpoint", home / "runs/small-0")
    assert refused.exit_code == 2
    return " ".join(refused.stderr.split())


def test_data_beside_the_run_is_found_from_any_folder(acdc: Acdc, home: Path, digits: Path) -> None:
    shutil.copytree(digits, home / "data/digits")
    assert top1(acdc, home) == expected(home)
    assert acdc("analyze", "calibration", home / "runs/small-0").exit_code == 0
    result = acdc("verify-run", home / "runs/small-0")
    assert f"data: {home}/data/digits has the images" in " ".join(result.stderr.split())


def test_data_below_a_listed_folder_is_found_by_its_content(acdc: Acdc, home: Path, digits: Path) -> None:
    # of another name; one of the right name holds other images
    shutil.copytree(digits, home / "sets/mine")
    wrong = home / "sets/digits"
    shutil.copytree(digits, wrong)
    for split in ("train", "val"):
        file = wrong / f"{split}.beton.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"content_hash": "0" * 64}))
    (home / "config").write_text(f"# my disks\n\n{home}/nowhere\n{home}/sets\n")
    assert top1(acdc, home) == expected(home)


def test_the_error_says_where_it_looked(acdc: Acdc, home: Path) -> None:
    (home / "config").write_text(f"{home}/sets\n")
    said = refusal(acdc, home)
    assert f"{home}/runs/small-0/data/digits" in said
    assert "more. Name the folder with --data" in said


def test_a_list_that_cannot_be_read_is_said(acdc: Acdc, home: Path) -> None:
    (home / "config").write_bytes(b"\xff\xfe")
    said = refusal(acdc, home)
    assert f"{home}/config cannot be read (" in said
    assert "it lists folders, one per line" in said


def test_a_file_of_a_run_with_a_damaged_recipe_takes_its_data_where_they_are_said_to_be(
    acdc: Acdc, home: Path, digits: Path
) -> None:
    RunDir(home / "runs/small-0").resolved.write_text("{")
    file = home / "runs/small-0/sparse.safetensors"
    done = acdc("eval", "--checkpoint", file, "--data", digits, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["top1"] == expected(home)


def test_an_unfinished_run_resumes_elsewhere(acdc: Acdc, home: Path, digits: Path) -> None:
    shutil.copytree(digits, home / "data/digits")
    run = RunDir(home / "runs/small-0")
    run.summary.unlink()
    resumed = acdc("train", run.path, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert expected(home) > 0


def test_other_images_at_the_runs_own_place_are_named(
    acdc: Acdc, home: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(digits, home / "data/digits")
    monkeypatch.chdir(home)
    provenance = RunDir(home / "runs/small-0").path / "provenance.json"
    (entry,) = json.loads(provenance.read_text())
    entry["data"]["fingerprint"] = {"train": "0" * 64, "val": "1" * 64}
    provenance.write_text(json.dumps([entry]))
    done = acdc("eval", "--checkpoint", "runs/small-0")
    assert done.exit_code == 0
    assert "does not hold the images" in " ".join(done.stderr.split())
    # a place that the command line names is not questioned
    named = acdc("eval", "--checkpoint", "runs/small-0", "--data", home / "data/digits")
    assert "does not hold" not in named.stderr
