"""Writes tables of sentences from the cache of the library datasets, as GLUE publishes them (`acdc data write`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from acdc_cli import console, files
from acdc_cli.data.known_sentences import CachedForm, KnownSentences, known_sentences
from acdc_cli.errors import DataError

_SEPARATORS = re.compile(r"[\t\r\n]+")


def write_sentences(name: str, source: Path | None, out: Path, force: bool = False) -> None:
    """Writes all tables of a set, or none.

    source: the cache's folder; None: where the library has it.
    Raises DataError if the library is missing, if the cache lacks the set or one of its splits, and if tables exist and
    `force` is not given.
    """
    known = known_sentences()[name]
    if known.cached is None:
        raise DataError(f"{name} is read as it is: put {', '.join(known.files.values())} in {out}")
    there = [out / table for table in known.files.values() if (out / table).exists()]
    if there and not force:
        raise DataError(f"{', '.join(map(str, there))} exists already; --force replaces it, --out writes elsewhere")
    builder = _builder(name, known.cached, source)
    splits = {split: _split(builder, known.cached.splits.get(split, split)) for split in known.files}
    with files.explained(out, DataError):
        out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as all_or_none:
        for split, rows in splits.items():
            table = out / known.files[split]
            partial = all_or_none.enter_context(files.replacing(table, DataError))
            changed = _write(partial, rows, known, known.cached, f"{name}, {split}")
            note = f"; tabs or line ends became spaces in {changed:,} sentences" if changed else ""
            console.say(f"{table}: {len(rows):,} examples{note}")


def _builder(name: str, cached: CachedForm, source: Path | None) -> Any:
    """What reads the set from the cache.

    It is what `load_dataset` uses without a network, but neither asks the network first nor takes a folder of the same
    name in the working directory for the set.
    """
    try:
        # here because it is needed for this alone, and takes seconds to import
        from datasets import config
        from datasets.packaged_modules.cache.cache import Cache
    except ImportError as error:
        raise DataError(
            f"the cache of {name} is read by the library datasets: pip install datasets, or put GLUE's own tables "
            f"in data/{name}"
        ) from error
    folder = (source or Path(config.HF_DATASETS_CACHE)).expanduser()
    for repository in cached.repositories:
        if not list(folder.glob(f"{repository.replace('/', '___')}/{name}/*/*/dataset_info.json")):
            continue
        try:
            return Cache(
                cache_dir=str(folder),
                repo_id=repository,
                dataset_name=repository.rpartition("/")[2],
                config_name=name,
                version="auto",
                hash="auto",
            )
        # whatever the library raises over a damaged cache, or one that it cannot lock
        except Exception as error:
            raise DataError(
                f"{folder}: the library datasets cannot read {name} ({_line(error)}); load it again"
            ) from error
    first = cached.repositories[0]
    raise DataError(
        f'{folder} has no {name}: fetch it where there is a network, with python -c "import datasets; '
        f"datasets.load_dataset('{first}', '{name}')\", or name another cache with --source"
    )


def _split(builder: Any, split: str) -> Any:
    if split not in (builder.info.splits or {}):
        held = ", ".join(builder.info.splits or {}) or "nothing"
        raise DataError(f"{builder.cache_dir} has no {split}, only {held}; load the whole set again")
    try:
        return builder.as_dataset(split=split)
    except Exception as error:
        raise DataError(f"{builder.cache_dir}: {split} cannot be read ({_line(error)}); load it again") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _write(file: Path, rows: Any, known: KnownSentences, cached: CachedForm, where: str) -> int:
    """Returns how many sentences had tabs or line ends."""
    wanted = (*(cached.columns or map(str, known.text)), "label")
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise DataError(f"{where}: the cache has no column {', '.join(missing)}, only {', '.join(rows.column_names)}")
    labels, changed = _labels(rows, known, where), 0
    texts = zip(*(rows[column] for column in wanted[:-1]), strict=True)
    with file.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(_header(known))
        for number, (sentences, label) in enumerate(zip(texts, labels, strict=True)):
            plain = [_SEPARATORS.sub(" ", sentence or "") for sentence in sentences]
            if not all(map(str.strip, plain)) and not known.has_broken_rows:
                raise DataError(f"{where}, example {number} of the cache: a sentence is empty; load the set again")
            changed += sum(before != after for before, after in zip(sentences, plain, strict=True))
            out.write("\t".join(_cells(known, plain, label)) + "\n")
    return changed


def _header(known: KnownSentences) -> Iterator[str]:
    if not isinstance(known.label, int):
        yield "\t".join([*map(str, known.text), known.label]) + "\n"


def _cells(known: KnownSentences, texts: list[str], label: str) -> list[str]:
    """A line's; columns that are not read are empty where there is no header."""
    if not isinstance(known.label, int):
        return [*texts, label]
    at: Mapping[int, str] = {known.label: label} | {
        int(column): text for column, text in zip(known.text, texts, strict=True)
    }
    return [at.get(column, "") for column in range(max(at) + 1)]


def _labels(rows: Any, known: KnownSentences, where: str) -> Iterable[str]:
    """As GLUE's tables have them. Raises DataError for examples without a label, and for other classes."""
    feature = rows.features["label"]
    if known.scores:
        # the shortest decimals that are the same float32
        return (str(score) for score in rows.with_format("numpy")["label"][:])
    assert known.classes is not None
    written = {name: label for label, name in known.classes.items()}
    if set(names := getattr(feature, "names", ())) != set(written):
        raise DataError(f"{where}: the cache has the classes {', '.join(names) or 'none'}, not {', '.join(written)}")
    numbers = rows["label"][:]
    if unlabelled := sum(number is None or number < 0 for number in numbers):
        raise DataError(f"{where}: {unlabelled:,} examples of the cache have no label; load the set again")
    return (written[names[number]] for number in numbers)
