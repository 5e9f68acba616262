"""`acdc plan`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion


class Convention(StrEnum):
    A = "A"
    B = "B"
    C = "C"


Recipe = Annotated[
    str, typer.Argument(help="A recipe file, or a shipped recipe's name.", autocompletion=completion.recipes)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key: optim.lr=0.1. May be repeated.",
        autocompletion=completion.keys,
    ),
]
Every = Annotated[int | None, typer.Option(min=1, help="Print every Nth epoch.", show_default="ranges of equal epochs")]
Counted = Annotated[Convention, typer.Option(help="What counts as a FLOP: A weights, B all operations, C RigL's.")]
Plot = Annotated[Path | None, typer.Option(help="Draw sparsity, learning rate and resolution.", show_default=False)]


@contextmanager
def _without_collection() -> Iterator[None]:
    # importing torch creates millions of objects and no garbage: collecting takes a fifth of the command's time
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_without_collection()
def plan(
    recipe: Recipe,
    set_: Set = None,
    every: Every = None,
    convention: Counted = Convention.A,
    plot: Plot = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a run will do and cost, epoch by epoch and layer by layer, before it starts."""
    from acdc_cli import console
    from acdc_cli.jobs.plan_tables import LAYERS, TOTALS, epoch_columns, epoch_rows, explained, layer_rows, total_rows
    from acdc_cli.jobs.run_plan import plan as job
    from acdc_cli.recipe.load import load

    planned = job(load(recipe, set_ or []), convention.value)
    if plot is not None:
        from acdc_cli.jobs.plan_figure import draw

        draw(planned, plot)
        console.say(f"drawn: {plot}")
    if json:
        console.out_json(planned.as_dict())
    else:
        console.table(epoch_columns(planned), epoch_rows(planned, every), explained(planned))
        console.out("")
        console.table(LAYERS, layer_rows(planned))
        console.table(TOTALS, total_rows(planned))
        for note in planned.notes:
            console.say(note)
    for warning in planned.warnings:
        console.warn(warning)
