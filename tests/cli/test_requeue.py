"""A run in a Slurm job that is signalled before its end saves, requeues its job, and resumes there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import Acdc
from torch import Tensor

from acdc_cli.errors import RESUME_ME
from acdc_cli.jobs.requeueing import requeue
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training.trainer import Trainer

REQUEUE = ("--set", "checkpoint.requeue=true", "--out", "run")
SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_one_node.sh"
CONF = "/tmp/acdc-slurm/slurm.conf"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in for Slurm's command was given; in a job of number 4711."""
    program, given = tmp_path / "bin" / "scontrol", tmp_path / "given"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {given}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    return given


def signalled(patch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """The process receives the signal after each step."""
    take_step = Trainer._take_step

    def interrupted(trainer: Trainer, *arguments: Any) -> Tensor:
        losses = take_step(trainer, *arguments)
        os.kill(os.getpid(), number)
        return losses

    patch.setattr(Trainer, "_take_step", interrupted)


def test_outside_a_job_nothing_is_requeued(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    requeue()
    assert not scontrol.exists()


@pytest.mark.parametrize(
    ("number", "asked", "given"),
    [
        (signal.SIGUSR1, True, "requeue 4711\n"),
        # of a user, or of Slurm while it cancels or preempts the job
        (signal.SIGTERM, True, None),
        (signal.SIGUSR1, False, None),
    ],
)
def test_usr1_requeues_the_job_once_the_run_is_saved(
    acdc: Acdc, recipe: Path, scontrol: Path, number: signal.Signals, asked: bool, given: str | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, number)
        words = REQUEUE if asked else REQUEUE[2:]
        stopped = acdc("train", recipe, *words, "--resume", "auto")
    assert stopped.exit_code == RESUME_ME
    assert (scontrol.read_text() if scontrol.exists() else None) == given
    assert ("Slurm job 4711 is requeued" in stopped.stderr) == (given is not None)
    assert Path("run/checkpoints/last.pt").exists()


def test_a_job_that_cannot_be_requeued_is_a_warning(acdc: Acdc, recipe: Path, scontrol: Path) -> None:
    program = scontrol.parent / "bin/scontrol"
    program.write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, signal.SIGUSR1)
        stopped = acdc("train", recipe, *REQUEUE, "--resume", "auto")
    assert stopped.exit_code == RESUME_ME
    said = " ".join(stopped.stderr.split())
    assert "job 4711 could not be requeued (Requested operation is presently disabled); submit it again" in said


def test_a_command_that_could_not_be_repeated_is_refused_in_a_job(acdc: Acdc, recipe: Path, scontrol: Path) -> None:
    refused = acdc("train", recipe, *REQUEUE)
    assert refused.exit_code == 2
    assert "checkpoint.requeue repeats this command in a new job: add --resume auto" in " ".join(refused.stderr.split())
    assert not Path("run").exists()


@pytest.mark.slurm
@pytest.mark.timeout(300)
def test_slurm_starts_the_requeued_job_again_and_the_run_ends(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was_up = subprocess.run([SCRIPT, "status"], check=False).returncode == 0
    subprocess.run([SCRIPT, "start"], check=True)
    monkeypatch.setenv("SLURM_CONF", CONF)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    train = f"{sys.executable} -m acdc_cli train {recipe} {' '.join(REQUEUE)} --resume auto"
    Path("job.sh").write_text(f"#!/bin/sh\n#SBATCH --signal=USR1@120 --requeue --open-mode=append\nsrun {train}\n")
    try:
        job = subprocess.run(
            ["sbatch", "--parsable", "--output", "log", "job.sh"], check=True, capture_output=True, text=True
        ).stdout.strip()
        run, end = RunDir(Path("run")), time.monotonic() + 240
        while not (run.checkpoints / "last.pt").exists():
            assert time.monotonic() < end, Path("log").read_text()
            time.sleep(0.01)
        # as Slurm does before the time limit, whose smallest value is a minute
        subprocess.run(["scancel", "--signal", "USR1", job], check=True)
        while not run.finished:
            assert time.monotonic() < end, Path("log").read_text()
            time.sleep(0.1)
    finally:
        if not was_up:
            subprocess.run([SCRIPT, "stop"], check=True)
    said = Path("log").read_text()
    assert said.count("stopped and saved after step") == said.count(f"Slurm job {job} is requeued") == 1
    assert said.count("resuming after") == 1
    assert len(run.provenance()) == 2
    assert [record["epoch"] for record in run.records()] == list(range(6))
