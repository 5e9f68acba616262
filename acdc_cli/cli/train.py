"""`acdc train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

Recipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe file, a shipped recipe's name, or a run directory to resume. Default with --fork: the recipe of "
        "that run.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: optim.lr=0.1. May be repeated.")
]
Out = Annotated[Path | None, typer.Option(help="Run directory. Default: runs/<name>-<seed>.", show_default=False)]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="[auto]",
        help="Resume the unfinished run in the run directory; auto starts one if there is none.",
        show_default=False,
    ),
]
Fork = Annotated[
    str | None,
    typer.Option(
        metavar="RUN@EPOCHS",
        help="Start from the state that a run kept after so many epochs (checkpoint.keep_states).",
        show_default=False,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Train on this many GPUs of this machine, or with this many processes on its CPU.",
        show_default=False,
    ),
]


class Command(TyperCommand):
    """Lets `--resume` stand alone or before `auto`: Typer's options have a value always or never."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        for arg in args:
            if given and given[-1] == "--resume=yes" and arg == "auto":
                given[-1] = "--resume=auto"
            else:
                given.append("--resume=yes" if arg == "--resume" else arg)
        return super().parse_args(ctx, given)


def train(
    recipe: Recipe = None,
    set_: Set = None,
    out: Out = None,
    resume: Resume = None,
    fork: Fork = None,
    gpus: Gpus = None,
) -> None:
    """Train a model as a recipe says.

    For several machines start it with torchrun or srun, which set the rank and address of each process.
    """
    if recipe is None and fork is None:
        raise typer.BadParameter("name a recipe, or a run with --fork", param_hint="RECIPE")
    if resume not in (None, "yes", "auto"):
        raise typer.BadParameter(f"'{resume}': expected nothing or auto", param_hint="--resume")
    how: bool | Literal["auto"] = "auto" if resume == "auto" else resume == "yes"
    changes = set_ or []
    if fork is not None:
        from acdc_cli.jobs.forking import forked

        recipe, changes, out = forked(fork, recipe, changes, out)
    assert recipe is not None
    if gpus is None:
        from acdc_cli.jobs.training_run import train as job

        job(recipe, changes, out, how)
    else:
        from acdc_cli.jobs.spawn_ranks import launch

        raise typer.Exit(launch(gpus, recipe, changes, out, how))
