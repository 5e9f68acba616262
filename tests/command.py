"""The command line, in this process, and what the fixtures `acdc` and `finished` are."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer import testing
from typer.testing import CliRunner, Result

# typer reads the signatures of all commands again at every invocation, which takes longer than many a command
testing._get_command = functools.cache(testing._get_command)

Acdc = Callable[..., Result]
Finished = Callable[..., Result]
DENSE = ("sparsity={method: dense}", "epochs=1")
"""Settings of the shortest run."""


def train_here(patch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the runs that sweeps start from now on: they are trained in this process, before theirs, which does
    nothing but end with their exit code."""
    from acdc_cli.studies import run_study

    real, started = run_study._command, []

    def command(study: Any) -> Callable[[Any], list[str]]:
        def of_run(row: Any) -> list[str]:
            program, words = real(study)(row)[:3], real(study)(row)[3:]
            assert program == [sys.executable, "-m", "acdc_cli"]
            started.append(row.key)
            return ["sh", "-c", f"exit {run_acdc(*words).exit_code}"]

        return of_run

    patch.setattr(run_study, "_command", command)
    return started


def run_acdc(*arguments: str | Path) -> Result:
    from acdc_cli.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])
