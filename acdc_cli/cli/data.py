"""`acdc data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Worker processes; 0 uses this process alone.", show_default="one per core"),
]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the data sets known by name, and which of them are written."""
    from acdc_cli import console
    from acdc_cli.data.inventory import list_sets

    sets = list_sets()
    if json:
        console.out_json(sets)
        return
    columns = ("name", "classes", "image size", "written", "description")
    rows = [
        (
            known["name"],
            str(known["classes"] or "-"),
            known["image_size"],
            ", ".join(f"{split} {samples:,}" for split, samples in known["written"].items()) or "-",
            known["description"],
        )
        for known in sets
    ]
    console.table(columns, rows)


@app.command()
def write(
    name: Annotated[str, typer.Argument(help="A set of `acdc data list`.", show_default=False)],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the images or the text; of GLUE, the cache of the library datasets.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write.", show_default="data/NAME")] = None,
    quality: Annotated[
        int | None, typer.Option(help="JPEG quality of what is encoded.", show_default="the set's")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink larger images to this longest side.", show_default="the set's")
    ] = None,
    raw_share: Annotated[
        float | None, typer.Option(help="Fraction stored as pixels, from 0 to 1.", show_default="the set's")
    ] = None,
    original: Annotated[
        bool | None,
        typer.Option(
            "--original/--reencode",
            help="Keep the bytes of every image, or encode all anew.",
            show_default="JPEGs that fit keep their bytes",
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip unreadable images.")] = False,
    workers: Workers = None,
    download: Annotated[bool, typer.Option("--download", help="Let torchvision fetch the set, where it can.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer of a text: words, bpe:SIZE, or a written text whose vocabulary is used.",
            show_default="the set's",
        ),
    ] = None,
    at_least: Annotated[
        int | None,
        typer.Option(min=1, help="Words of a text that occur less often become <unk>.", show_default="the set's"),
    ] = None,
) -> None:
    """Write a data set: images as .beton files, a text as tokens, with manifests; GLUE as tables."""
    from acdc_cli.data.inventory import WriteOptions, write_set

    encoding = (quality, max_side, raw_share, original)
    write_set(name, WriteOptions(source, out, *encoding, skip_bad, workers, download, force, tokenizer, at_least))


@app.command()
def check(target: Annotated[str, typer.Argument(metavar="PATH|NAME", show_default=False)]) -> None:
    """Compare every byte of a written set with its manifest; exit code 2 if it is damaged."""
    from acdc_cli.data.inventory import check as check_data

    check_data(target)


@app.command()
def describe(
    folder: Annotated[
        Path, typer.Argument(help="A folder with train/CLASS/ and val/CLASS/, or a written set.", show_default=False)
    ],
    images: Annotated[
        int | None, typer.Option(min=1, help="Look at this many images of each split.", show_default="all")
    ] = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Measure a set of images: classes, sizes, mean and std, copies, unreadable and unusual files."""
    from dataclasses import asdict

    from acdc_cli import console
    from acdc_cli.data.inventory import describe_folder
    from acdc_cli.data.proposal import proposed_keys, remarks, rows

    facts = describe_folder(folder, images, workers)
    proposed = proposed_keys(facts)
    if json:
        console.out_json(asdict(facts) | {"proposed": proposed})
        return
    console.table(("", *facts.splits), rows(facts))
    for remark in remarks(facts):
        console.warn(remark)
    console.say(f"keys of a recipe: data: {{{', '.join(f'{key}: {value}' for key, value in proposed.items())}}}")
