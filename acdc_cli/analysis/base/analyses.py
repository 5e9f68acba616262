"""The registry of analyses: every file in the parent package is one, and needs no other registration.

Each file has a docstring whose first line describes the analysis; `analyze(subjects, options, workspace) -> Findings`;
a `Block` named `Options` if there is something to choose; and its measures as public functions of tensors, models and
loaders. One that reads what a run does not always save also has `missing(runs, options) -> list[str]`: what runs of
these recipes would lack, for a study that names the analysis and has not trained yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.discovery import ANALYSES

if TYPE_CHECKING:
    from acdc_cli.analysis.base.findings import Findings
    from acdc_cli.analysis.base.forecast import Forecast
    from acdc_cli.analysis.base.subject import Subject
    from acdc_cli.analysis.base.workspace import Workspace


class Analysis(Protocol):
    def analyze(self, subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings: ...


def find(name: str) -> tuple[Analysis, type[Block]]:
    """The analysis of this name and its options. Raises RunError if there is none."""
    module = ANALYSES.module(name)
    options: type[Block] = getattr(module, "Options", Block)
    return cast(Analysis, module), options


def missing(name: str, runs: Sequence[Forecast], options: Block) -> list[str]:
    """What runs of these recipes would not save for this analysis; empty if nothing is missing."""
    asked = getattr(ANALYSES.module(name), "missing", None)
    problems: list[str] = asked(runs, options) if asked else []
    return problems
