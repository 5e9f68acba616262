"""The command line, in this process, and what the fixtures `acdc` and `finished` are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

Acdc = Callable[..., Result]
Finished = Callable[..., Result]
DENSE = ("sparsity={method: dense}", "epochs=1")
"""Settings of the shortest run."""


def run_acdc(*arguments: str | Path) -> Result:
    from acdc_cli.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])
