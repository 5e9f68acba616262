"""`acdc train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(help="A recipe file, the name of one that comes with acdc, or a run directory to resume.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: optim.lr=0.1. May be repeated.")
]
Out = Annotated[Path | None, typer.Option(help="Run directory. Default: runs/<name>-<seed>.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in the run directory.")]


def train(recipe: Recipe, set_: Set = None, out: Out = None, resume: Resume = False) -> None:
    """Train a model as a recipe says."""
    from acdc_cli.jobs.train import train as job

    job(recipe, set_ or [], out, resume)
