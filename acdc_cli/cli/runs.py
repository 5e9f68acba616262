"""`acdc runs`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion

app = typer.Typer(invoke_without_command=True)


class Status(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    DAMAGED = "damaged"


class Order(StrEnum):
    NAME = "name"
    STATUS = "status"
    EPOCH = "epoch"
    ACCURACY = "accuracy"
    SPARSITY = "sparsity"
    AGE = "age"
    SEEN = "seen"


Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="FOLDER…", help="Where to look.", show_default="runs and studies")
]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False, autocompletion=completion.runs)
]
Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN…", help="Run directories.", show_default=False, autocompletion=completion.runs),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Statuses = Annotated[list[Status] | None, typer.Option("--status", help="Only runs with this status. May be repeated.")]
Match = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Only runs with this text in path, model, data set or method.", show_default=False
    ),
]
Sort = Annotated[Order, typer.Option(help="Order of the rows; seen: the most recently changed first.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="The other way round.")]


@app.callback()
def _all(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(
    folders: Folders = None,
    status: Statuses = None,
    match: Match = None,
    sort: Sort = Order.SEEN,
    reverse: Reverse = False,
    json: Json = False,
) -> None:
    """List all runs below a folder: status, epochs, accuracy, sparsity, age."""
    from acdc_cli import console
    from acdc_cli.runs import run_table

    rows = run_table.listed(folders, {each.value for each in status or ()}, match, sort.value, reverse)
    if json:
        console.out_json([row.as_dict() for row in rows])
        return
    console.table(run_table.columns(rows), run_table.rows(rows))
    for row in rows:
        if row.note:
            console.say(f"{row.path}: {row.status}: {row.note}")


@app.command()
def show(run: Run, json: Json = False) -> None:
    """Show one run: its recipe in a line, its progress, its results and its files."""
    from acdc_cli import console
    from acdc_cli.runs import run_table

    shown = run_table.one(run)
    if json:
        console.out_json(shown.as_dict())
        return
    console.table(("what", "value"), run_table.facts(shown), whole=1)


@app.command()
def compare(runs: Runs, json: Json = False) -> None:
    """Compare runs: recipes, final numbers, mean and deviation over seeds; the same as `acdc analyze compare`."""
    from acdc_cli.cli.analyze import analyze

    analyze("compare", runs, json=json)


@app.command()
def rm(runs: Runs, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove run directories; never one that is training, or a folder that is no run."""
    from acdc_cli import console
    from acdc_cli.runs.removal import removable, remove

    for run in removable(runs):
        question = f"remove {run.path} ({run.description})?"
        if yes or typer.confirm(question, err=True):
            remove(run.path)
            console.say(f"removed {run.path}")
