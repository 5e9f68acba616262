"""The analyses: every file of this package's parent is one, and nothing else needs to be told of it.

Such a file has a docstring, whose first line says what it is; `analyze(subjects, options, workspace) -> Findings`;
where there is something to choose, a `Block` named `Options`; and its measures as public functions of tensors, models
and loaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from acdc_cli.recipe.discovery import ANALYSES
from acdc_cli.recipe.schema import Block

if TYPE_CHECKING:
    from acdc_cli.analysis.base.findings import Findings
    from acdc_cli.analysis.base.subject import Subject
    from acdc_cli.analysis.base.workspace import Workspace


class Analysis(Protocol):
    def analyze(self, subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings: ...


def find(name: str) -> tuple[Analysis, type[Block]]:
    """An analysis and its options. Raises RunError where there is none of that name."""
    module = ANALYSES.module(name)
    options: type[Block] = getattr(module, "Options", Block)
    return cast(Analysis, module), options
