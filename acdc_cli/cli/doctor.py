"""`acdc doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    data: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="A data set to check as well.", show_default="demo")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, whose disk is checked.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Can this machine train? Versions, GPU, FFCV, disks, memory, W&B, and two seconds of training."""
    from acdc_cli import console
    from acdc_cli.doctor.diagnose import diagnose
    from acdc_cli.errors import RunError

    findings = diagnose(data, out)
    if json:
        console.out_json([finding.as_dict() for finding in findings])
    else:
        rows: list[tuple[str, str, str]] = []
        for finding in findings:
            rows.append((finding.status, finding.check, finding.result))
            if finding.fix:
                rows.append(("", "", f"→ {finding.fix}"))
        console.table(("status", "check", "result, and → what to do"), rows)
    count = {status: sum(finding.status == status for finding in findings) for status in ("warning", "error")}
    if count["error"]:
        raise RunError(f"{count['error']} of {len(findings)} checks failed; the lines with → say how to fix them")
    console.say(f"acdc can train here; warnings: {count['warning']}")
