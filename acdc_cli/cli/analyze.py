"""`acdc analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="The analysis: curves.")]
Runs = Annotated[list[Path], typer.Argument(help="Run directories.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the figures. Default: the first run.", show_default=False)]


def analyze(
    name: Name,
    runs: Runs,
    out: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Numbers and a figure from run directories."""
    from acdc_cli import console
    from acdc_cli.jobs.analyze import analyze as job

    result = job(name, runs, out)
    if json:
        console.out_json(result)
    else:
        for figure in result["figures"]:
            console.out(figure)
