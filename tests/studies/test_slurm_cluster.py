"""The Slurm launcher against a real Slurm of one node: arrays, preemption, the end of the time, and real runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_runs import cells
from test_sweep_command import images

from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.run_queue import Row, RunQueue

pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
from acdc_cli.studies import slurm
from acdc_cli.studies.slurm import Slurm, SlurmJob

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_one_node.sh"
SAVES = """
import pathlib, signal, sys, time
asked = []
for each in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(each, lambda number, frame: asked.append(number))
print("again" if pathlib.Path("saved").exists() else "first", flush=True)
while not pathlib.Path("saved").exists():
    time.sleep(0.05)
    if asked:
        pathlib.Path("saved").write_text(str(asked))
        sys.exit(75)
"""
STUDY = """name: tiny
base: tiny.yaml
axes:
  epochs: [3, {long}]
  seed: [0, 1]
"""


@pytest.fixture(scope="module", autouse=True)
def _slurm() -> Iterator[None]:
    """The script's cluster; one that is up already is used, and left up."""
    was_up = subprocess.run([SCRIPT, "status"], check=False).returncode == 0
    subprocess.run([SCRIPT, "start"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", "/tmp/acdc-slurm/slurm.conf")
        yield
    if not was_up:
        subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture(autouse=True)
def _empty_queue() -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--user", "root", "--signal", "KILL", "--full"], check=False)
    subprocess.run(["scancel", "--user", "root"], check=True)
    until(lambda: not said("squeue", "--noheader"), seconds=60)


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it took more than {seconds} s"
        time.sleep(0.1)


def launched(*options: str) -> Slurm:
    launcher = slurm.slurm(Path("slurm"), "test", options, lambda states: None)
    launcher._refresh_every, launcher._patience = 0.5, 3
    return launcher


def started(launcher: Slurm, program: str, number: int = 0) -> SlurmJob:
    return launcher.start(cells(9)[number], [sys.executable, "-c", program], {}, Path("log"))


def outcomes(*jobs: SlurmJob) -> list[int | None]:
    until(lambda: None not in [job.poll() for job in jobs])
    return [job.poll() for job in jobs]


def log() -> list[str]:
    return Path("log").read_text().split() if Path("log").exists() else []


def test_cells_are_elements_of_one_array_and_end_with_their_commands_exit_codes(in_tmp: Path) -> None:
    launcher = launched()
    jobs = [started(launcher, f"raise SystemExit({number})", number) for number in (0, 1, 2)]
    assert outcomes(*jobs) == [0, 1, 2]
    ids = [job.submitted.job_id.split("_") for job in jobs if job.submitted]
    assert len({array for array, _ in ids}) == 1
    assert [element for _, element in ids] == ["0", "1", "2"]


def test_a_run_has_as_many_threads_as_its_job_has_cores(in_tmp: Path) -> None:
    program = "import os; print(os.environ['OMP_NUM_THREADS'])"
    assert outcomes(started(launched("cpus-per-task=3"), program)) == [0]
    assert outcomes(started(launched(), program)) == [0]
    assert log() == ["3", "1"]


def test_a_run_saves_before_its_time_is_up_and_goes_on(in_tmp: Path) -> None:
    job = started(launched("time=2", "signal-delay-s=100"), SAVES)
    assert outcomes(job) == [0]
    assert log() == ["first", "again"]
    assert str(int(signal.SIGUSR1)) in Path("saved").read_text()


def test_a_preempted_run_saves_and_goes_on(in_tmp: Path) -> None:
    job = started(launched("partition=low", "exclusive="), SAVES)
    job.poll()
    until(lambda: log() == ["first"])
    subprocess.run(["sbatch", "--partition=high", "--exclusive", "--output=other", "--wrap=sleep 1"], check=True)
    until(lambda: Path("saved").exists())
    assert outcomes(job) == [0]
    assert log() == ["first", "again"]
    assert str(int(signal.SIGTERM)) in Path("saved").read_text()


def test_a_run_whose_job_is_cancelled_does_not_come_back(in_tmp: Path) -> None:
    job = started(launched(), SAVES)
    job.poll()
    until(lambda: log() == ["first"])
    assert job.submitted is not None
    job.submitted.cancel()
    assert outcomes(job) == [-signal.SIGTERM]
    assert "has ended as CANCELLED" in Path("log").read_text()


def test_a_killed_job_is_a_failure(in_tmp: Path) -> None:
    job = started(launched(), "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert outcomes(job) == [-signal.SIGKILL]
    assert "has ended as FAILED" in Path("log").read_text()


def test_a_wrong_option_is_said_in_slurms_words(in_tmp: Path) -> None:
    with pytest.raises(Exception, match="invalid partition specified: gpuu"):
        started(launched("partition=gpuu"), "").poll()


# --- Real runs ----------------------------------------------------------------------------------


@pytest.fixture
def study(in_tmp: Path) -> Path:
    images(in_tmp / "images")
    (in_tmp / "tiny.yaml").write_text(
        f"""extends: demo_dense
name: tiny
model: {{name: resnet8}}
data: {{name: folder, path: {in_tmp / "set"}, batch_size: 50, val_batch_size: 40, loader: torch, workers: 0}}
optim: {{schedule: {{warmup_epochs: 0}}}}
"""
    )
    path = in_tmp / "study.yaml"
    path.write_text(STUDY.format(long=12))
    return path


Sweeping = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeping]:
    """Starts `acdc sweep` in a process of its own."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(study: Path, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "acdc_cli", "sweep", str(study), "--launcher", "slurm", *options]
        with Path("said").open("ab") as file:
            begun.append(subprocess.Popen(command, stdout=file, stderr=file))
        return begun[-1]

    yield start
    for each in begun:
        each.kill()
        each.wait()


def rows() -> list[Row]:
    path = Path("studies/tiny/ledger.sqlite")
    return RunQueue(path).rows() if path.exists() else []


def starts(row: Row) -> int:
    """Times that the run began or went on."""
    return len(RunDir(row.directory).provenance())


def submissions() -> int:
    return len(list(Path("studies/tiny/slurm").glob("*_submission.sh")))


def trained(row: Row) -> bool:
    return RunDir(row.directory).metrics.exists()


def test_a_study_is_one_array_of_runs(study: Path, sweeping: Sweeping) -> None:
    sweep = sweeping(study, "--slurm-comment=a study")
    until(lambda: "a study" in said("squeue", "--noheader", "--format", "%k"))
    assert sweep.wait(timeout=200) == 0, Path("said").read_text()
    assert [row.state for row in rows()] == ["done"] * 4
    assert len({(row.job or "").partition("_")[0] for row in rows()}) == 1
    assert [starts(row) for row in rows()] == [1] * 4
    summaries = [json.loads((row.directory / "summary.json").read_text()) for row in rows()]
    assert [summary["seed"] for summary in summaries] == [0, 1, 0, 1]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_second_sweep_submits_nothing_twice(study: Path, sweeping: Sweeping, end: signal.Signals) -> None:
    first = sweeping(study, "--slurm-cpus-per-task=2")
    until(lambda: any(trained(row) for row in rows()))
    first.send_signal(end)
    assert first.wait(timeout=60) == (-signal.SIGKILL if end == signal.SIGKILL else 75)
    assert "PENDING" in said("squeue", "--noheader", "--format", "%T"), "two of four fit on the node"
    second, third = sweeping(study), sweeping(study)
    assert [each.wait(timeout=200) for each in (second, third)] == [0, 0], Path("said").read_text()
    assert [row.state for row in rows()] == ["done"] * 4
    assert [starts(row) for row in rows()] == [1] * 4
    assert submissions() == 1


def test_a_preempted_run_of_a_study_goes_on_from_its_checkpoint(study: Path, sweeping: Sweeping) -> None:
    study.write_text(STUDY.format(long=40).replace("epochs: [3, 40]", "epochs: [40]").replace("[0, 1]", "[0]"))
    sweep = sweeping(study, "--slurm-partition=low", "--slurm-exclusive")
    until(lambda: any(trained(row) for row in rows()))
    subprocess.run(["sbatch", "--partition=high", "--exclusive", "--output=other", "--wrap=sleep 1"], check=True)
    assert sweep.wait(timeout=200) == 0, Path("said").read_text()
    (row,) = rows()
    assert starts(row) == 2
    assert row.attempts == 1
    assert [record["epoch"] for record in RunDir(row.directory).records()] == list(range(40))
    assert submissions() == 1


def test_a_run_that_fails_is_tried_twice_and_said(study: Path, sweeping: Sweeping) -> None:
    study.write_text(STUDY.format(long=4))
    os.rename("set", "elsewhere")
    sweep = sweeping(study)
    assert sweep.wait(timeout=200) == 2
    assert [(row.state, row.failures) for row in rows()] == [("failed", 2)] * 4
    assert all("set" in (row.error or "") for row in rows())


def test_a_run_may_have_several_processes(study: Path, sweeping: Sweeping) -> None:
    study.write_text(STUDY.format(long=4).replace("[3, 4]", "[2]").replace("[0, 1]", "[0]"))
    assert sweeping(study, "--slurm-ntasks-per-node=2").wait(timeout=200) == 0, Path("said").read_text()
    (row,) = rows()
    assert [entry["processes"] for entry in RunDir(row.directory).provenance()] == [2]
