"""`acdc eval`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion


class Which(StrEnum):
    SPARSE = "sparse"
    DENSE = "dense"
    SPARSE_EMA = "sparse-ema"
    DENSE_EMA = "dense-ema"


class Split(StrEnum):
    VAL = "val"
    TRAIN = "train"
    TEST = "test"


class Loader(StrEnum):
    AUTO = "auto"
    FFCV = "ffcv"
    TORCH = "torch"


Checkpoint = Annotated[
    Path,
    typer.Option(help="A run directory, or a checkpoint file.", show_default=False, autocompletion=completion.runs),
]
WhichOption = Annotated[Which | None, typer.Option(help="Which of a run's models.", show_default="sparse if any")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Architecture of a checkpoint that acdc did not write: a name, or FILE.py:FUNCTION.", show_default=False
    ),
]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="Replace text in the tensor names of such a checkpoint: linear.=fc. May be repeated.",
    ),
]
Data = Annotated[str | None, typer.Option(help="Another data set: its name or folder.", show_default=False)]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images in a batch.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key: device=cpu. May be repeated.",
        autocompletion=completion.keys,
    ),
]
LoaderOption = Annotated[Loader | None, typer.Option(help="Loader of the images.", show_default="the recipe's")]


def changes(set_: list[str] | None, rename: list[str] | None) -> list[str]:
    """`--set` and `--rename` as keys of the recipe."""
    import json

    return [*(set_ or ()), *([f"model.rename={json.dumps(rename, ensure_ascii=False)}"] if rename else [])]


def evaluate(
    checkpoint: Checkpoint,
    which: WhichOption = None,
    model: Model = None,
    rename: Rename = None,
    data: Data = None,
    split: Annotated[Split, typer.Option(help="Split of the data set.")] = Split.VAL,
    batch_size: BatchSize = None,
    loader: LoaderOption = None,
    set_: Set = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also each layer's nonzero weights and FLOPs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure accuracy, loss, entropy, sparsity and FLOPs of a run's model or of any checkpoint, exactly.

    A multilabel model has a mean accuracy, an uncertainty in place of the entropy, and an accuracy for each label.
    """
    from acdc_cli import console
    from acdc_cli.jobs.evaluation import LAYERS, Options, evaluate_checkpoint, layer_rows, rows

    options = Options(
        which=which.value if which else None,
        model=model,
        data=data,
        split=split.value,
        batch_size=batch_size,
        loader=loader.value if loader else None,
        overrides=tuple(changes(set_, rename)),
    )
    metrics = evaluate_checkpoint(checkpoint, options)
    if json:
        console.out_json({key: value for key, value in metrics.items() if layers or key != "layers"})
        return
    console.table(("measure", "value"), rows(metrics))
    if layers:
        console.out("")
        console.table(LAYERS, layer_rows(metrics))
