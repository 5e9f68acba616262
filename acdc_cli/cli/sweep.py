"""`acdc sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from acdc_cli.cli import completion

_SLURM = "--slurm-"


class Launcher(StrEnum):
    LOCAL = "local"
    SLURM = "slurm"


Study = Annotated[
    str, typer.Argument(help="A study file, or a shipped study's name.", autocompletion=completion.studies)
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the queue and of the runs. Default: studies/<name>.", show_default=False),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at a time. Default: one per GPU, or as many as there are cores.", show_default=False
    ),
]
Start = Annotated[Launcher, typer.Option(help="Run on this machine, or submit to Slurm.")]
Slurm = Annotated[
    list[str] | None,
    typer.Option(
        f"{_SLURM}NAME",
        metavar="VALUE",
        help="Any option of sbatch, for every run: --slurm-partition=gpu --slurm-time=240 --slurm-gpus-per-node=1. "
        "Also --slurm-signal-delay-s, the seconds a run has to save before its time limit.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print every run with its cost and its state.")]
Json = Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Also retry failed runs.")]


class Command(TyperCommand):
    """Turns every `--slurm-name value` into `name=value` of one option: only sbatch knows the names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        left = args[::-1]
        while left:
            word = left.pop()
            if word.startswith(_SLURM):
                name, equals, value = word.removeprefix(_SLURM).partition("=")
                # an option without a value is a switch, such as --exclusive
                if not equals and left and not left[-1].startswith("-"):
                    value = left.pop()
                word = f"{_SLURM}NAME={name}={value}"
            given.append(word)
        return super().parse_args(ctx, given)


def sweep(
    study: Study,
    out: Out = None,
    workers: Workers = None,
    launcher: Start = Launcher.LOCAL,
    slurm: Slurm = None,
    dry_run: DryRun = False,
    retry_failed: Retry = False,
    json: Json = False,
) -> None:
    """Train every missing run of a study: a grid over lengths, sparsities, seeds or any keys.

    A sweep may be killed at any time and started again. Several sweeps may share a study's folder.
    """
    if slurm and launcher is not Launcher.SLURM:
        raise typer.BadParameter("it needs --launcher slurm", param_hint=f"{_SLURM}{slurm[0].partition('=')[0]}")
    if json and not dry_run:
        raise typer.BadParameter("it needs --dry-run", param_hint="--json")
    if dry_run:
        _plan(study, out, json)
        return
    from acdc_cli.studies import run_study as job

    job.sweep(study, out, launcher.value, workers, slurm or (), retry_failed)


def _plan(study: str, out: Path | None, as_json: bool) -> None:
    from acdc_cli import console
    from acdc_cli.studies.study_plan import run_columns, run_rows, sweep_plan, total_columns, total_rows

    planned = sweep_plan(study, out)
    if as_json:
        console.out_json(planned.as_dict())
    else:
        title = f"{planned.study}, in {planned.folder}\nof dense: cost relative to dense training on the same images"
        console.table(run_columns(planned), run_rows(planned), title)
        console.out("")
        console.table(total_columns(planned), total_rows(planned))
        if planned.until_converged:
            console.say(f"longer runs are added where {planned.trend}, within the budget")
    for warning in planned.warnings:
        console.warn(warning)
