"""One self-contained HTML page with all figures, tables and recipes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from acdc_cli.files import as_bytes
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.report import charts
from acdc_cli.studies.report.tables import Table
from acdc_cli.studies.results import Run
from acdc_cli.studies.summary import Summary

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    svg: str
    name: str
    """Lower-case letters, digits and dashes: the prefix of its ids."""
    title: str

    @property
    def inline(self) -> Markup:
        # drawn by matplotlib, which escapes the text
        return Markup(charts.inline(self.svg, self.name, str(escape(self.title))))


def page(
    summary: Summary,
    tables: Sequence[Table],
    panels: Sequence[Picture],
    pictures: Mapping[str, Sequence[Picture]],
    links: Mapping[str, str],
) -> str:
    """pictures: `pareto` and `curves`.  links: to the runs' resolved recipes, by run key; empty if they would not stay
    valid."""
    headline = summary.measures.headline
    return render(
        _HERE / "page.html",
        summary=summary,
        headline=headline.common.title,
        best=headline.superlative,
        facts=facts(summary),
        tables={table.name: table for table in tables},
        downloads={table.name: _download(table) for table in tables},
        panels=panels,
        pictures=pictures,
        begun=[(f"recipe-{number}", run, _recipe(run)) for number, run in enumerate(summary.runs, 1) if run.recipe],
        anchors={run.key: f"recipe-{number}" for number, run in enumerate(summary.runs, 1) if run.recipe},
        links=links,
    )


def render(template: Path, **values: Any) -> str:
    """The page of a template, with the style that all pages share."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(style=style, **values)


def facts(summary: Summary) -> str:
    """`resnet8 on demo, 27 of 27 runs done`."""
    recipes = [run.recipe for run in summary.runs if run.recipe]
    models = dict.fromkeys(recipe["model"]["name"] for recipe in recipes)
    data = dict.fromkeys(recipe["data"]["name"] for recipe in recipes)
    done = len(summary.runs) - len(summary.missing)
    return f"{', '.join(models)} on {', '.join(data)}, {done} of {len(summary.runs)} runs done"


def _recipe(run: Run) -> str:
    return RunDir(run.path).resolved.read_text(encoding="utf-8")


def _download(table: Table) -> str:
    return f"data:text/csv;base64,{b64encode(as_bytes(table.csv())).decode()}"
