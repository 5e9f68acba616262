"""`acdc prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli.eval import Data, Model, Rename, Set, Which, changes

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN|CHECKPOINT",
        help="A run directory, or a checkpoint file. Omit it to list the methods.",
        show_default=False,
    ),
]
Method = Annotated[str | None, typer.Option(help="A method that needs no training.", show_default=False)]
Target = Annotated[
    str | None, typer.Option(metavar="SPARSITY,…", help="One or more sparsities: 0.9 or 0.8,0.9.", show_default=False)
]
BnImages = Annotated[int, typer.Option(min=2, help="Training images that batch norm's statistics are estimated on.")]
BnReset = Annotated[bool, typer.Option(help="Estimate batch norm's statistics anew after pruning.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Run directory; with several targets, a folder of run directories.", show_default=False),
]


def prune(
    source: Source = None,
    method: Method = None,
    target: Target = None,
    which: Annotated[Which | None, typer.Option(help="Which of a run's models.", show_default="dense if any")] = None,
    model: Model = None,
    rename: Rename = None,
    data: Data = None,
    bn_images: BnImages = 2048,
    bn_reset: BnReset = True,
    set_: Set = None,
    out: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prune a trained model at once, without training, and measure what is left.

    For example: acdc prune runs/demo --method oneshot --target 0.8,0.9 --out pruned
    """
    from acdc_cli import console
    from acdc_cli.errors import RunError
    from acdc_cli.jobs.pruned_recipe import Asked, methods_at_once, targets_of

    if source is None:
        console.table(("method", "what it does"), methods_at_once().items())
        return
    if method is None or target is None or out is None:
        raise RunError(
            f"name --method ({', '.join(methods_at_once())}), --target (0.9 or 0.8,0.9) and --out (a folder)"
        )
    from acdc_cli.jobs.prune_run import prune as job

    overrides = tuple(changes(set_, rename))
    asked = Asked(source, method, targets_of(target), which.value if which else None, model, data, overrides)
    done = job(asked, out, bn_images if bn_reset else 0)
    if json:
        console.out_json(done.document)
        return
    console.table(done.findings.summary.columns, done.findings.summary.rows)
    for line in done.next_steps():
        console.say(line)
