"""`acdc advise`."""

from __future__ import annotations

from typing import Annotated

import typer

from acdc_cli.cli import completion

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Run directories, sparse and dense, or one study: its directory, file or name.",
        autocompletion=completion.runs,
    ),
]


def advise(
    runs: Runs,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Is a sparse model under-trained? Its training cross entropy and entropy beside those of the best dense model."""
    from acdc_cli import console
    from acdc_cli.studies.advice import named, rule
    from acdc_cli.studies.advise_study import advise as job
    from acdc_cli.studies.advise_study import distance_rows, group_rows

    advised = job(runs)
    if json:
        console.out_json(advised.as_dict())
        return
    measures = advised.measures
    console.table(
        ("series", "epochs", "n", measures.headline.head, "cross entropy", measures.confidence.head),
        group_rows(advised),
        "After the last epoch, mean ± sample standard deviation over seeds",
    )
    console.out("")
    columns = ("series", "epochs", "loss", measures.confidence.name, "reference")
    console.table(columns, distance_rows(advised), "Distance above the reference, in pooled standard deviations")
    console.out("")
    for advice in advised.advice:
        console.out(f"{named(advice.group)}: {advice.verdict or 'no verdict'}: {advice.reason}")
    for lengths in advised.lengths:
        supported = ", ".join(map(str, lengths.supported)) or "none"
        console.out(f"{lengths.series}: lengths supported: {supported} ({lengths.note})")
    for key in advised.unfinished:
        console.say(f"left out, because it is unfinished: {key}")
    console.say(rule(measures))
