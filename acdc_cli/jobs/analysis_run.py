"""`acdc analyze`: runs an analysis on runs and checkpoints, and writes its numbers and figures to files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli import __version__, console, reading
from acdc_cli.analysis.base import analyses
from acdc_cli.analysis.base.findings import Findings
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.errors import AcdcError, RunError
from acdc_cli.jobs.subjects import Asked, Checkpoint, open_subjects
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.load import block_of, sorted_overrides

_LONGEST = 100
"""Largest number of characters in a file name, without the suffixes of tables, figures and formats."""


@dataclass(frozen=True)
class Analysed:
    document: dict[str, Any]
    """The content of the .json file."""
    findings: Findings
    files: list[Path]

    @property
    def figure(self) -> Path | None:
        """The main figure."""
        return next((file for file in self.files if file.suffix == ".png"), None)


def analyze(
    name: str,
    sources: Sequence[Path],
    asked: Asked | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    stem: str | None = None,
) -> Analysed:
    """Writes into `out`; by default into `analysis/` of the first run, or `analysis/` here if no run is named.

    overrides: `key=value` for the analysis's options and for the recipes' keys.
    stem: of the names of files in a folder that holds nothing else; None: it names the analysis and the models.
    Raises RunError if the analysis is unknown or `out` has results of other models, and the errors of the analysis
    itself.
    """
    analysis, schema = analyses.find(name)
    own, others = sorted_overrides(schema, overrides)
    options = block_of(schema, own, f"analyze {name}")
    asked = asked or Asked()
    subjects = open_subjects(sources, Asked(asked.which, asked.model, asked.data, (*asked.overrides, *others)))
    if stem is None:
        stem = _stem(name, subjects, of_first=out is None)
        if out is not None:
            _refuse_if_of_others(out / f"{stem}.json", subjects)
    out = out or (sources[0] if sources[0].is_dir() else Path()) / "analysis"
    workspace = Workspace(out / f".{stem}.unfinished", _rests_on(name, subjects, options))
    try:
        findings = analysis.analyze(subjects, options, workspace)
    except KeyboardInterrupt:
        if workspace.keeps_something:
            console.say("interrupted; progress is saved, and the same command resumes it")
        raise
    about = {
        "analysis": name,
        "acdc": __version__,
        "subjects": [_about(subject) for subject in subjects],
        "options": options.model_dump(mode="json"),
    }
    files = findings.write(out, stem, about)
    workspace.clear()
    return Analysed(reading.plain({**about, "results": findings.numbers}), findings, files)


def options_of(name: str) -> list[tuple[str, str, str]]:
    """Key, default and meaning of each option of an analysis."""
    _, schema = analyses.find(name)
    return [
        (key, json.dumps(field.get_default()), " ".join((field.description or "").split()))
        for key, field in schema.model_fields.items()
    ]


def _stem(name: str, subjects: Sequence[Checkpoint], of_first: bool) -> str:
    """The stem of the file names, distinct for each set of models analysed in one folder.

    of_first: the folder is the first run's, which need not be named.
    """
    first, *rest = subjects
    named = (first.kind or "") if of_first and first.run else first.name
    names = [name, *([named] if named else []), *(subject.name for subject in rest)]
    stem = "-".join(re.sub(r"[^A-Za-z0-9._+=,-]+", "-", each).strip("-") for each in names)
    if len(stem) > _LONGEST:
        stem = f"{name}-{len(subjects)}-models-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    return stem


class _Source(reading.Form):
    source: str


class _Earlier(reading.Form):
    """Earlier results in the same file."""

    subjects: list[_Source]


def _refuse_if_of_others(file: Path, subjects: Sequence[Checkpoint]) -> None:
    """Runs in different folders may have the same name."""
    try:
        there = [subject["source"] for subject in reading.read_json(file, _Earlier)["subjects"]]
    except RunError:
        # missing, or not our results
        return
    if [Path(source).resolve() for source in there] != [subject.source.resolve() for subject in subjects]:
        raise RunError(
            f"{file} holds the results of {', '.join(there)}; choose another folder for "
            f"{', '.join(str(subject.source) for subject in subjects)} with --out"
        )


def _about(subject: Checkpoint) -> dict[str, Any]:
    about = {"name": subject.name, "source": str(subject.source)}
    try:
        return {**about, "weights": subject.weights.name, "sha256": subject.digest}
    except AcdcError:
        # no phase of the run has ended: an analysis that reads only its records needs no weights
        return about


def _rests_on(name: str, subjects: Sequence[Checkpoint], options: Block) -> str:
    return json.dumps(
        [
            [name, __version__, options.model_dump(mode="json")],
            [
                [_about(subject), _kept(subject), subject.asked.data, subject.recipe.model_dump(mode="json")]
                for subject in subjects
            ],
        ]
    )


def _kept(subject: Checkpoint) -> list[tuple[str, int, int]]:
    """Identifies a run's saved models without reading them, because there are too many."""
    if subject.run is None:
        return []
    states = [(kept.file.name, kept.file.stat()) for kept in subject.run.kept_models()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]
