"""The command line, in this process, and what the fixtures `acdc` and `finished` are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from typer import testing
from typer.testing import CliRunner, Result

# typer reads the signatures of all commands again at every invocation, which takes longer than many a command
testing._get_command = functools.cache(testing._get_command)

Acdc = Callable[..., Result]
Finished = Callable[..., Result]
DENSE = ("sparsity={method: dense}", "epochs=1")
"""Settings of the shortest run."""


def run_acdc(*arguments: str | Path) -> Result:
    from acdc_cli.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])
