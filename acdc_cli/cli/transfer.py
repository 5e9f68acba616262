"""`acdc transfer`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli.eval import Model, Rename, changes


class Mode(StrEnum):
    LINEAR = "linear"
    FULL = "full"


Sources = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN|CHECKPOINT…", help="Run directories or checkpoint files.", show_default=False),
]
To = Annotated[
    list[str],
    typer.Option(
        help="A set of `acdc data list`, or a folder with train and val. May be repeated.", show_default=False
    ),
]
ModeOption = Annotated[
    Mode, typer.Option(help="Train a linear classifier on fixed features, or all weights that are not zero.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions, with seeds 0, 1, ….")]
Check = Annotated[
    bool, typer.Option("--check", help="With linear: the best classifier on the same features, too, by L-BFGS.")
]
Baseline = Annotated[
    Path | None, typer.Option(help="The model against which AIE is taken.", show_default="the first model")
]
Study = Annotated[
    str | None, typer.Option(help="Transfer the runs of this study: a study, or its folder.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the downstream recipe: epochs=30. May be repeated."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder that gathers the results of all such commands.")]


def transfer(
    to: To,
    sources: Sources = None,
    mode: ModeOption = Mode.LINEAR,
    seeds: Seeds = 3,
    check: Check = False,
    baseline: Baseline = None,
    study: Study = None,
    model: Model = None,
    rename: Rename = None,
    set_: Set = None,
    out: Out = Path("transfer"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a model's features are worth on other sets: their metrics, and the average increase in error (P2 E).

    The same command resumes an interrupted one. Samples are prepared as for the upstream model.
    """
    if bool(sources) == bool(study):
        raise typer.BadParameter("name runs or checkpoints, or a study with --study", param_hint="RUN|CHECKPOINT…")
    from acdc_cli import console
    from acdc_cli.jobs.transfer_run import Options
    from acdc_cli.jobs.transfer_run import transfer as job

    if study:
        from acdc_cli.studies.results import trained

        sources = trained(study)
    options = Options(mode.value, seeds, check, baseline, tuple(set_ or ()))
    done = job(sources or [], to, options, out, model, changes(None, rename))
    if json:
        console.out_json(done.document)
        return
    for table in (done.findings.summary, done.increases):
        if table.rows:
            console.table(table.columns, table.rows)
            console.out("")
    for file in done.files:
        console.out(str(file))
