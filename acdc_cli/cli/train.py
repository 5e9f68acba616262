"""`acdc train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from acdc_cli.cli import completion

_KEYS = {"method": "sparsity.method", "target": "sparsity.target", "epochs": "epochs"}

Recipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe file, a shipped recipe's name, or a run directory to resume; with --data, a model's name. "
        "Default with --fork: the recipe of that run.",
        show_default=False,
        autocompletion=completion.recipes_and_runs,
    ),
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
        help="Start from the state that a run kept after EPOCHS epochs (checkpoint.keep_states).",
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
Data = Annotated[
    Path | None,
    typer.Option(
        help="Train a model without a recipe on these images, train/CLASS/ and val/CLASS/; for a run to resume, where "
        "its images are now.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(help="Method of pruning, without a recipe.", show_default="acdc", autocompletion=completion.methods),
]
Target = Annotated[float | None, typer.Option(min=0, max=1, help="Sparsity, without a recipe.", show_default="0.9")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs, without a recipe.", show_default="100")]


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
    data: Data = None,
    method: Method = None,
    target: Target = None,
    epochs: Epochs = None,
) -> None:
    """Train a model as a recipe says, or a model by its name on a folder of images.

    acdc train resnet20 --data FOLDER --method acdc --target 0.9 writes the recipe into the run.

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
    words: dict[str, Any] = {"method": method, "target": target, "epochs": epochs}
    given = {name: value for name, value in words.items() if value is not None}
    if data is None and given:
        hint = f"it needs --data FOLDER, or with a recipe: --set {_KEYS[next(iter(given))]}=…"
        raise typer.BadParameter(hint, param_hint=f"--{next(iter(given))}")
    if data is not None and Path(recipe).is_dir():
        changes = [*changes, f"data.path={data}"]
    elif data is not None:
        from acdc_cli.jobs.starting import without_recipe

        with TemporaryDirectory(prefix="acdc-") as folder:
            _start(str(without_recipe(recipe, data, Path(folder), **given)), changes, out, how, gpus)
        return
    _start(recipe, changes, out, how, gpus)


def _start(
    recipe: str, changes: Sequence[str], out: Path | None, how: bool | Literal["auto"], gpus: int | None
) -> None:
    if gpus is None:
        from acdc_cli.jobs.training_run import train as job
        from acdc_cli.studies.next_steps import say_next_steps

        say_next_steps(job(recipe, changes, out, how))
    else:
        from acdc_cli.jobs.spawn_ranks import launch

        raise typer.Exit(launch(gpus, recipe, changes, out, how))
