"""`acdc verify-resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="A recipe file, or a shipped recipe's name.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key: data.images=2048 makes a short run of a long one."),
]
Keep = Annotated[Path | None, typer.Option(help="Keep the runs in this folder.", show_default="they are removed")]


def verify_resume(
    recipe: Recipe,
    set_: Set = None,
    kills: Annotated[int, typer.Option(min=1, help="How often the run is killed.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the times of the kills.")] = 0,
    gpus: Annotated[int, typer.Option(min=1, help="Processes, as for `acdc train`.")] = 1,
    keep: Keep = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove that a recipe's run survives: kill and resume it at random, and compare it with an uninterrupted run."""
    from acdc_cli import console
    from acdc_cli.jobs.resume_check import verify_resume as job

    verdict = job(recipe, set_ or [], kills, seed, keep, gpus)
    if json:
        console.out_json(verdict.as_dict())
        return
    columns = ("signal", "resumed from epoch", "step")
    console.table(columns, [(kill.signal, str(kill.epoch), str(kill.step)) for kill in verdict.kills])
    if verdict.exact:
        console.out("identical to the bit: weights, masks, optimiser, records")
        return
    rows = [(what, how, verdict.by_itself.get(what, "the same")) for what, how in verdict.differences.items()]
    console.table(("differs", "killed from uninterrupted", "two uninterrupted"), rows)
    console.out(
        "two uninterrupted runs differ as well, so the check cannot decide; repeat it with --set deterministic=true"
    )
