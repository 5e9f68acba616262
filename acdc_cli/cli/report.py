"""`acdc report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Study = Annotated[
    str, typer.Argument(help="A study file, a shipped study's name, or a study directory; it may still be running.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the report. Default: STUDY/report.", show_default=False)]


def report(study: Study, out: Out = None) -> None:
    """Write the tables, figures and HTML page of a study."""
    from acdc_cli import console
    from acdc_cli.studies.report.write import report as job

    made = job(study, out)
    console.say(made.facts)
    for key in made.missing:
        console.say(f"missing: {key}")
    console.out(str(made.folder / "index.html"))
