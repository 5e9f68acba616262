"""What `acdc doctor` makes of a machine: facts in, verdict out; and that a check that fails stops no other."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from acdc_cli.doctor import cgroup, diagnose, gpu, machine, software
from acdc_cli.doctor import training as self_test
from acdc_cli.doctor.verdict import Verdict, ok
from acdc_cli.errors import DataError, RunError

GIB = 2**30
PACKAGES = [Requirement("torch>=2.11"), Requirement("timm>=1.0.20")]
FFCV = [Requirement("ffcv==1.0.2"), Requirement("numba>=0.61")]


@pytest.mark.parametrize(("version", "status"), [("3.10.9", "error"), ("3.11.0", "ok"), ("3.14.0", "error")])
def test_a_python_outside_the_supported_range_is_an_error(version: str, status: str) -> None:
    assert software.judge_python(version, ">=3.11,<3.14").status == status


def test_the_range_of_every_package_is_the_one_that_acdc_was_installed_with() -> None:
    names = {each.name for each in software.required()}
    assert names >= {"torch", "torchvision", "timm", "wandb", "numpy"}
    assert "ffcv" not in names
    assert {each.name for each in software.required("ffcv")} >= {"ffcv", "numba"}


def test_a_bare_checkout_declares_what_the_installed_package_does() -> None:
    installed, checkout = software.declared(), software._of_checkout(Path(__file__).parents[2] / "pyproject.toml")
    assert checkout.version == installed.version
    assert SpecifierSet(checkout.python) == SpecifierSet(installed.python)
    assert {str(each) for each in checkout.packages} == {str(each) for each in installed.packages}


def test_a_checkout_stands_in_for_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(software.metadata, "metadata", missing)
    # not what an earlier test had it remember
    checkout = software.declared.__wrapped__()
    assert {each.name for each in checkout.packages} >= {"torch", "torchvision", "timm", "wandb", "numpy"}
    monkeypatch.setattr(software.metadata, "version", missing)
    assert software._installed(PACKAGES) == {}


def test_a_package_without_metadata_and_without_a_checkout_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="acdc is not installed"):
        software._of_checkout(tmp_path / "pyproject.toml")


def test_packages_in_their_ranges_are_shown_builds_and_all() -> None:
    verdict = software.judge_packages("0.1.0", {"torch": "2.11.0+cu128", "timm": "1.1.0"}, PACKAGES)
    assert verdict == ok("acdc 0.1.0, torch 2.11.0+cu128, timm 1.1.0")


def test_old_and_missing_packages_are_an_error_with_one_command_that_mends_them() -> None:
    status, result, fix = software.judge_packages("0.1.0", {"torch": "2.10.1"}, PACKAGES)
    assert status == "error"
    assert result == "torch 2.10.1 (needed: >=2.11), timm is missing (needed: >=1.0.20)"
    assert fix == "pip install 'torch>=2.11' 'timm>=1.0.20'"


@pytest.mark.parametrize(
    ("torch", "problem", "status", "says"),
    [
        ("2.11.0", None, "ok", "match: compiled operations work"),
        ("2.12.0", None, "error", "built for torch ==2.11.0"),
        ("2.11.0", "RuntimeError: operator torchvision::nms does not exist", "error", "nms does not exist"),
    ],
)
def test_torchvision_needs_its_own_torch(torch: str, problem: str | None, status: str, says: str) -> None:
    versions = {"torch": torch, "torchvision": "0.26.0"}
    verdict = software.judge_torchvision(versions, Requirement("torch==2.11.0"), problem)
    assert verdict.status == status
    assert says in verdict.result
    assert verdict.fix.startswith("pip install --force-reinstall torch torchvision") == (status == "error")


@pytest.mark.parametrize(
    ("installed", "problem", "status", "says", "fix"),
    [
        ({"ffcv": "1.0.2", "numba": "0.61"}, None, "ok", "uses it for .beton files", ""),
        ({}, "the package ffcv is not installed", "warning", "not installed: data.loader `auto`", "HINT"),
        ({"ffcv": "1.0.2", "numba": "0.61"}, "libopencv_core.so: cannot open", "warning", "libopencv_core.so", "HINT"),
        ({"ffcv": "1.1.0", "numba": "0.61"}, None, "warning", "made for ffcv==1.0.2", "pip install 'ffcv==1.0.2'"),
    ],
)
def test_without_ffcv_or_its_libraries_the_other_loader_is_named(
    installed: dict[str, str], problem: str | None, status: str, says: str, fix: str
) -> None:
    verdict = software.judge_ffcv(installed, FFCV, problem, "HINT")
    assert (verdict.status, verdict.fix) == (status, fix)
    assert says in verdict.result


@pytest.mark.parametrize(
    ("module", "check", "says"),
    [
        ("acdc_cli.data.ffcv", software.ffcv, "slower on photographs"),
        ("acdc_cli.runs.tracker", software.wandb, "W&B cannot be imported"),
    ],
)
def test_what_cannot_be_imported_but_is_not_needed_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, module: str, check: Callable[[], Verdict], says: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert check().status == "warning"
    assert says in check().result


def test_a_torch_without_its_distributed_package_trains_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert software.processes().result == "torch has no gloo: training is limited to one process"


@pytest.mark.parametrize(
    ("gloo", "nccl", "devices", "status"),
    [(True, True, 8, "ok"), (True, False, 1, "ok"), (True, False, 2, "warning"), (False, True, 1, "warning")],
)
def test_many_processes_need_gloo_and_many_gpus_nccl(gloo: bool, nccl: bool, devices: int, status: str) -> None:
    assert software.judge_processes(gloo, nccl, devices).status == status


def test_wandb_that_is_not_logged_in_is_a_warning_unless_it_was_asked_for() -> None:
    assert software.judge_wandb("online", asked=False).status == "ok"
    assert software.judge_wandb("offline", asked=True) == ok("offline, as set by WANDB_MODE")
    status, _, fix = software.judge_wandb("offline", asked=False)
    assert status == "warning"
    assert "wandb login" in fix


H100 = gpu.Device("NVIDIA H100", 79.2, bf16=True)
GPU = gpu.CudaInstallation("550.54", "12.8", [H100, H100])


def test_gpus_are_named_with_memory_driver_and_cuda() -> None:
    assert gpu.judge(GPU) == ok("NVIDIA H100 (79 GiB), NVIDIA H100 (79 GiB); driver 550.54, torch for CUDA 12.8, bf16")


def test_a_gpu_without_bf16_is_a_warning_that_names_the_precision_to_take() -> None:
    verdict = gpu.judge(replace(GPU, devices=[gpu.Device("Tesla V100", 16, bf16=False)]))
    assert (verdict.status, verdict.fix) == ("warning", "--set precision=fp16")


def test_the_driver_is_the_one_that_nvidia_smi_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "550.54"\necho "550.54"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu._driver() == "550.54"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpu._driver() is None


@pytest.mark.parametrize(
    ("facts", "status", "says", "fix"),
    [
        (gpu.CudaInstallation(None, "12.8", [], "Found no NVIDIA driver"), "warning", "no NVIDIA GPU", "--gpus all"),
        (gpu.CudaInstallation("550.54", None, []), "error", "built without CUDA", "pip install"),
        (
            gpu.CudaInstallation("450.1", "12.8", [], "The driver is too old"),
            "error",
            "(The driver is too old)",
            "update",
        ),
        (gpu.CudaInstallation("550.54", "12.8", [], visible=""), "warning", "CUDA_VISIBLE_DEVICES=''", "unset"),
    ],
)
def test_without_a_usable_gpu_training_is_on_the_cpu_and_why_is_said(
    facts: gpu.CudaInstallation, status: str, says: str, fix: str
) -> None:
    verdict = gpu.judge(facts)
    assert verdict.status == status
    assert says in verdict.result
    assert verdict.result.endswith("training will be on the CPU")
    assert fix in verdict.fix


@pytest.mark.parametrize(
    ("cores", "limit", "torch", "fix"),
    [
        (8, None, 8, ""),
        (8, None, 1, ""),
        (8, 16.0, 8, ""),
        (8, None, 64, "--set threads=8 --set data.workers=8"),
        (8, 16.0, 64, "--set threads=8 --set data.workers=8"),
        (64, 1.5, 64, "--set threads=2 --set data.workers=2"),
        (64, 4.0, 1, "--set threads=4 --set data.workers=4"),
    ],
)
def test_more_threads_than_can_run_at_once_are_a_warning(cores: int, limit: float | None, torch: int, fix: str) -> None:
    verdict = machine.judge_threads(machine.Threads(cores, limit, torch, "OpenMP"))
    assert verdict.fix == fix
    assert verdict.status == ("warning" if fix else "ok")


@pytest.mark.parametrize(
    ("free", "limit", "status"),
    [(32 * GIB, None, "ok"), (2 * GIB, None, "warning"), (32 * GIB, 2 * GIB, "warning"), (5 * GIB, 64 * GIB, "ok")],
)
def test_memory_is_what_the_machine_and_the_container_leave(free: int, limit: int | None, status: str) -> None:
    assert machine.judge_memory(64 * GIB, free, limit).status == status


def test_little_shared_memory_is_a_warning_with_the_workers_that_fit() -> None:
    assert machine.judge_shared_memory(2 * GIB, workers=8, batch=2**27).status == "ok"
    status, result, fix = machine.judge_shared_memory(600 << 20, workers=8, batch=2**27)
    assert status == "warning"
    assert "600 MiB free in /dev/shm" in result
    assert fix == "docker run --shm-size=2g, or --set data.workers=2"


DISK = machine.Disk(Path("/runs"), 100 * GIB, seconds=0.004)


@pytest.mark.parametrize(
    ("disk", "status", "says"),
    [
        (DISK, "ok", "100.0 GiB free in /runs; writing a file takes 4 ms"),
        (replace(DISK, free=GIB), "warning", "too little for a ResNet-50 run"),
        (replace(DISK, seconds=2.5), "warning", "takes 2500 ms: every checkpoint will be slow"),
        (replace(DISK, problem="Read-only file system"), "error", "no file can be written: Read-only file system"),
    ],
)
def test_a_disk_is_judged_by_room_by_writing_and_by_its_pace(disk: machine.Disk, status: str, says: str) -> None:
    verdict = machine.judge_disk(disk, "--out ELSEWHERE")
    assert verdict.status == status
    assert says in verdict.result
    assert verdict.fix == ("" if status == "ok" else "--out ELSEWHERE")


def test_a_folder_that_is_not_there_yet_is_tried_where_it_would_be_made_and_no_trace_stays(tmp_path: Path) -> None:
    status, result, _ = machine.runs_disk(tmp_path / "runs" / "deep")
    assert status in ("ok", "warning")
    assert f"free in {tmp_path}" in result
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_runs_that_cannot_be_written_is_an_error_and_one_of_data_a_warning() -> None:
    # nobody, not even root, makes files there
    assert machine.runs_disk(Path("/proc/self")).status == "error"
    assert machine.data_disk(Path("/proc/self")).status == "warning"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tightest_limit_of_the_groups_around_a_process_holds(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/step/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/job/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/job/step/memory.max": "8589934592\n",
            "sys/fs/cgroup/job/memory.max": "17179869184\n",
        },
    )
    assert cgroup.cpu_limit(root) == 2.5
    assert cgroup.memory_limit(root) == 8 * GIB


def test_limits_of_version_1_are_found_where_a_container_sees_them(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "4294967296\n",
        },
    )
    assert cgroup.cpu_limit(root) == 1.5
    assert cgroup.memory_limit(root) == 4 * GIB


def test_no_limit_is_said_in_three_ways(tmp_path: Path) -> None:
    assert cgroup.cpu_limit(tmp_path) is None
    assert cgroup.memory_limit(tmp_path) is None
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n3:cpu:/\n0::/\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cgroup.cpu_limit(root) is None
    assert cgroup.memory_limit(root) is None


TRAINED = self_test.TrialRun("cpu", "fp32", (2.3, 1.1), 0.9, 0.9, masked_nonzero=0, read_back=True, seconds=1.8)


def test_training_that_learns_prunes_and_saves_is_ok() -> None:
    status, result, _ = self_test.judge(TRAINED)
    assert status == "ok"
    assert "loss 2.30 to 1.10, 90% of the weights exactly zero" in result


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"losses": (2.3, 2.3)}, "the loss does not fall, 2.300 in the first epoch, 2.300 in the last"),
        ({"losses": (2.3, math.nan)}, "the loss does not fall"),
        ({"losses": (math.nan, 2.3)}, "the loss does not fall"),
        ({"masked_nonzero": 3}, "3 masked weights are not zero"),
        ({"sparsity": 0.0}, "the sparsity is 0.00% instead of 90.00%"),
        ({"read_back": False}, "the checkpoint read back differs from the one written"),
    ],
)
def test_training_that_does_one_of_them_wrong_is_an_error(change: dict[str, object], says: str) -> None:
    verdict = self_test.judge(replace(TRAINED, **change))
    assert verdict.status == "error"
    assert says in verdict.result
    assert verdict.fix


def test_a_check_that_fails_is_an_error_of_its_own_and_the_others_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    def crash() -> Verdict:
        raise ZeroDivisionError("by zero")

    def refuse() -> Verdict:
        raise DataError("nothing there; write it")

    findings = diagnose.run({"first": crash, "second": refuse, "third": lambda: ok("fine")})
    assert [(each.check, each.status) for each in findings] == [
        ("first", "error"),
        ("second", "error"),
        ("third", "ok"),
    ]
    assert findings[0].result == "the check itself failed: ZeroDivisionError: by zero"
    assert findings[1].result == "nothing there; write it"
