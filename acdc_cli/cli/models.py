"""`acdc models`."""

from __future__ import annotations

from typing import Annotated

import typer

Word = Annotated[
    str | None,
    typer.Argument(
        help="Text in the name, a pattern such as 'resnet*', or FILE.py:FUNCTION. Omit it for the local ones.",
        show_default=False,
    ),
]


def models(
    word: Word = None,
    limit: Annotated[int, typer.Option(min=0, help="Count parameters and FLOPs of this many.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that a recipe can name, of acdc, torchvision and timm: size, cost, prunable share."""
    from acdc_cli import console
    from acdc_cli.jobs import model_list

    models = model_list.measured(model_list.matching(word), limit)
    if json:
        console.out_json([model.as_dict() for model in models])
        return
    console.table(model_list.COLUMNS, model_list.rows(models), whole=1)
    if len(models) > limit:
        console.say(f"{limit} of {len(models)} are counted; more with --limit, fewer with a longer WORD")
    if word is None:
        console.say("torchvision's and timm's: acdc models WORD; one of yours: acdc models FILE.py:FUNCTION")
    for model in models:
        if model.problem:
            console.say(f"{model.library}:{model.name} is not counted: {model.problem}")
