"""`acdc recipes`."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion

app = typer.Typer(no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        help="A name from `acdc recipes list`, or a path.", show_default=False, autocompletion=completion.recipes
    ),
]
Override = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. optim.lr=0.1.")
]


@app.command("list")
def list_(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the recipes and studies that come with acdc."""
    from acdc_cli import console
    from acdc_cli.recipe.listing import list_recipes

    recipes = list_recipes()
    if json:
        console.out_json(recipes)
        return
    # a table for each folder: its descriptions get the width that its own names leave
    for _, group in groupby(recipes, key=lambda recipe: recipe["name"].rpartition("/")[0]):
        console.table(("name", "description"), [(recipe["name"], recipe["description"]) for recipe in group], whole=1)
        console.out("")


@app.command()
def papers(
    cost: Annotated[
        bool, typer.Option("--cost", help="Plan every run: epochs and training EFLOPs. Takes minutes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the papers' tables and figures: what trains each, what draws it, and what it costs.

    P1 is AC/DC, arXiv 2106.12379; P2 is AC/DC++, arXiv 2308.02060.
    """
    from acdc_cli import console
    from acdc_cli.studies import paper_items as job

    items = job.paper_items()
    listed = [item.as_dict() for item in items]
    if cost:
        for one, spent in zip(listed, job.costs(items), strict=True):
            one |= {"epochs": spent.epochs, "train_flops": spent.train_flops}
    if json:
        console.out_json(listed)
        return
    for one in listed:
        console.out(f"{one['paper']} {one['item']}: {one['shows']}")
        for command in (*one["train"], *one["draw"]):
            console.out(f"    {command}")
        runs = f"{one['runs']} run{'s' if one['runs'] > 1 else ''}"
        price = f", {one['epochs']:,} epochs, {console.with_prefix(one['train_flops'])}FLOPs" if cost else ""
        console.out(f"    {runs}{price}")
    if not cost:
        console.say("costs: acdc recipes papers --cost, or acdc sweep STUDY --dry-run for one study")


@app.command()
def show(
    name: Name,
    overrides: Override = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Include inherited keys and every default; implied by --set.")
    ] = False,
) -> None:
    """Print a recipe or a study as written, or a recipe with every key resolved."""
    from acdc_cli import console
    from acdc_cli.recipe.listing import show as job

    console.out(job(name, overrides or [], resolved).rstrip("\n"))


@app.command()
def copy(
    name: Name,
    destination: Annotated[
        Path | None, typer.Argument(help="A new file, or a folder. Default: here.", show_default=False)
    ] = None,
) -> None:
    """Copy a recipe or a study to edit it; the files it extends stay with acdc."""
    from acdc_cli import console
    from acdc_cli.recipe.listing import copy as job
    from acdc_cli.recipe.listing import is_study

    path = job(name, destination)
    console.say(f"copied to {path}; use it with: acdc {'sweep' if is_study(name) else 'train'} {path}")
