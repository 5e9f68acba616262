"""`acdc export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acdc_cli.cli import completion
from acdc_cli.cli.eval import Data, Model, Rename, Set, WhichOption, changes
from acdc_cli.recipe.discovery import FORMATS

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN|CHECKPOINT",
        help="A run directory, or a checkpoint file. Omit it to list the formats.",
        autocompletion=completion.runs,
        show_default=False,
    ),
]
Format = Annotated[str | None, typer.Option("--format", help=f"{', '.join(FORMATS.names())}.", show_default=False)]
Batch = Annotated[str | None, typer.Option(help="Images of a batch, or dynamic: any number.", show_default="dynamic")]
InputSize = Annotated[int | None, typer.Option(min=1, help="Side of the images.", show_default="the recipe's")]
Opset = Annotated[int | None, typer.Option(min=1, help="ONNX operator set.", show_default="the exporter's")]
WithPreprocessing = Annotated[
    bool, typer.Option("--with-preprocessing", help="Take uint8 RGB images (batch, height, width, 3).")
]
Shrink = Annotated[bool, typer.Option("--shrink", help="Remove channels that no image can change.")]
Push = Annotated[str | None, typer.Option(metavar="REPO", help="Upload to the Hugging Face Hub.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="File or folder. Default: in export/ of the run.", show_default=False)]


def export(
    source: Source = None,
    format: Format = None,
    which: WhichOption = None,
    batch: Batch = None,
    input_size: InputSize = None,
    opset: Opset = None,
    with_preprocessing: WithPreprocessing = False,
    shrink: Shrink = False,
    push: Push = None,
    model: Model = None,
    rename: Rename = None,
    data: Data = None,
    set_: Set = None,
    out: Out = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model for other software, and check it against the original on validation images."""
    from acdc_cli import console
    from acdc_cli.errors import RunError

    if source is None or format is None:
        if source is not None or format is not None:
            raise RunError(f"name what to export and --format: {', '.join(FORMATS.names())}")
        console.table(("format", "what it is"), FORMATS.described().items())
        return
    from acdc_cli.jobs.export_run import Asked
    from acdc_cli.jobs.export_run import export as job

    flags = {"batch": batch, "input_size": input_size, "opset": opset, "push": push}
    flags |= {"with_preprocessing": "true" if with_preprocessing else None, "shrink": "true" if shrink else None}
    given = {flag: value for flag, value in flags.items() if value is not None}
    asked = Asked(which.value if which else None, model, data, out, overwrite)
    done = job(source, format, asked, changes(set_, rename), given)
    if json:
        console.out_json(done.as_dict())
        return
    console.out(f"{done.path}  {done.bytes / 1e6:.2f} MB")
    console.say(str(done.parity))
