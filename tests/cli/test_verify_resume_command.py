"""`acdc verify-resume` on real digits: real runs in processes of their own, really killed."""

from __future__ import annotations

import json
import math
import random
import signal
from pathlib import Path

import pytest
import torch
from command import Acdc, Finished
from safetensors.torch import load_file, save_file

from acdc_cli.errors import RunError
from acdc_cli.jobs import resume_check as job
from acdc_cli.jobs.resume_check import _of_values, differences
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint


@pytest.fixture
def twins(finished: Finished) -> tuple[RunDir, RunDir]:
    """A finished run and its copy."""
    finished("one")
    finished("other")
    return RunDir(Path("one")), RunDir(Path("other"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2])
def test_a_run_that_is_killed_ends_like_one_that_is_not(acdc: Acdc, recipe: Path, kills: int) -> None:
    result = acdc("verify-resume", recipe, "--kills", str(kills), "--keep", "runs", "--json", "--set", "epochs=6")
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.stdout)
    assert verdict["exact"] is True
    assert [kill["signal"] for kill in verdict["kills"]] == ["SIGKILL", "SIGTERM"][: len(verdict["kills"])]
    runs = [RunDir(Path("runs") / name) for name in ("undisturbed", "disturbed")]
    assert all(run.finished for run in runs)
    # every start has its entry, those included that ended before they came to train
    assert len(runs[1].provenance()) <= len(verdict["kills"]) + 1
    again = acdc("verify-resume", recipe, "--keep", "runs")
    assert again.exit_code == 2
    assert "runs is not empty" in again.stderr


def test_a_killed_run_is_started_again_and_compared(
    acdc: Acdc, recipe: Path, finished: Finished, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stand-in for Python, whose run is there at once, or, the first time it is to be killed, never."""
    finished("made")
    program = in_tmp / "python"
    program.write_text(
        """#!/bin/sh
while [ "$1" != --out ]; do shift; done
case "$2" in */disturbed) [ -d "$2" ] || { mkdir -p "$2/checkpoints"; exec sleep 100; } ;; esac
mkdir -p "$2" && cp -r made/. "$2"
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(job.sys, "executable", str(program))
    result = acdc("verify-resume", recipe, "--kills", "1", "--keep", "runs", "--json")
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.stdout)
    assert verdict["exact"] is True
    assert [(kill["signal"], kill["epoch"]) for kill in verdict["kills"]] == [("SIGKILL", 0)]
    again = acdc("verify-resume", recipe, "--keep", "runs")
    assert again.exit_code == 2
    assert "runs is not empty" in again.stderr


def test_twins_do_not_differ(twins: tuple[RunDir, RunDir]) -> None:
    assert differences(*twins) == {}


def test_one_weight_one_record_or_one_file_makes_a_difference(twins: tuple[RunDir, RunDir]) -> None:
    one, other = twins
    weights = load_file(other.model_file("sparse"))
    weights["conv1.weight"].view(-1)[0] += 0.5
    save_file(weights, other.model_file("sparse"))
    lines = other.metrics.read_text().splitlines()
    lines[4] = lines[4].replace('"top1": ', '"top1": 1')
    other.metrics.write_text("\n".join(lines) + "\n")
    mask = sorted(other.masks.iterdir())[0]
    mask.unlink()
    state = checkpoint.load_state(other.checkpoints)
    assert state is not None
    state["random"] = torch.zeros(3)
    checkpoint.save_state(other.checkpoints, state)
    assert differences(one, other) == {
        "metrics.jsonl": "from epoch 4 on",
        "sparse.safetensors": "it.conv1.weight by up to 0.5",
        f"masks/{mask.name}": "only the first run has it",
        "last state": "it has other entries",
    }


@pytest.mark.parametrize(
    ("one", "other", "same"), [(0.0, -0.0, False), (math.nan, 0.0, False), (math.nan, math.nan, True)]
)
def test_the_same_means_to_the_bit(one: float, other: float, same: bool) -> None:
    assert (_of_values(torch.tensor(one), torch.tensor(other), "it") == "") is same


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (torch.zeros(2), torch.zeros(1, 2), "it has another shape or type"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "it has another shape or type"),
        ({"a": [1, (2, 3)]}, {"a": [1, (2, 3, 4)]}, "it.a[1] has another length"),
        ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}, "it.a[1][1]: 3 and 4"),
    ],
)
def test_a_difference_within_a_state_is_named_by_its_place(one: object, other: object, said: str) -> None:
    assert _of_values(one, other, "it") == said


def stand_in(folder: Path, patch: pytest.MonkeyPatch, script: str) -> None:
    """For Python: to import torch takes seconds."""
    program = folder / "stand-in"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    patch.setattr(job.sys, "executable", str(program))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo error: no digits >&2; exit 2", "the run ended with exit code 2: error: no digits"),
        (
            'case "$*" in */disturbed*) echo error: no room >&2; exit 1 ;; esac',
            "the run ended by itself, with exit code 1: error: no room",
        ),
    ],
)
def test_a_run_that_cannot_be_trained_says_why(
    acdc: Acdc, recipe: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    stand_in(in_tmp, monkeypatch, script)
    result = acdc("verify-resume", recipe)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_run_that_ends_before_it_could_be_killed_is_not_trained_again(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(in_tmp, monkeypatch, "echo run >>runs; exit 0")
    assert job._disturbed([job.sys.executable], in_tmp / "out", 3, 100, 0, random.Random(0)) == []
    assert "the run finished after 0 kills" in capsys.readouterr().err
    assert Path("runs").read_text() == "run\n"


def test_no_process_outlives_an_interrupted_check(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(in_tmp, monkeypatch, "exec sleep 100")
    with pytest.raises(KeyboardInterrupt), job._started([job.sys.executable], in_tmp / "out") as process:
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("settings", "device", "again", "fails"),
    [
        ([], "cuda", "the same", True),
        ([], "cuda", "another", False),
        (["deterministic=true"], "cuda", "another", True),
        ([], "cpu", "another", True),
    ],
)
def test_a_difference_fails_unless_the_device_alone_explains_it(
    acdc: Acdc, recipe: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], device: str, again: str, fails: bool
) -> None:
    """Runs are made up here: on a device that is not exact, which no CPU is."""
    differences = {"disturbed": {"sparse.safetensors": "it.fc.weight by up to 1e-07"}, "again": {}}
    if again == "another":
        differences["again"] = {"sparse.safetensors": "it.fc.weight by up to 2e-07"}
    monkeypatch.setattr(job, "choose_device", lambda name: torch.device(device))
    monkeypatch.setattr(job, "_run_to_end", lambda command, out: 0.0)
    monkeypatch.setattr(job, "_disturbed", lambda *arguments: [])
    monkeypatch.setattr(job, "differences", lambda one, other: differences[other.path.name])
    if fails:
        with pytest.raises(
            RunError, match=r"does not survive being killed: sparse.safetensors: it.fc.weight by up to 1"
        ):
            job.verify_resume(str(recipe), settings)
    else:
        done = acdc("verify-resume", recipe)
        assert done.exit_code == 0, done.output
        said = " ".join(done.stdout.split())
        assert "sparse.safetensors it.fc.weight by up to 1e-07 it.fc.weight by up to 2e-07" in said
        assert said.endswith("repeat it with --set deterministic=true")
        differences["disturbed"] = {}
        assert acdc("verify-resume", recipe).stdout.endswith(
            "identical to the bit: weights, masks, optimiser, records\n"
        )
