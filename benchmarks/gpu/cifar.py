"""`python -m benchmarks gpu_cifar`: dense, AC/DC, GMP and RigL on real images, as far as the minutes given reach.

What a call leaves unfinished the next one with the same --work and --epochs finishes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli import console, files
from acdc_cli.data import manifest as manifests
from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.errors import DataError
from acdc_cli.runs.run_dir import RunDir
from benchmarks.gpu import grid
from benchmarks.gpu.command import gpu_name
from benchmarks.gpu.grid import Run
from benchmarks.gpu.processes import last_line, on_stop_signals
from benchmarks.report import header, slug

_ENDING = 15.0
"""Seconds that runs need to save themselves when they are asked to end."""
_SMOKE = (
    "data.images=64",
    "data.val_images=32",
    "data.batch_size=32",
    "data.val_batch_size=32",
    "threads=1",
    "data.loader=torch",
)


def main(arguments: Sequence[str]) -> int:
    began = time.monotonic()
    asked = _parsed(arguments)
    gpu = gpu_name()
    parallel = asked.parallel or (4 if gpu else 1)
    data = _data(asked.source, asked.work, asked.smoke)
    cores = len(os.sched_getaffinity(0))
    # decoded once and kept on the device, where JPEGs would otherwise be decoded again in every epoch
    shared = [f"data.path={data.resolve()}", f"data.workers={max(1, cores // parallel)}", "data.loader=torch"]
    shared += _SMOKE if asked.smoke else ()
    runs = grid.all_runs(asked.models, asked.methods, asked.targets, asked.seeds, asked.epochs)
    stem = asked.out / f"gpu_cifar-{slug(gpu or 'cpu')}"
    facts = header("gpu_cifar", asked.smoke, gpu)
    facts |= {"data": _described(asked.source, data), "epochs": asked.epochs, "parallel": parallel, "keys": asked.keys}
    study = Study(asked.work / f"runs-{asked.epochs}", runs, [*shared, *asked.keys], stem, facts)
    study.write()
    study.run(began + 60 * asked.minutes - _ENDING, parallel)
    for line in grid.markdown(study.rows()):
        console.out(line)
    missing = sum(1 for run in runs if not study.directory(run).finished)
    console.say(f"{len(runs) - missing} of {len(runs)} runs are finished; {stem}.json, {stem}.md")
    for name, reason in study.failed.items():
        console.say(f"{name} failed: {reason}")
    return 130 if study.stopped else 0


@dataclass
class _Running:
    run: Run
    process: subprocess.Popen[bytes]
    began: float


class Study:
    """The runs, of which several may train at a time; results are written whenever one ends."""

    def __init__(
        self, folder: Path, runs: Sequence[Run], keys: Sequence[str], stem: Path, facts: dict[str, Any]
    ) -> None:
        """keys: what all runs are told. stem: of the files of results."""
        self._folder, self._runs, self._keys, self._stem, self._facts = folder, runs, keys, stem, facts
        self._walls_file = folder / "walls.json"
        self._began = time.monotonic()
        self.failed: dict[str, str] = {}
        self.stopped = False
        for each in (folder, stem.parent):
            each.mkdir(parents=True, exist_ok=True)
        self._walls: dict[str, float] = json.loads(self._walls_file.read_text()) if self._walls_file.exists() else {}
        """Seconds of finished runs by name, their start included."""

    def directory(self, run: Run) -> RunDir:
        return RunDir(self._folder / run.name)

    def run(self, deadline: float, parallel: int) -> None:
        """Until all are done, none fits any more, or a signal comes; runs that are still at it then save themselves."""
        waiting = [run for run in self._runs if not self.directory(run).finished]
        active: list[_Running] = []
        with on_stop_signals(self._stop):
            while (waiting or active) and not self.stopped and time.monotonic() < deadline:
                for ended in [each for each in active if each.process.poll() is not None]:
                    active.remove(ended)
                    self._conclude(ended)
                fitting = [run for run in waiting if grid.fits(run, self._known(), deadline - time.monotonic())]
                if fitting and len(active) < parallel:
                    waiting.remove(fitting[0])
                    active.append(self._start(fitting[0]))
                elif not active:
                    break
                time.sleep(0.2)
            self._end(active)

    def rows(self) -> list[dict[str, Any]]:
        return grid.rows(self._records())

    def write(self) -> None:
        records = self._records()
        table = grid.rows(records)
        result = {
            **self._facts,
            "seconds": round(time.monotonic() - self._began, 1),
            "table": table,
            "runs": records,
            "failed": self.failed,
            "missing": [run.name for run in self._runs if not self.directory(run).finished],
        }
        files.write_text(self._stem.with_suffix(".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        data = self._facts["data"]
        title = (
            f"{data['source']}: {data['train']:,} images, {data['val']:,} to validate; {self._facts['epochs']} epochs"
        )
        files.write_text(self._stem.with_suffix(".md"), "\n".join([title, "", *grid.markdown(table)]) + "\n")

    def _start(self, run: Run) -> _Running:
        out = self.directory(run).path
        words = ["train", *run.words(self._keys), "--out", str(out), "--resume", "auto"]
        console.say(f"{run.name} …")
        with self._log(run).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "acdc_cli", *words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return _Running(run, process, time.monotonic())

    def _conclude(self, ended: _Running, asked_to_end: bool = False) -> None:
        if self.directory(ended.run).finished:
            self._walls[ended.run.name] = round(time.monotonic() - ended.began, 1)
            files.write_text(self._walls_file, json.dumps(self._walls, indent=1))
        elif not asked_to_end:
            self.failed[ended.run.name] = f"exit code {ended.process.returncode}: {last_line(self._log(ended.run))}"
        self.write()

    def _end(self, active: Sequence[_Running]) -> None:
        for each in active:
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGTERM)
        end = time.monotonic() + _ENDING
        for each in active:
            with suppress(subprocess.TimeoutExpired):
                each.process.wait(max(0.0, end - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
            self._conclude(each, asked_to_end=True)
        self.write()

    def _stop(self) -> None:
        self.stopped = True

    def _known(self) -> dict[str, list[float]]:
        """Seconds of finished runs by model."""
        seconds: dict[str, list[float]] = {}
        for run in self._runs:
            if run.name in self._walls:
                seconds.setdefault(run.model, []).append(self._walls[run.name])
        return seconds

    def _records(self) -> list[dict[str, Any]]:
        return [self._record(run) for run in self._runs if self.directory(run).finished]

    def _record(self, run: Run) -> dict[str, Any]:
        summary = json.loads(self.directory(run).summary.read_text())
        ends = {kind: {key: summary[kind][key] for key in _KEPT} for kind in ("sparse", "dense") if kind in summary}
        speeds = [record["images_per_second"] for record in self.directory(run).records()]
        return {
            "model": run.model,
            "method": run.method,
            "target": run.target,
            "seed": run.seed,
            **ends,
            "seconds": summary["seconds"],
            "wall": self._walls.get(run.name),
            "images_per_second": max(speeds),
        }

    def _log(self, run: Run) -> Path:
        return self._folder / f"{run.name}.log"


_KEPT = ("epoch", "top1", "val_loss", "sparsity", "sparsity_all")


def _data(source: Path, work: Path, smoke: bool) -> Path:
    """The folder of the .beton files, written from the images if they are not there."""
    folder = work / "data"
    if not all(manifests.path_of(folder / f"{split}.beton").exists() for split in ("train", "val")):
        images = source if source.is_dir() else _unpacked(source, work / "images")
        write_set("folder", WriteOptions(source=images, out=folder, original=True, workers=0 if smoke else None))
    return folder


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder in the archive that holds train/ and val/. Raises DataError where none does."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}; give a folder or a tar with --source") from error
        partial.rename(folder)
    for root in (folder, *sorted(folder.iterdir())):
        if (root / "train").is_dir():
            return root
    raise DataError(
        f"{archive} holds no folder train/; it must hold {{train,val}}/CLASS/*.jpg, or one folder with them"
    )


def _described(source: Path, data: Path) -> dict[str, Any]:
    counts = {split: manifests.read(data / f"{split}.beton").samples for split in ("train", "val")}
    return {"source": source.name, **counts}


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu_cifar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="images in {train,val}/CLASS/*.jpg: a folder, or a tar of one"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/gpu_cifar"), help="for data and runs; %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; default: %(default)g")
    parser.add_argument("--epochs", type=int, help="of each run, at least 4; default: 20, with --smoke 4")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--parallel", type=int, help="runs at a time; default: 4 on a GPU, 1 on a CPU")
    parser.add_argument("--models", nargs="+", default=grid.MODELS, help=f"default: {' '.join(grid.MODELS)}")
    parser.add_argument("--methods", nargs="+", default=grid.METHODS, choices=grid.METHODS, help="default: all")
    parser.add_argument("--targets", nargs="+", type=float, default=grid.TARGETS, help="default: 0.9 0.95 0.98")
    parser.add_argument("--set", dest="keys", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--smoke", action="store_true", help="a few images and epochs: shows that it runs")
    asked = parser.parse_args(arguments)
    asked.epochs = asked.epochs or (grid.LEAST_EPOCHS if asked.smoke else 20)
    if asked.epochs < grid.LEAST_EPOCHS:
        parser.error(f"--epochs: AC/DC's phases take at least {grid.LEAST_EPOCHS}")
    return asked
