"""A task on a further split of its set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from acdc_cli.tasks.base.abstract_task import Measure


class OnSplit:
    """The same metrics, called METRIC/SPLIT."""

    def __init__(self, measure: Measure, split: str) -> None:
        self._measure, self._split = measure, split

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{name}/{self._split}" for name in self._measure.names)

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return self._measure.sums(logits, targets)

    def metrics(self, sums: Mapping[str, Any], samples: int) -> dict[str, float]:
        return {f"{name}/{self._split}": value for name, value in self._measure.metrics(sums, samples).items()}
