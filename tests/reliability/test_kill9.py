"""Runs survive `kill -9` and all else that may befall them, and data writing `kill -9`; `-s` shows tables.

By default a single kill is survived in `cli/test_verify_resume_command.py` and in `data/test_write.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def told_by(script: str, *arguments: str) -> str:
    """What it prints, in a process of its own, that of pytest having threads."""
    paths = (HERE, HERE.parent, HERE.parent / "cli", HERE.parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"\n{done.stdout}")
    return done.stdout


def killed(extent: str, folder: Path) -> int:
    """How often."""
    return int(re.findall(r"^(\d+) kills", told_by("campaign", extent, str(folder / "kills")), re.MULTILINE)[0])


def test_killed_two_hundred_times_every_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    assert killed("runs", tmp_path) >= 200


def test_killed_sixty_times_data_are_the_old_or_the_new_ones(tmp_path: Path) -> None:
    assert killed("sets", tmp_path) == 60


def test_disturbed_forty_times_every_run_ends_as_it_should(tmp_path: Path) -> None:
    told = told_by("soak", "--disturbances", "40", str(tmp_path / "soak"))
    assert re.search(r"^40 disturbances; .*failures: 0$", told, re.MULTILINE)
