"""One part in its own process: `python -m benchmarks.gpu.trial MODULE FILE DEADLINE ROUNDS [--smoke]`.

Results reach the file after every step of the measurement, so that a killed part loses the step at most.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from acdc_cli import files
from acdc_cli.training.precision import choose_device
from benchmarks.measure import Target, compare
from benchmarks.skipped import SkippedError

_LEAST_ROUNDS = 3


class Trial:
    """What a part is given: its device, its sizes, its time, and the file for its results."""

    def __init__(self, file: Path, deadline: float, most_rounds: int, smoke: bool) -> None:
        """deadline: on the monotonic clock, which all processes of a machine share."""
        self.file = file
        self.deadline = deadline
        self.smoke = smoke
        self.most_rounds = most_rounds
        self.device = choose_device("auto")
        self.recorded: dict[str, Any] = {}
        self._began = time.monotonic()
        self._lines: dict[str, dict[str, Any]] = {}
        self._comparisons: dict[str, dict[str, Any]] = {}

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def folder(self) -> Path:
        """For whatever a part writes besides its results."""
        return self.file.parent

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def after(self, share: float) -> float:
        """The moment at which this share of the part's time is used up."""
        return self._began + share * (self.deadline - self._began)

    def rounds(self, until: float | None = None) -> Iterator[int]:
        """As many as fit, the longest so far being the measure; at least three, unless fewer are asked for."""
        until, longest = until or self.deadline, 0.0
        for index in range(self.most_rounds):
            began = time.monotonic()
            if index >= _LEAST_ROUNDS and began + longest > until:
                return
            yield index
            longest = max(longest, time.monotonic() - began)

    def record(self, **facts: Any) -> None:
        self.recorded |= facts
        self.write()

    def line(self, what: str, value: float, unit: str, target: Target | None = None) -> None:
        """A line of the table at the end; the newest value counts."""
        self._lines[what] = {
            "what": what,
            "value": float(f"{value:.5g}"),
            "unit": unit,
            "target": None if target is None else str(target),
            "met": None if target is None else target.met_by(value),
        }
        self.write()

    def compare(
        self, what: str, unit: str, rounds: Mapping[str, list[float]], over: str, under: str, target: Target | None
    ) -> None:
        """The ratio over the rounds that both have finished; nothing before the first."""
        whole = min(len(rounds.get(over, ())), len(rounds.get(under, ())))
        if whole:
            comparison = compare(
                what, unit, {name: rounds[name][:whole] for name in (over, under)}, over, under, target
            )
            self._comparisons[what] = comparison
            self.line(what, comparison["ratio"], "", target)

    def write(self) -> None:
        result = {"lines": list(self._lines.values()), "comparisons": list(self._comparisons.values()), **self.recorded}
        files.write_text(self.file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def forget() -> None:
    """Free what the last contestant held on the GPU, and what was compiled for it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()


def main() -> int:
    module, file, deadline, rounds, *rest = sys.argv[1:]
    trial = Trial(Path(file), float(deadline), int(rounds), rest == ["--smoke"])
    trial.write()
    try:
        importlib.import_module(module).run(trial)
    except SkippedError as reason:
        trial.record(skipped=str(reason))
    # whatever it is, it is a result of this part
    except Exception as error:
        traceback.print_exc()
        trial.record(error=told(error))
        return 1
    return 0


def told(error: BaseException) -> str:
    """Its type and the beginning of what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


if __name__ == "__main__":
    sys.exit(main())
