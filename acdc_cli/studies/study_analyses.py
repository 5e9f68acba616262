"""The analyses that a study names: whether its runs will save what they read, and running them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from acdc_cli.analysis.base import analyses
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.errors import AcdcError, RecipeError, RunError
from acdc_cli.jobs import setup
from acdc_cli.jobs.analysis_run import Analysed, analyze
from acdc_cli.jobs.subjects import Asked
from acdc_cli.recipe.bearing import all_but_the_seed
from acdc_cli.recipe.load import block_of, sorted_overrides
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.sparsity.prunable import layers
from acdc_cli.studies.grid import Cell, override
from acdc_cli.studies.results import folder_of
from acdc_cli.studies.study import Study, load_study
from acdc_cli.studies.study_schema import AnalysisBlock

_CLASSES = 10
"""Any number: phases do not depend on it."""


def require_saved(study: Study, recipes: Mapping[str, Recipe]) -> None:
    """Raises RecipeError, with a line for each problem, if the runs would not save what the study's analyses read.

    recipes: those of all cells, by their keys.
    """
    forecasts = _Forecasts(recipes)
    lines = [
        f"analyses.{label}: {problem}"
        for label, block in study.analyses.items()
        for problem in _missing(study, label, block, forecasts)
    ]
    if lines:
        raise RecipeError("\n".join(lines))


def analyze_study(
    label: str, source: str, asked: Asked | None = None, out: Path | None = None, overrides: tuple[str, ...] = ()
) -> Analysed:
    """Runs one of a study's analyses on its runs, and writes into `analysis/LABEL` of the study's folder, or `out`.

    source: the study's folder, or the study as given to `acdc sweep`; overrides: as for `analyze`, after the study's.
    Raises RunError if the study does not name the analysis or some of its runs are not trained.
    """
    folder = folder_of(source)
    study = load_study(folder / "study.yaml" if Path(source).is_dir() else source)
    if label not in study.analyses:
        there = f"it names {', '.join(study.analyses)}" if study.analyses else "it names none"
        raise RunError(f"the study {study.name} has no analysis {label}; {there}{did_you_mean(label, study.analyses)}")
    block = study.analyses[label]
    sources = _sources(study, block, folder)
    name, own = block.analysis or label, folder / "analysis" / label
    return analyze(name, sources, asked, out or own, (*_options(block), *overrides), stem=None if out else name)


class _Forecasts:
    """Forecasts of runs; those that differ only in their seed have the same phases."""

    def __init__(self, recipes: Mapping[str, Recipe]) -> None:
        self._recipes = recipes
        self._known: dict[str, PhasePlan] = {}

    def __call__(self, cell: Cell) -> Forecast:
        recipe = self._recipes[cell.key]
        return Forecast(cell.key, recipe, lambda: self._phases(recipe))

    def _phases(self, recipe: Recipe) -> PhasePlan:
        unseeded = all_but_the_seed(recipe)
        if unseeded not in self._known:
            model = setup.without_weights(recipe, _CLASSES)
            self._known[unseeded] = setup.sparsifier(recipe, layers(model, setup.keep_dense(recipe))).phases
        return self._known[unseeded]


def _missing(study: Study, label: str, block: AnalysisBlock, forecasts: _Forecasts) -> Iterator[str]:
    name = block.analysis or label
    _, schema = analyses.find(name)
    try:
        own, _ = sorted_overrides(schema, _options(block))
        options = block_of(schema, own, f"analyze {name}")
    except AcdcError as e:
        yield str(e)
        return
    runs = []
    for cell, file in _selected(study, block):
        forecast = forecasts(cell)
        if file is None:
            runs.append(forecast)
        elif not any(fnmatchcase(str(each), file) for each in _files(forecast)):
            yield f"{cell.key} will not save {file}; change the name, or set checkpoint.keep_every or keep_phases"
    if runs:
        yield from analyses.missing(name, runs, options)


def _files(forecast: Forecast) -> list[Path]:
    return [*forecast.results, *(kept.file for kept in forecast.models)]


def _selected(study: Study, block: AnalysisBlock) -> Iterator[tuple[Cell, str | None]]:
    for selection in block.runs:
        for cell in study.cells():
            if selection.takes(cell):
                yield cell, selection.file


def _sources(study: Study, block: AnalysisBlock, folder: Path) -> list[Path]:
    sources: list[Path] = []
    untrained = []
    for cell, file in _selected(study, block):
        run = folder / "runs" / cell.key
        there = sorted(run.glob(file)) if file else [run] if run.is_dir() else []
        untrained += [] if there else [str(run / file) if file else str(run)]
        sources += there
    if untrained:
        more = f" and {len(untrained) - 1} more" if untrained[1:] else ""
        raise RunError(f"{untrained[0]}{more}: not there yet; train the study first: acdc sweep {study.name}")
    return sources


def _options(block: AnalysisBlock) -> tuple[str, ...]:
    return tuple(override(key, value) for key, value in block.set.items())
