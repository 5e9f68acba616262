"""The command line, in this process, and the types of the fixtures `acdc` and `finished`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

Acdc = Callable[..., Result]
Finished = Callable[..., Result]


def run_acdc(*arguments: str | Path) -> Result:
    from acdc_cli.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])
