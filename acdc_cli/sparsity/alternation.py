"""The phases of AC/DC: their lengths, and what to change if they do not fit the run."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor, isclose
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from acdc_cli.recipe.blocks.base import Epochs, Misfit, RunSize, Share, epochs_of
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.sparsity.when import PhaseLength, in_turn

_DEFAULT_EPOCHS = 5
_SEARCHED_EPOCHS = 1000


class AlternationBlock(TargetBlock):
    """Dense warm-up; sparse, dense, …, sparse phases; the last dense phase; the last phase (P1 3.2)."""

    warmup_epochs: Epochs = "10%"
    """Dense epochs before the first sparse phase: `10` (P1), or `10%` of the run (P2)."""
    sparse_epochs: PositiveInt | None = None
    """Length of a sparse phase. Default: 5, unless `period_epochs` is given."""
    dense_epochs: PositiveInt | None = None
    """Length of a dense phase. Default: 5, unless `period_epochs` is given."""
    period_epochs: Annotated[int, Field(ge=2)] | None = None
    """Length of a sparse and a dense phase together; replaces `sparse_epochs` and `dense_epochs`."""
    sparse_fraction: Share | None = None
    """Sparse share of `period_epochs`: 0.2 of 10 epochs is 2 sparse and 8 dense epochs (P2 H)."""
    last_dense_epochs: Epochs = 10
    """Length of the last dense phase, which ends in the dense model."""
    last_sparse_epochs: Epochs = 15
    """Length of the last phase. It ends in the sparse model, or with another `last_phase` in the dense one."""
    last_phase: Literal["sparse", "dense_best", "dense_last", "both"] = "sparse"
    """`dense_best` and `dense_last` replace the last sparse phase: they fine-tune the dense model that is most
    accurate in validation after the warm-up, or that of the last dense epoch (P1 3.2, 4). The sparse model is then that
    of the sparse phase before. `both`: the last sparse phase, then as many epochs at the same learning rates and
    resolutions that fine-tune the dense model of the last dense epoch, from zero momentum; `epochs` counts them, too.
    """

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        """P1's proportions: of 100 epochs 10 dense, then phases of 5, the last two of 10 and 15."""
        phase = max(1, run.epochs // 20)
        last_dense, last_sparse = (2 * phase, 3 * phase) if run.epochs >= 10 else (1, 1)
        middle = run.epochs - last_dense - last_sparse
        # the odd number of phases that leaves about a tenth of the run to the warm-up
        phases = max(1, (middle - run.epochs // 10) // phase)
        phases -= 1 - phases % 2
        return super().proposed(run, target) | {
            "warmup_epochs": max(0, middle - phases * phase),
            "sparse_epochs": phase,
            "dense_epochs": phase,
            "last_dense_epochs": last_dense,
            "last_sparse_epochs": last_sparse,
        }

    @model_validator(mode="after")
    def _lengths_given_once(self) -> Self:
        period, share = self.period_epochs, self.sparse_fraction
        if period is None and share is None:
            return self
        if period is None or share is None:
            missing = "period_epochs" if period is None else "sparse_fraction"
            raise ValueError(
                f"{missing}: missing; set both `period_epochs`, the length of a sparse and a dense phase together, and "
                "`sparse_fraction`, its sparse share"
            )
        if self.sparse_epochs is not None or self.dense_epochs is not None:
            raise ValueError(
                "period_epochs: sets the phase lengths, and so do `sparse_epochs` and `dense_epochs`; remove one or "
                "the other (null removes an inherited key)"
            )
        if not any(isclose(share, whole / period, abs_tol=1e-3) for whole in range(1, period)):
            near = {min(max(near, 1), period - 1) for near in (floor(share * period), ceil(share * period))}
            fitting = " or ".join(f"{whole / period:.4g}" for whole in sorted(near))
            raise ValueError(
                f"sparse_fraction: {share:g} of {period} epochs is {share * period:.4g} epochs; sparse and dense "
                f"phases need whole epochs, at least one: use {fitting}"
            )
        return self

    @property
    def lengths(self) -> tuple[int, int]:
        """Epochs of a sparse phase and of a dense phase."""
        if self.period_epochs is None or self.sparse_fraction is None:
            return self.sparse_epochs or _DEFAULT_EPOCHS, self.dense_epochs or _DEFAULT_EPOCHS
        sparse = round(self.sparse_fraction * self.period_epochs)
        return sparse, self.period_epochs - sparse

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        empty = [
            key for key in ("last_dense_epochs", "last_sparse_epochs") if epochs_of(getattr(self, key), run.epochs) == 0
        ]
        for key in empty:
            of = f"{getattr(self, key)} of {run.epochs} epochs"
            yield Misfit(key, f"{of} is 0 epochs; each of the last phases needs at least one")
        if not empty and not self._fits(run.epochs):
            yield Misfit("period_epochs" if self.period_epochs else "sparse_epochs", self._misfit(run.epochs))

    def phases(self, epochs: int) -> PhasePlan:
        """Raises ValueError if the phases do not fit the run, as `check` reports."""
        if not self._fits(epochs):
            raise ValueError(self._misfit(epochs))
        warmup, last_dense, last = self._fixed(epochs)
        sparse_epochs, dense_epochs = self.lengths
        rounds = (self._middle(epochs) + dense_epochs) // (sparse_epochs + dense_epochs)
        middle: list[PhaseLength] = [("sparse", sparse_epochs), ("dense", dense_epochs)] * rounds
        fine_tuning: list[PhaseLength] = [("dense", epochs - self.course(epochs))]
        return in_turn(("dense", warmup), *middle[:-1], ("dense", last_dense), (self._last_kind, last), *fine_tuning)

    def course(self, epochs: int) -> int:
        """Epochs of the run without those that `both` adds to fine-tune the dense model."""
        if self.last_phase != "both":
            return epochs
        # the last that, with its own last phase, does not exceed the run
        fitting = (n for n in range(epochs, 0, -1) if n + epochs_of(self.last_sparse_epochs, n) <= epochs)
        return next(fitting, 0)

    def clock(self, progress: float, epochs: int) -> tuple[float, int]:
        """Fine-tuning after the last sparse phase repeats the clock of that phase."""
        course = self.course(epochs)
        return progress - (epochs - course) * (progress >= course), course

    @property
    def _last_kind(self) -> Literal["sparse", "dense"]:
        return "sparse" if self.last_phase in ("sparse", "both") else "dense"

    def _fixed(self, epochs: int) -> tuple[int, int, int]:
        """Epochs of the warm-up, of the last dense phase and of the last phase."""
        course = self.course(epochs)
        return (
            epochs_of(self.warmup_epochs, course),
            epochs_of(self.last_dense_epochs, course),
            epochs_of(self.last_sparse_epochs, course),
        )

    def _middle(self, epochs: int) -> int:
        """Epochs between the warm-up and the last dense phase; negative if these alone do not fit."""
        return self.course(epochs) - sum(self._fixed(epochs))

    def _fits(self, epochs: int) -> bool:
        middle, (sparse, dense) = self._middle(epochs), self.lengths
        return min(self._fixed(epochs)[1:]) > 0 and middle >= sparse and (middle + dense) % (sparse + dense) == 0

    def _misfit(self, epochs: int) -> str:
        warmup, last_dense, last = self._fixed(epochs)
        middle, (sparse, dense) = self._middle(epochs), self.lengths
        tuning = f", then {last} of fine-tuning" if self.last_phase == "both" else ""
        fitting = ", ".join(str(sparse + number * (sparse + dense)) for number in range(3))
        shorter = next((total for total in range(epochs - 1, 0, -1) if self._fits(total)), None)
        longer = next((total for total in range(epochs + 1, epochs + _SEARCHED_EPOCHS) if self._fits(total)), None)
        totals = " or ".join(str(total) for total in (shorter, longer) if total is not None)
        return (
            f"{epochs} epochs leave {max(middle, 0)} between the warm-up ({warmup}) and the last phases ({last_dense} "
            f"dense and {last} {self._last_kind}{tuning}); sparse phases of {sparse} with dense phases of {dense} "
            f"between them take {fitting}, … epochs: change a length"
            + (f", or train {totals} epochs" if totals else "")
        )
