"""Runs and data writing survive `kill -9`. With `-m slow -s`: hundreds of kills, and tables of where they struck."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def killed(extent: str, folder: Path) -> int:
    """How often, in a process of its own, that of pytest having threads."""
    paths = (HERE, HERE.parent, HERE.parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "campaign", extent, str(folder / "kills")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"\n{done.stdout}")
    return int(re.findall(r"^(\d+) kills", done.stdout, re.MULTILINE)[0])


def test_killed_a_few_times_everything_ends_in_the_same_bits(tmp_path: Path) -> None:
    assert killed("short", tmp_path) >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_two_hundred_times_every_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    assert killed("runs", tmp_path) >= 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_sixty_times_data_are_the_old_or_the_new_ones(tmp_path: Path) -> None:
    assert killed("sets", tmp_path) == 60
