"""`acdc verify-run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion

Run = Annotated[Path, typer.Argument(help="A run directory.", show_default=False, autocompletion=completion.runs)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="For this machine: data.path, data.loader, device, …"),
]


def verify_run(
    run: Run,
    set_: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Is a run what it claims? Evaluates its models again, recounts zeros, checks masks, digests and records."""
    from acdc_cli import console
    from acdc_cli.errors import RunError
    from acdc_cli.jobs.run_check import verify_run as job

    checks = job(run, tuple(set_ or ()))
    if json:
        console.out_json([check.as_dict() for check in checks])
    else:
        rows = []
        for check in checks:
            rows.append((check.status, check.name, check.result))
            rows.extend(("", "", f"→ {problem}") for problem in check.problems)
        console.table(("status", "check", "result, and → what is wrong"), rows)
    if failed := [check.name for check in checks if check.problems]:
        raise RunError(f"{run} is not what it claims to be: see {', '.join(failed)}")
    console.say(f"{run} is what it claims to be: {len(checks)} checks")
