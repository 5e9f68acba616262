"""Watched runs as one HTML file that loads itself again until they have ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acdc_cli.analysis.base import plotting
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.run_table import columns, rows, span
from acdc_cli.studies.report import charts
from acdc_cli.studies.report.page import Picture, render
from acdc_cli.studies.results import Run
from acdc_cli.studies.watch.state import Watched

_TEMPLATE = Path(__file__).with_name("watch.html")


def page(watched: Sequence[Watched], gpus: Sequence[str], every: int | None, now: float) -> str:
    """every: seconds until it loads itself again; None: never."""
    runs = {f"{each.seen.path.name}: {each.seen.status}": [_as_run(each)] for each in watched}
    figure = charts.curves_side_by_side(runs)
    seen = [each.seen for each in watched]
    heads = columns(seen)
    title = f"{heads[3][0].upper()}{heads[3][1:]}, loss and entropy by epoch"
    picture = Picture(plotting.svg(figure), "curves", title) if figure else None
    return render(
        _TEMPLATE,
        title=", ".join(each.seen.path.name for each in watched),
        every=every,
        columns=(*heads, "left"),
        rows=[(*row, _left(each)) for row, each in zip(rows(seen, now), watched, strict=True)],
        notes=[f"{each.seen.path}: {each.seen.note}" for each in watched if each.seen.note],
        gpus=gpus,
        picture=picture.inline if picture else None,
        recipes=[(each.seen.path, _recipe(each)) for each in watched],
    )


def _as_run(watched: Watched) -> Run:
    seen = watched.seen
    axes = {"epochs": seen.epochs or 0, "seed": 0 if seen.seed is None else seen.seed}
    recipe = RunDir(seen.path).recipe() if watched.records else None
    return Run(str(seen.path), axes, seen.path, seen.status, records=watched.records, recipe=recipe)


def _left(watched: Watched) -> str:
    return "-" if watched.left is None else span(watched.left)


def _recipe(watched: Watched) -> str:
    file = RunDir(watched.seen.path).resolved
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
