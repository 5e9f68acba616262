"""`acdc analyze`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion
from acdc_cli.cli.eval import Data, Model, Rename, changes
from acdc_cli.recipe.discovery import ANALYSES


class Which(StrEnum):
    SPARSE = "sparse"
    DENSE = "dense"


Name = Annotated[
    str | None,
    typer.Argument(
        help=f"{', '.join(ANALYSES.names())}. Omit it to list the analyses.",
        show_default=False,
        autocompletion=completion.analyses,
    ),
]
Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN…",
        help="Run directories or checkpoint files. Omit them to list the analysis's options.",
        autocompletion=completion.runs,
        show_default=False,
    ),
]
WhichOption = Annotated[Which | None, typer.Option(help="Which of a run's models.", show_default="sparse if any")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the analysis, or a key of the recipe: device=cpu. May be repeated.",
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        help="Run an analysis that this study names, on its runs: a study, or its folder.", show_default=False
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the results. Default: analysis/ of the first run.", show_default=False)
]


def analyze(
    name: Name = None,
    runs: Runs = None,
    which: WhichOption = None,
    model: Model = None,
    rename: Rename = None,
    data: Data = None,
    set_: Set = None,
    study: Study = None,
    out: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Look inside models: numbers as JSON and CSV, and figures.

    Long analyses save their progress; after an interruption the same command resumes them.
    """
    from acdc_cli import console

    if name is None:
        console.table(("analysis", "what it is"), ANALYSES.described().items())
        console.say("P1 is AC/DC, arXiv 2106.12379; P2 is AC/DC++, arXiv 2308.02060")
        console.say("next: acdc analyze NAME for its options, acdc analyze NAME RUN for its results")
        return
    if study and runs:
        raise typer.BadParameter("the study names its runs; leave out RUN, or --study", param_hint="--study")
    if not (runs or study):
        _options(name)
        return
    from acdc_cli.jobs.subjects import Asked

    asked = Asked(which.value if which else None, model, data)
    if study:
        from acdc_cli.studies.study_analyses import analyze_study

        analysed = analyze_study(name, study, asked, out, tuple(changes(set_, rename)))
    else:
        from acdc_cli.jobs.analysis_run import analyze as job

        analysed = job(name, runs or [], asked, out, changes(set_, rename))
    if json:
        console.out_json(analysed.document)
        return
    console.table(analysed.findings.summary.columns, analysed.findings.summary.rows)
    console.out("")
    for file in analysed.files:
        console.out(str(file))


def _options(name: str) -> None:
    from acdc_cli import console
    from acdc_cli.jobs.analysis_run import options_of

    options = options_of(name)
    console.say(f"acdc analyze {name} RUN… [--set KEY=VALUE]…")
    if options:
        console.table(("key", "default", "meaning"), options)
