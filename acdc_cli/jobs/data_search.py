"""The data of a run that was moved, or is read from another folder: found by name and content, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from acdc_cli import console, files
from acdc_cli.data.data_set import DataSet, Kind, kind_of, open_set, root_of
from acdc_cli.errors import AcdcError, DataError
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.runs.overview import is_run
from acdc_cli.runs.run_dir import RunDir

SEARCHED = Path("~/.config/acdc/data-folders")
"""A file with one folder per line: data sets are looked for in these folders."""
_TRIED_ENTRIES = 1000
"""Entries of a searched folder that are tried."""
_NAMED = 8


def open_found(block: DataBlock, source: Path) -> DataSet:
    """Opens the data set of a run. If it is not at the run's own `data.path`, it is looked for below the folders above
    the run, and below those that `SEARCHED` lists: a set is taken only if its content is what the run was trained on.

    source: the run directory, or a file in it; for any other file the set must be where `block` says.
    Raises DataError, with the places that were tried, if it is nowhere.
    """
    run = _run_of(source)
    wanted = _fingerprint(run) if run else {}
    if run is None or not wanted or _is_named(block, run):
        return open_set(block)
    own, kind = root_of(block), kind_of(block)
    known = kind.fingerprints(own, thorough=False)
    is_there = any(split in known for split in wanted)
    # what is not known without reading a whole folder is trusted
    if is_there and all(known.get(split) in (None, wanted[split]) for split in wanted):
        return open_set(block)
    tried = [own.absolute()]
    for place in _candidates(block, run):
        if place in tried:
            continue
        tried.append(place)
        if _holds(kind, place, wanted):
            console.say(f"data: {place} has the {block.inputs} that {run.path} was trained on")
            return open_set(block.model_copy(update={"path": str(place)}))
    if is_there:
        console.warn(f"{own} does not hold the {block.inputs} that {run.path} was trained on, by its manifest")
        return open_set(block)
    raise DataError(_nowhere(block, run, tried))


def _run_of(source: Path) -> RunDir | None:
    folders = (source, *source.absolute().parents[:2])
    return next((RunDir(folder) for folder in folders if is_run(folder)), None)


def _fingerprint(run: RunDir) -> Mapping[str, str]:
    """Fingerprint of each split, by the provenance; empty if that file is damaged or missing, as its readers report."""
    try:
        last: Mapping[str, Mapping[str, str]] = run.last_start()["data"]
    except AcdcError:
        return {}
    return last["fingerprint"]


def _is_named(block: DataBlock, run: RunDir) -> bool:
    """Whether the command line names another place than the run's recipe."""
    try:
        before = run.recipe()["data"]
    except AcdcError:
        return True
    return (block.name, block.path) != (before["name"], before.get("path"))


def _candidates(block: DataBlock, run: RunDir) -> Iterator[Path]:
    own = root_of(block)
    relative = [own] if not own.is_absolute() else []
    for above in (run.path.resolve(), *run.path.resolve().parents):
        for each in (*relative, Path("data") / own.name, Path(own.name)):
            yield above / each
    for folder in _searched():
        yield from (folder, *(folder / name for name in dict.fromkeys((own.name, block.name))))
        if folder.is_dir():
            yield from sorted(each for each in folder.iterdir() if each.is_dir())[:_TRIED_ENTRIES]


def _searched() -> list[Path]:
    """Raises DataError if the list cannot be read."""
    file = SEARCHED.expanduser()
    if not file.is_file():
        return []
    try:
        lines = [line.strip() for line in files.read_bytes(file).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); it lists folders, one per line") from error
    return [Path(line).expanduser() for line in lines if line and not line.startswith("#")]


def _holds(kind: Kind, root: Path, wanted: Mapping[str, str]) -> bool:
    """Whether a split lies there, and each that does has the wanted content."""
    here = {split: each for split, each in kind.fingerprints(root, thorough=True).items() if split in wanted}
    return bool(here) and all(each == wanted[split] for split, each in here.items())


def _nowhere(block: DataBlock, run: RunDir, tried: Sequence[Path]) -> str:
    shown = ", ".join(map(str, tried[:_NAMED])) + (f", … {len(tried) - _NAMED} more" if len(tried) > _NAMED else "")
    verb = "are" if block.inputs.endswith("s") else "is"
    return (
        f"the {block.inputs} of {block.name} that {run.path} was trained on {verb} not here; looked in {shown}. Name "
        f"the folder with --data or --set data.path=FOLDER, or list the folder that holds your data sets in {SEARCHED}"
    )
