"""`make` sets a machine up once and says what it could not do; stand-ins answer for Python, pip and apt-get."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REAL_PROGRAMS = "awk bash cat chmod cp cut dirname env grep make mkdir rm sed sh tail touch"

# Answers what setup.sh asks of an interpreter, and becomes the .venv's.
PYTHON = """
case "$*" in
    *'sys.exit'*) exit ${STUB_UNSUPPORTED:-0} ;;
    *version_info*) echo 3.12 ;;
    *sysconfig*) dirname "$0" ;;
    *'"torch"'*) exit 1 ;;
    '-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/Python.h" ;;
    '-m pip install '*-ffcv.lock*) echo "error: opencv.hpp not found"; exit ${STUB_FFCV:-0} ;;
    '-m pip install '*) echo "$STUB_PIP_SAYS"; [ -z "$STUB_PIP_SAYS" ] ;;
esac
"""


class Machine:
    """A checkout on a machine whose only programs are `bin/`: real small ones and stand-ins."""

    def __init__(self, root: Path) -> None:
        self.checkout = root / "checkout"
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        (self.checkout / "scripts").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-ffcv.lock", "scripts/setup.sh"):
            shutil.copy(ROOT / name, self.checkout / name)
        for name in REAL_PROGRAMS.split():
            (self.bin / name).symlink_to(shutil.which(name) or pytest.fail(f"this machine has no {name}"))
        (self.bin / "Python.h").touch()
        self.program("python3", PYTHON)
        self.program("pkg-config", "exit 0")
        self.program("g++", "exit 0")
        self.program("id", "echo 1000")
        self.program("df", "printf 'Filesystem\\ndisk 0 0 %d\\n' $((20 * 1024 * 1024))")

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!{self.bin / 'bash'}\n{script}\n")
        path.chmod(0o755)

    def make(self, target: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / "make", "--no-print-directory", target],
            cwd=self.checkout,
            env={"PATH": str(self.bin), "STUB_PIP_SAYS": "", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def log(self) -> str:
        return (self.checkout / ".venv/setup.log").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_make_sets_up_and_the_second_does_not(machine: Machine) -> None:
    first, second = machine.make("test"), machine.make("test")
    assert "Ready after" in first.stdout
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "")


def test_a_changed_lock_file_sets_up_again(machine: Machine) -> None:
    machine.make("test")
    later = (machine.checkout / ".venv/.ready").stat().st_mtime + 1
    os.utime(machine.checkout / "requirements.lock", (later, later))
    assert "Ready after" in machine.make("test").stdout


def test_every_pinned_package_then_ffcv_then_acdc_itself_are_installed(machine: Machine) -> None:
    machine.make("test")
    installs = [
        line.split("--disable-pip-version-check ")[1] for line in machine.log.splitlines() if "pip install" in line
    ]
    assert installs == [
        "-r requirements.lock",
        "--no-build-isolation -r requirements-ffcv.lock -c requirements.lock",
        "--no-deps --no-build-isolation --editable .",
    ]


def test_who_may_not_install_system_packages_is_told_the_command_and_goes_on_without_ffcv(machine: Machine) -> None:
    machine.program("pkg-config", "exit 1")
    done = machine.make("test")
    assert "this user may not install them: libopencv-dev libturbojpeg0-dev" in done.stdout
    assert "sudo apt-get install libopencv-dev libturbojpeg0-dev && make setup" in done.stdout
    assert "requirements-ffcv.lock" not in machine.log
    assert done.returncode == 0


@pytest.mark.parametrize("user", ["root", "sudo"])
def test_who_may_install_system_packages_gets_them(machine: Machine, user: str) -> None:
    installed = machine.bin / "installed"
    machine.program("pkg-config", f"[ -e {installed} ]")
    machine.program("apt-get", f'case "$*" in *" install "*) touch {installed} ;; esac')
    if user == "root":
        machine.program("id", "echo 0")
    else:
        machine.program("sudo", '[ "$1" = -n ] && shift && [ "$1" = true ] || exec "$@"')
    done = machine.make("test")
    assert "installing libopencv-dev libturbojpeg0-dev" in done.stdout
    assert "install --no-install-recommends libopencv-dev libturbojpeg0-dev" in machine.log
    assert "requirements-ffcv.lock" in machine.log
    assert done.returncode == 0


def test_system_packages_that_fail_to_install_do_not_stop_the_set_up(machine: Machine) -> None:
    machine.program("pkg-config", "exit 1")
    machine.program("id", "echo 0")
    machine.program("apt-get", "exit 100")
    done = machine.make("test")
    assert "apt-get failed" in done.stdout
    assert "left out: images are loaded by torchvision" in done.stdout
    assert done.returncode == 0


def test_an_ffcv_that_does_not_build_is_said_and_does_not_stop_the_set_up(machine: Machine) -> None:
    done = machine.make("test", STUB_FFCV="1")
    assert "FAILED: error: opencv.hpp not found" in done.stdout
    assert "images are loaded by torchvision" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("pip_says", "cause"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Temporary failure in name resolution", "the package index could not be reached"),
        ("ERROR: No matching distribution found for torch==9", "No matching distribution found for torch==9"),
    ],
)
def test_a_failed_install_shows_the_log_and_its_cause_and_is_tried_again(
    machine: Machine, pip_says: str, cause: str
) -> None:
    failed = machine.make("test", STUB_PIP_SAYS=pip_says)
    assert f"    {pip_says}" in failed.stderr
    assert f"Set-up failed: installing the packages: {cause}" in failed.stderr
    assert failed.returncode != 0
    assert "Ready after" in machine.make("test").stdout


def test_a_full_disk_is_said_before_anything_is_installed(machine: Machine) -> None:
    machine.program("df", "printf 'Filesystem\\ndisk 0 0 %d\\n' $((4 * 1024 * 1024))")
    failed = machine.make("test")
    assert "4 GB free" in failed.stderr
    assert "pip install" not in machine.log


def test_a_machine_without_a_suitable_python_is_told_so(machine: Machine) -> None:
    failed = machine.make("test", STUB_UNSUPPORTED="1")
    assert "acdc needs Python 3.11, 3.12 or 3.13; tried python3 python3.13 python3.12 python3.11" in failed.stderr
    assert failed.returncode != 0


def test_a_python_that_was_asked_for_is_not_replaced_by_another(machine: Machine) -> None:
    failed = machine.make("test", PYTHON="/nowhere/python3.12")
    assert "tried /nowhere/python3.12." in failed.stderr
    assert failed.returncode != 0
