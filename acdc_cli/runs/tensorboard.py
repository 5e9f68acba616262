"""Mirrors a run's records into TensorBoard's event files, in the run's folder `tensorboard`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from acdc_cli import console
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import COMPLETE, Tracker

_AXES = ("epoch", "step")


class TensorBoard(Tracker):
    """Every number of a record under its own name, and each layer's sparsity as `layers/NAME`, by step.

    Each process writes all epochs anew, from metrics.jsonl: so a resumed run has every point once, whatever became of
    the events of the processes before. The first failure is reported once and ends the mirroring.
    """

    def __init__(self, run: RunDir) -> None:
        """Raises ImportError if TensorBoard is not installed."""
        # imported here because it takes a second
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[[str], Any] | None = SummaryWriter
        self._run = run
        self._writer: Any = None

    def log(self, record: dict[str, Any]) -> None:
        self._attempt(lambda: self._mirror(record))

    def _mirror(self, record: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._add(record)
        elif self._open is not None:
            folder = self._run.path / "tensorboard"
            for earlier in folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            self._writer = self._open(str(folder))
            # the file has this record already
            for each in self._run.records():
                self._add(each)

    def _add(self, record: Mapping[str, Any]) -> None:
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, record.get("step", record["epoch"]))
        self._writer.flush()

    def alert(self, text: str) -> None:
        self._attempt(lambda: self._writer and self._writer.add_text("alert", text))

    def close(self, failed: bool = False) -> None:
        self._attempt(lambda: self._writer and self._writer.close())

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # its writer raises what its file system does, and more; none may stop a run
            self._open = self._writer = None
            console.warn(f"TensorBoard's events cannot be written ({error}); {COMPLETE}")


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    layers = {f"layers/{name}": share for name, share in record.get("layers", {}).items()}
    for name, value in {**record, **layers}.items():
        if isinstance(value, int | float) and name not in _AXES:
            yield name, float(value)
