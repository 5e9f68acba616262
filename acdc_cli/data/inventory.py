"""`acdc data`: listing, writing and checking data sets."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from acdc_cli import console
from acdc_cli.data import manifest
from acdc_cli.data.describe import SetFacts, chosen_of, describe
from acdc_cli.data.image_set import open_set
from acdc_cli.data.known_sentences import known_sentences
from acdc_cli.data.known_sets import SPLITS, KnownSet, known_set, known_sets, read_set
from acdc_cli.data.known_texts import known_texts
from acdc_cli.data.manifest import Manifest
from acdc_cli.data.sentence_files import written_examples
from acdc_cli.data.token_files import FACTS, written_tokens
from acdc_cli.data.token_files import check as check_tokens
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.data.write_sentences import write_sentences
from acdc_cli.data.write_tokens import summary, write_text_set
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import ImagesBlock

_FEW = 5000
"""Images that are read sooner than processes start."""
HOME = Path("data")
"""Sets lie in `data/<name>`, as recipes expect them."""


@dataclass(frozen=True)
class WriteOptions:
    """The options of `acdc data write`; None leaves a setting to the data set."""

    source: Path | None = None
    out: Path | None = None
    quality: int | None = None
    max_side: int | None = None
    raw_share: float | None = None
    original: bool | None = None
    skip_bad: bool = False
    workers: int | None = None
    download: bool = False
    force: bool = False
    tokenizer: str | None = None
    at_least: int | None = None


def list_sets() -> list[dict[str, Any]]:
    """The known sets, images first, and how many samples of each lie in `data/<name>`."""
    texts = [_entry(name, known.description, written_tokens(HOME / name)) for name, known in known_texts().items()]
    sentences = [
        _entry(
            name, known.description, written_examples(HOME / name, known), len(known.classes) if known.classes else None
        )
        for name, known in known_sentences().items()
    ]
    images = [
        _entry(name, known.description, _written(HOME / name), known.classes, known.image_size)
        for name, known in known_sets().items()
    ]
    return [*images, *texts, *sentences]


def _entry(
    name: str, description: str, written: dict[str, int], classes: int | None = None, image_size: str = "-"
) -> dict[str, Any]:
    return {
        "name": name,
        "classes": classes,
        "image_size": image_size,
        "description": description,
        "written": written,
    }


def _written(folder: Path) -> dict[str, int]:
    betons = [folder / f"{split}.beton" for split in SPLITS]
    return {beton.stem: manifest.read(beton).samples for beton in betons if manifest.path_of(beton).exists()}


def write_set(name: str, options: WriteOptions) -> None:
    """Raises DataError for an unknown set, for options of other kinds of sets, and for a source that cannot be read."""
    kind, own = _kind(name)
    given = {each.name for each in fields(options) if getattr(options, each.name) != each.default}
    if refused := given - {"source", "out", "force"} - own:
        flags = ", ".join(f"--{each.replace('_', '-')}" for each in sorted(refused))
        raise DataError(f"{flags}: not an option of {name}, which is a set of {kind}")
    if kind == "sentences":
        write_sentences(name, options.source, options.out or HOME / name, options.force)
        return
    if kind == "text":
        asked = options.tokenizer, options.at_least, options.force
        write_text_set(name, options.source, options.out or HOME / name, *asked)
        return
    known = known_set(name)
    settings = {split: _settings(known, split, options) for split in SPLITS}
    sources = read_set(name, options.source, options.download)
    folder = options.out or HOME / name
    # the small split first: mistakes in the source show within minutes
    for split in ("val", "train"):
        write(
            sources[split],
            folder / f"{split}.beton",
            settings[split],
            workers=_default_workers(sources[split]) if options.workers is None else options.workers,
            skip_bad=options.skip_bad,
            force=options.force,
        )


def _kind(name: str) -> tuple[str, set[str]]:
    """What a set is made of, and the options that only sets of that kind have."""
    of_texts = {"tokenizer", "at_least"}
    if name in known_sentences():
        return "sentences", set()
    if name in known_texts():
        return "text", of_texts
    return "images", {each.name for each in fields(WriteOptions)} - of_texts


def write_demo() -> None:
    write_set("demo", WriteOptions())


def _default_workers(source: Source) -> int:
    """Images in memory are too small to be worth processes."""
    return 0 if isinstance(source.images, np.ndarray) else len(os.sched_getaffinity(0))


def _settings(known: KnownSet, split: str, options: WriteOptions) -> Settings:
    """The set's settings for the split, changed by the options.

    A split that passes through by default stays as it is unless --reencode is given.
    """
    encoding = {
        key: value for key in ("quality", "max_side", "raw_share") if (value := getattr(options, key)) is not None
    }
    if options.original:
        if encoding:
            given = ", ".join("--" + key.replace("_", "-") for key in encoding)
            raise DataError(f"--original stores the source's own bytes, so {given} cannot apply; remove one of them")
        return Settings(original=True)
    reencode = options.original is False
    default = known.train if split == "train" or reencode else known.val
    return default if default.original else replace(default, reencode=reencode, **encoding)


def describe_folder(folder: Path, limit: int | None = None, workers: int | None = None) -> SetFacts:
    """limit: images of each split to look at; None: all.  workers: None: one per core.

    Raises DataError if the folder holds no set.
    """
    data = open_set(ImagesBlock(name="folder", path=str(folder), batch_size=1))
    total = sum(len(chosen_of(split, limit)) for split in data.splits.values())
    cores = len(os.sched_getaffinity(0)) if total > _FEW else 0
    title = f"Reading {folder}"
    with console.progress(title) as bar:
        task = bar.add_task(title, total=total)
        return describe(data, limit, cores if workers is None else workers, lambda done: bar.advance(task, done))


def check(target: str) -> list[Manifest]:
    """Check every byte of a .beton file, or of all in a folder or set. Raises DataError that lists all damage."""
    folder = HOME / target if target in known_texts() and not Path(target).exists() else Path(target)
    if (folder / FACTS).is_file():
        for line in summary(check_tokens(folder)):
            console.say(f"{folder}: whole and unchanged, {line}")
        return []
    sound, damaged = [], []
    for beton in _betons(target):
        title = f"Checking {beton}"
        with console.progress(title) as bar:
            task = bar.add_task(title)

            def show(done: int, total: int, bar: Any = bar, task: Any = task) -> None:
                bar.update(task, completed=done >> 20, total=total >> 20)

            try:
                made = manifest.check_full(beton, show)
            except DataError as cause:
                damaged.append(str(cause))
                continue
        console.say(f"{beton}: whole and unchanged, {made.summary()}")
        sound.append(made)
    if damaged:
        raise DataError("\n".join(damaged))
    return sound


def _betons(target: str) -> list[Path]:
    path = Path(target)
    if not path.exists() and target in known_sets():
        path = HOME / target
    if path.is_dir():
        betons = sorted({*path.glob("*.beton"), *_promised(path)})
        if not betons:
            raise DataError(
                f"{path}: no .beton files, which are what is checked, in this folder. `acdc data write folder --source "
                f"{path}` makes them of images, and reports every image that cannot be read."
            )
        return betons
    if not path.exists():
        known = f" (sets: {', '.join(known_sets())})" if path.parent == Path() else ""
        raise DataError(f"{path}: there is no such file, folder or written set{known}. `acdc data write` makes one.")
    if path.suffix != ".beton":
        raise DataError(f"{path} is not a .beton file; give one, the folder that holds them, or a set's name")
    return [path]


def _promised(folder: Path) -> list[Path]:
    """Files that have a manifest, even if they are gone."""
    return [path.with_suffix("") for path in folder.glob("*.beton.json")]
