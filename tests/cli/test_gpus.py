"""`acdc train --gpus N`, torchrun and srun: processes that find each other, are lost, and are asked to stop.

A dozen processes that import torch; what is decided over them is tested in `jobs/test_launch.py`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from command import Acdc
from digits import TINY

from acdc_cli.jobs.training_run import train
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training.checkpoint import load_state

COMMAND = [sys.executable, "-m", "acdc_cli"]
SETS = (
    "epochs=12",
    "device=cpu",
    "optim={name: adamw, lr: 0.002, schedule: {name: linear}}",
    "sparsity={method: rigl, target: 0.9, distribution: erk, every: 3}",
)
WORDS = [word for each in SETS for word in ("--set", each)]


def start(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )


def said_by(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    path = tmp_path_factory.mktemp("gpus") / "small.yaml"
    path.write_text(
        f"extends: demo\nname: small\ndata: {{name: folder, path: {digits}, batch_size: 50, loader: torch, {TINY}}}\n"
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(small: Path) -> dict[str, torch.Tensor]:
    """The weights of one process that cuts its batches in two, which are those of two processes to the bit."""
    return weights(train(str(small), [*SETS, "optim.accumulate=2"], small.parent / "undisturbed"))


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    """What is learned: batch norm's running statistics are of each process's own part of a batch."""
    state = load_state(run.checkpoints)
    assert state is not None
    return {name: value for name, value in state["model"].items() if "running" not in name and "num_" not in name}


def assert_finished_as(undisturbed: dict[str, torch.Tensor], run: RunDir) -> None:
    assert run.finished
    actual = weights(run)
    assert all(torch.equal(value, actual[name]) for name, value in undisturbed.items())
    assert [record["epoch"] for record in run.records()] == list(range(12))


def wait_for_checkpoint(run: RunDir, process: subprocess.Popen[str]) -> None:
    while not (run.checkpoints / "last.pt").exists():
        assert process.poll() is None, said_by(process)
        time.sleep(0.01)


def worker(agent: int, rank: int) -> int:
    """The process that the agent has started as this rank."""
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_lost_process_is_started_again_and_the_run_ends_as_if_nothing_had_been(
    small: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = RunDir(tmp_path / "run")
    process = start(*COMMAND, "train", small, *WORDS, "--out", run.path, "--gpus", "2")
    wait_for_checkpoint(run, process)
    os.kill(worker(process.pid, rank=1), signal.SIGKILL)
    said = said_by(process)
    assert process.returncode == 0, said
    assert "all processes restart from the last checkpoint, attempt 1 of 3" in said
    assert "resuming after" in said
    assert "Traceback" not in said
    assert_finished_as(undisturbed, run)


@pytest.mark.slow
def test_processes_of_which_one_hangs_are_started_again_at_the_deadline(
    small: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = RunDir(tmp_path / "run")
    limit = ("--set", "distributed.timeout_minutes=0.2")
    process = start(*COMMAND, "train", small, *WORDS, *limit, "--out", run.path, "--gpus", "2")
    wait_for_checkpoint(run, process)
    os.kill(worker(process.pid, rank=1), signal.SIGSTOP)
    said = said_by(process)
    assert process.returncode == 0, said
    assert "waiting for rank 1 of 2" in said
    assert "attempt 1 of 3" in said
    assert_finished_as(undisturbed, run)


@pytest.mark.slow
def test_a_process_whose_launcher_dies_while_it_waits_for_one_that_hangs_ends(small: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = start(*COMMAND, "train", small, *WORDS, "--set", "epochs=1000", "--out", run.path, "--gpus", "2")
    wait_for_checkpoint(run, process)
    first, second = (worker(process.pid, rank) for rank in range(2))
    os.kill(second, signal.SIGSTOP)
    process.kill()
    deadline = time.monotonic() + 40
    while Path(f"/proc/{first}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    is_over = not Path(f"/proc/{first}").exists()
    for pid in (second, *([] if is_over else [first])):
        os.kill(pid, signal.SIGKILL)
    assert is_over
    assert "its launcher has died while " in said_by(process)


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_the_run_with_which_torchruns_processes_go_on(
    small: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = RunDir(tmp_path / "run")
    command = ("-m", "acdc_cli", "train", small, *WORDS, "--out", run.path, "--resume", "auto")
    process = start(sys.executable, *command, "--gpus", "2")
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGUSR1)
    said = said_by(process)
    assert process.returncode == 75, said
    assert said.count("stopped and saved after step") == 1
    assert not run.finished

    process = start(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command)
    said = said_by(process)
    assert process.returncode == 0, said
    assert said.count("batch 50 = 2 processes × 25 images") == said.count("resuming after") == 1
    assert_finished_as(undisturbed, run)


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(small: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = start(*COMMAND, "train", small, *WORDS, "--set", "epochs=1000", "--out", run.path, "--gpus", "2")
    wait_for_checkpoint(run, process)
    workers = [worker(process.pid, rank) for rank in range(2)]
    process.kill()
    deadline = time.monotonic() + 60
    while living := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    # they hold the other end of its stderr
    assert "stopped and saved after step" in said_by(process)


@pytest.mark.slow
def test_sruns_processes_train_together(small: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    run = RunDir(tmp_path / "run")
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": socket.gethostname()}
    processes = [
        start(
            *(*COMMAND, "train", small, *WORDS, "--out", run.path),
            environment={**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in ("0", "1")
    ]
    said = [said_by(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "batch 50 = 2 processes × 25 images" in said[0]
    assert said[1] == ""
    assert_finished_as(undisturbed, run)


@pytest.mark.slow
def test_what_the_user_can_mend_is_said_once_and_tried_once(
    acdc: Acdc, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # set by the launcher, which is a process of its own otherwise
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    handlers = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGQUIT)}
    result = acdc("train", small, *WORDS, "--set", "data.path=nowhere", "--out", tmp_path, "--gpus", "2")
    for each, handler in handlers.items():
        signal.signal(each, handler)
    said = result.stderr + capfd.readouterr().err
    assert result.exit_code == 2, said
    # torch's own log may stand beside it, such as of a store that ends before a process does
    assert said.count("error: ") == said.count("error: the data set folder") == 1, said
    assert "all processes restart" not in said
    assert "Traceback" not in said


def test_a_mistake_in_the_recipe_starts_no_process(acdc: Acdc, small: Path) -> None:
    result = acdc("train", small, "--set", "epoch=1", "--gpus", "2")
    assert result.exit_code == 2
    assert "did you mean" in result.stderr


def test_more_gpus_than_there_are(acdc: Acdc, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    result = acdc("train", small, "--gpus", "2")
    assert result.exit_code == 2
    assert " ".join(result.stderr.split()).startswith("error: 2 GPUs asked for, 1 available")


def test_no_gpu_at_all(acdc: Acdc, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    result = acdc("train", small, "--gpus", "1")
    assert result.exit_code == 2
    assert "1 GPUs asked for, 0 available; train on CPUs with --set device=cpu" in " ".join(result.stderr.split())


def test_a_process_of_torchrun_launches_no_others(acdc: Acdc, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    result = acdc("train", small, "--gpus", "2")
    assert result.exit_code == 2
    assert "torchrun or srun already started this one; leave out --gpus" in " ".join(result.stderr.split())
