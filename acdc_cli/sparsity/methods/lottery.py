"""Lottery tickets: train, prune the smallest weights, rewind the others, train again (arXiv 1803.03635, 1912.05671)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from math import ceil, log
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from acdc_cli.recipe.blocks.base import Epochs, Misfit, RunSize
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.rewinding import Rounds, rounds_of
from acdc_cli.sparsity.sparsifier import Sparsifier

_SEARCHED_EPOCHS = 1000


class Config(TargetBlock):
    """`epochs` of the recipe is the whole run: E = L + n (L - k) for rounds of L epochs, n prunings and rewinding to
    epoch k. L follows from E; if L is not whole, the recipe is refused, and the error names the nearest E that fit.
    """

    prune: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the remaining weights that is pruned after a round, smallest first (arXiv 1803.03635). The run has as
    many rounds as the target takes; the last pruning stops at the target. A share equal to the target prunes once."""
    rewind_to: Epochs = 0
    """Epoch of the first round to whose start the model and the learning rate return after each pruning, as a number or
    a share of a round. 0: the initial model, which is that of `from_checkpoint` if given."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        # the most prunings, up to four, with which the epochs divide into rounds
        prunings = next((n for n in (4, 3, 2) if run.epochs % (n + 1) == 0), 1)
        prune = ceil(10_000 * (1 - (1 - target) ** (1 / prunings))) / 10_000
        return super().proposed(run, target) | {"prune": target if prunings == 1 else prune}

    @model_validator(mode="after")
    def _trains_again(self) -> Self:
        if isinstance(self.rewind_to, str) and float(self.rewind_to.removesuffix("%")) >= 100:
            raise ValueError(f"rewind_to: {self.rewind_to} of a round leaves nothing to train again; make it smaller")
        if self.n_of_m and self.prunings > 1:
            raise ValueError(
                f"pattern: {self.pattern} has a single sparsity, but prune: {self.prune:g} passes through others; "
                f"prune all at once (prune: {self.target:g}), or use another pattern"
            )
        return self

    @property
    def prunings(self) -> int:
        """The smallest n with (1 - prune)^n <= 1 - target."""
        # rounded, because log 0.64 / log 0.8 is 2.0000000000000004
        return ceil(round(log(1 - self.target) / log(1 - self.prune), 9))

    def sparsity(self, number: int) -> float:
        """In round `number`, counted from 0: 1 - (1 - prune)^number, in the last one the target."""
        # in decimals, like the counts of weights that follow from it: 0.36, never 0.3599…
        return self.target if number == self.prunings else float(1 - (1 - Fraction(str(self.prune))) ** number)

    def rounds(self, epochs: int) -> Rounds:
        """Raises ValueError if the epochs do not divide into rounds, as `check` reports."""
        if (rounds := rounds_of(epochs, self.prunings, self.rewind_to)) is None:
            raise ValueError(self._misfit(epochs))
        return rounds

    def clock(self, progress: float, epochs: int) -> tuple[float, int]:
        """Each round has the learning rate and the resolution of a run of its length."""
        rounds = self.rounds(epochs)
        return rounds.clock(progress), rounds.length

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if rounds_of(run.epochs, self.prunings, self.rewind_to) is None:
            yield Misfit("prune", self._misfit(run.epochs))

    def _misfit(self, epochs: int) -> str:
        shorter = self._first_fitting(range(epochs - 1, 0, -1))
        longer = self._first_fitting(range(epochs + 1, epochs + _SEARCHED_EPOCHS))
        totals = " or ".join(f"{rounds.epochs} (rounds of {rounds.length})" for rounds in (shorter, longer) if rounds)
        start = f"epoch {self.rewind_to}" if isinstance(self.rewind_to, int) else f"{self.rewind_to} of its epochs"
        return (
            f"{epochs} epochs do not divide into equal rounds: pruning {self.prune:g} of the rest at a time takes "
            f"{self.prunings} prunings to {self.target:g}, so there are a first round and {self.prunings} more that "
            f"rewind to {start}; change prune or rewind_to" + (f", or train {totals} epochs" if totals else "")
        )

    def _first_fitting(self, totals: Iterable[int]) -> Rounds | None:
        return next(filter(None, (rounds_of(total, self.prunings, self.rewind_to) for total in totals)), None)


class Method(Sparsifier[Config]):
    """The i-th pruning, by p (`prune`), keeps the weights that are largest at the end of a round, and rewinds them to
    their values w_k of epoch k (`rewind_to`):

        s_i = 1 - (1 - p)^i        w <- m * w_k

    s_i is the sparsity of the masks m, and after the last pruning the target.
    Every round starts with zero optimiser state and has its own orders of the images.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        self.rounds = config.rounds(epochs)
        super().__init__(config, masked, epochs, seed)
        self._early: dict[str, Tensor] = {}
        """Snapshot of the model at the epoch `rewind_to`; empty before."""

    def plan(self) -> PhasePlan:
        return self.rounds.phases()

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.epoch == self.rounds.rewound_to:
            self._early = self.training.snapshot()
        if moment.epoch > 0 and self.phases.begins(moment.epoch):
            self._prune_and_rewind(self.sparsity(moment))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"early": dict(self._early)}

    def later_bytes(self, model: int) -> int:
        return model

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._early = {name: value.clone() for name, value in state["early"].items()}

    def sparsity(self, moment: Moment) -> float:
        return self.config.sparsity(self.rounds.at(moment.epoch))

    def _prune_and_rewind(self, sparsity: float) -> None:
        masks = self.selector.masks(self.masked.magnitudes(), sparsity)
        self.training.restore(self._early)
        self.masked.set(masks)
