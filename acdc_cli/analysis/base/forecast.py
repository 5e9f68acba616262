"""What a run of a recipe will have saved when it ends, for the analyses that a study asks for before it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import Kept, RunDir
from acdc_cli.schedule.time import PhasePlan


@dataclass(frozen=True)
class Forecast:
    """A run that is analysed as a whole."""

    name: str
    recipe: Recipe
    plan: Callable[[], PhasePlan]
    """The phases; it builds the method, so it is called only if an analysis asks for them."""

    @cached_property
    def phases(self) -> PhasePlan:
        return self.plan()

    @property
    def phase_ends(self) -> set[int]:
        """The last epochs of the phases."""
        return {phase.end - 1 for phase in self.phases.phases}

    @property
    def models(self) -> list[Kept]:
        """As `RunDir.kept_models`."""
        block = self.recipe.checkpoint
        ends = self.phase_ends if block.keep_phases else set()
        return self._kept(RunDir(Path()).checkpoints, ends | self._every(block.keep_every))

    @property
    def masks(self) -> list[Kept]:
        """As `RunDir.kept_masks`."""
        block = self.recipe.checkpoint
        epochs = self.phase_ends | self._every(block.keep_every) | self._every(block.keep_masks_every)
        return [kept for kept in self._kept(RunDir(Path()).masks, epochs) if kept.kind != "dense"]

    @property
    def results(self) -> list[Path]:
        """The dense and the sparse model with which it ends."""
        kinds = dict.fromkeys(phase.kind for phase in self.phases.phases if phase.end > self.recipe.forked_after)
        return [RunDir(Path()).model_file(kind) for kind in kinds if kind != "ramp"]

    def _every(self, epochs: int | None) -> set[int]:
        return set(range(epochs - 1, self.phases.epochs, epochs)) if epochs else set()

    def _kept(self, folder: Path, epochs: set[int]) -> list[Kept]:
        own = sorted(epoch for epoch in epochs if epoch >= self.recipe.forked_after)
        kinds = {epoch: self.phases.at(epoch).kind for epoch in own}
        return [Kept(epoch, kind, folder / Kept.name(epoch, kind)) for epoch, kind in kinds.items()]
