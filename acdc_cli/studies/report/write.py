"""`acdc report`: writes a study's tables, figures and page from the runs finished so far."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from acdc_cli import files
from acdc_cli.analysis.base.plotting import png, svg
from acdc_cli.recipe.blocks.run import TrackBlock
from acdc_cli.runs import tracker
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import results
from acdc_cli.studies.report import charts, tables
from acdc_cli.studies.report.page import Picture, facts, page
from acdc_cli.studies.report.tables import Table, inert
from acdc_cli.studies.summary import Summary, summarise


@dataclass(frozen=True)
class Report:
    folder: Path
    facts: str
    missing: list[str]
    """Keys of the unfinished runs."""


def report(source: str, out: Path | None = None) -> Report:
    """Writes the report of a study into `report/` of its directory, or into `out`.

    source: the study's directory, or the study as given to `acdc sweep`.
    Raises RunError if the study has no queue or none of its runs has begun.
    """
    study = results.folder_of(source)
    out = out or study / "report"
    runs, together = results.of_study(study), results.advancing_together(study)
    summary = summarise(study.resolve().name, runs, together=together)
    tables = _tables(summary)
    drawn = {"panels": charts.panels(summary), "pareto": charts.pareto(summary)}
    names = _curves(summary)
    drawn |= {names[series.name]: charts.curves(series, summary.along.axis) for series in summary.series}
    svgs: dict[str, str] = {}
    with files.explained(out):
        out.mkdir(parents=True, exist_ok=True)
        # left by an earlier report with more series
        for old in [
            *out.glob("curves-*.png"),
            *out.glob("curves-*.svg"),
            out / "missing.csv",
            out / "against_dense.csv",
        ]:
            old.unlink(missing_ok=True)
    for name, figure in drawn.items():
        if figure is not None:
            svgs[name] = svg(figure)
            files.write_text(out / f"{name}.svg", svgs[name])
            files.write_bytes(out / f"{name}.png", png(figure))
    for table in tables:
        files.write_text(out / f"{table.name}.csv", table.csv())
    files.write_text(out / "report.md", _markdown(summary, tables, svgs))
    files.write_text(out / "index.html", _page(summary, tables, svgs, _links(summary, study, out)))
    _publish(summary, study.resolve(), out, tables)
    return Report(out, facts(summary), [run.key for run in summary.missing])


def _publish(summary: Summary, study: Path, out: Path, tables: Sequence[Table]) -> None:
    """W&B gets the report as it gets the runs, by the `track` block of the first run that has begun."""
    recipe = next(run.recipe for run in summary.runs if run.recipe)
    shown = {
        table.name: ([column.name for column in table.columns], [[cell.text for cell in row] for row in table.rows])
        for table in tables
    }
    tracker.publish_report(
        TrackBlock.model_validate(recipe["track"]), study, tracker.Report(f"{summary.name}-report", out, shown)
    )


def _tables(summary: Summary) -> list[Table]:
    of = (
        tables.last_epoch,
        *([tables.against_dense] if tables.against_dense(summary).rows else []),
        tables.advice,
        tables.supported,
        tables.best_epoch,
        *([tables.speed] if any(run.speeds for run in summary.runs) else []),
        *([tables.missing] if summary.missing else []),
        tables.runs,
    )
    return [table(summary) for table in of]


def _markdown(summary: Summary, tables: Sequence[Table], svgs: Mapping[str, str]) -> str:
    parts = [f"# {inert(summary.name)}", inert(facts(summary)) + ".", f"![{inert(_alternative(summary))}](panels.svg)"]
    for table in tables:
        parts += [f"## {table.title}", *([table.about] if table.about else []), table.markdown().rstrip()]
        if table.name == "last_epoch" and "pareto" in svgs:
            parts.append(f"![{_against_flops(summary)}, with the Pareto front](pareto.svg)")
    curves = [f"[{name}]({name}.svg)" for name in svgs if name.startswith("curves-")]
    return "\n\n".join([*parts, "## Every run, epoch by epoch", *curves]) + "\n"


def _alternative(summary: Summary) -> str:
    measures = summary.measures
    return (
        f"Validation {measures.headline.name}, training cross entropy and validation {measures.confidence.name} along "
        f"{summary.along.axis}"
    )


def _against_flops(summary: Summary) -> str:
    return f"{summary.measures.headline.title} against training FLOPs"


def _page(summary: Summary, tables: Sequence[Table], svgs: Mapping[str, str], links: Mapping[str, str]) -> str:
    panels = [
        Picture(svg(charts.panel(summary, shown)), shown.key.replace("_", "-"), title)
        for shown, title in zip(
            charts.quantities(summary.measures),
            (
                f"Validation {summary.measures.headline.common.name}",
                "Training cross entropy",
                f"Validation {summary.measures.confidence.name}",
            ),
            strict=True,
        )
    ]
    panels.append(Picture(svg(charts.legend(summary)), "legend", "Legend"))
    names = _curves(summary)
    curves = [
        Picture(svgs[name], f"curves-{number}", series.name)
        for number, series in enumerate(summary.series)
        if (name := names[series.name]) in svgs
    ]
    pareto = [Picture(svgs["pareto"], "pareto", _against_flops(summary))] if "pareto" in svgs else []
    return page(summary, tables, panels, {"pareto": pareto, "curves": curves}, links)


def _links(summary: Summary, study: Path, out: Path) -> dict[str, str]:
    """Links to the resolved recipes, if the report is inside the study's directory and moves with it."""
    if not out.resolve().is_relative_to(study.resolve()):
        return {}
    return {
        run.key: Path(os.path.relpath(RunDir(run.path).resolved, out)).as_posix() for run in summary.runs if run.recipe
    }


def _curves(summary: Summary) -> dict[str, str]:
    """File names of the curves, by series."""
    return {
        series.name: f"curves-{number}-" + re.sub(r"[^a-z0-9.]+", "-", series.name.lower()).strip("-")
        for number, series in enumerate(summary.series, 1)
    }
