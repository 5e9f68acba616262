"""`acdc watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN…", help="Run directories.", show_default=False, autocompletion=completion.runs),
]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write a page that loads itself again.", show_default=False)
]


def watch(
    runs: Runs,
    html: Html = None,
    every: Annotated[int, typer.Option(min=1, help="Seconds between two updates.")] = 5,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
) -> None:
    """Watch runs while they train: curves, phase, remaining time, GPU. Ends when none of them is training.

    Without a terminal it prints once. It only reads: the runs may be on another machine that shares the disk.
    """
    from acdc_cli.studies.watch.job import watch as job

    job(runs, html, every, once)
