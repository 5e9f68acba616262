"""Every method at 90, 95 and 98 % on the demo digits, three seeds each: `make compare`.

The runs lie in runs/compare, where finished ones are not trained again; tables and a figure go to docs/results.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from acdc_cli import console
from acdc_cli.errors import AcdcError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.sparsity import catalog

TARGETS = (0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)
EPOCHS = 8
COMMON = (
    f"epochs={EPOCHS}",
    # the digits at 12 of their 28 pixels: a sixth of the time
    "data.resolution=12",
    "data.val_resize=12",
    "data.val_crop=12",
    "data.augment=random_resized_crop",
    "data.crop_scale=[0.7, 1.0]",
    "data.crop_ratio=[0.9, 1.11]",
    "data.workers=1",
    "checkpoint.every_epochs=8",
)
"""What all runs share, over the recipes demo_<method>: a seed then sees the same pixels whatever the method."""
OWN: dict[str, tuple[str, ...]] = {
    # dense 0, sparse 1, dense 2, sparse 3, dense 4-5, sparse 6-7
    "acdc": (
        "sparsity.warmup_epochs=1",
        "sparsity.sparse_epochs=1",
        "sparsity.dense_epochs=1",
        "sparsity.last_dense_epochs=2",
        "sparsity.last_sparse_epochs=2",
    ),
    "dsd": ("sparsity.sparse_from=3", "sparsity.dense_from=6"),
}
"""What a method needs because the run is shorter than that of its demo recipe."""
OF_TARGET: dict[str, dict[float, str]] = {
    # four rounds of two epochs, whatever the target: 1 - (1 - target)^(1/3), rounded up
    "lottery": {0.9: "sparsity.prune=0.54", 0.95: "sparsity.prune=0.64", 0.98: "sparsity.prune=0.73"},
    # its sparsity results; these come close
    "str": {0.9: "sparsity.s_decay=0.0155", 0.95: "sparsity.s_decay=0.0237", 0.98: "sparsity.s_decay=0.04"},
    "acdc ramp": {0.95: "sparsity.ramp_from=0.9", 0.98: "sparsity.ramp_from=0.9"},
}
"""Further keys by target, beside the target itself, which STR does not know; no runs where a variant has none."""


@dataclass(frozen=True)
class Run:
    name: str
    """The method, and after it the variant, if it is one."""
    target: float | None
    """None: dense training has none."""
    seed: int

    @property
    def method(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def folder(self) -> Path:
        target = "" if self.target is None else f"-{100 * self.target:g}"
        return Path("runs/compare") / f"{self.name.replace(' ', '_')}{target}-{self.seed}"

    @property
    def recipe(self) -> str:
        return "demo" if self.method == "acdc" else f"demo_{self.method}"

    @property
    def overrides(self) -> list[str]:
        return [*COMMON, *OWN.get(self.method, ()), *self._of_target(), f"seed={self.seed}"]

    @property
    def product(self) -> str:
        return "dense" if self.target is None else "sparse"

    def _of_target(self) -> list[str]:
        if self.target is None:
            return []
        keys = [] if self.method == "str" else [f"sparsity.target={self.target}"]
        return [*keys, *([OF_TARGET[self.name][self.target]] if self.name in OF_TARGET else [])]


def all_runs(names: Sequence[str]) -> list[Run]:
    """Seed by seed, so that a study that is interrupted has whole seeds."""
    return [
        Run(name, target, seed)
        for seed in SEEDS
        for name in names
        for target in (OF_TARGET.get(name, TARGETS) if name != "dense" else (None,))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*catalog.names(), "acdc ramp"]
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help="default: all")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="default: %(default)s")
    asked = parser.parse_args()
    runs = all_runs(asked.methods)
    try:
        _train_all(runs, asked.workers)
    except AcdcError as error:
        console.error(str(error))
        return 2
    records = [_record(run) for run in runs]
    rows = summarise(records)
    asked.out.mkdir(parents=True, exist_ok=True)
    _write(asked.out, records, rows)
    _show(rows)
    return 0


def _train_all(runs: Sequence[Run], workers: int) -> None:
    """Those that are not finished, `workers` at a time."""
    from acdc_cli.jobs.data import write_demo

    write_demo()
    missing = [run for run in runs if not RunDir(run.folder).finished]
    console.say(f"{len(runs) - len(missing)} of {len(runs)} runs are done already; {workers} at a time")
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool,
        console.progress("runs") as bar,
    ):
        shown = bar.add_task("runs", total=len(missing))
        waiting = {pool.submit(_train, run): run for run in missing}
        for done in as_completed(waiting):
            done.result()
            bar.advance(shown)


def _quiet() -> None:
    """A worker's commentary goes to a file of its own."""
    log = Path("runs/compare") / f"worker-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr = log.open("a", buffering=1)


def _train(run: Run) -> None:
    from acdc_cli.jobs.train import train

    train(run.recipe, run.overrides, run.folder, resume=RunDir(run.folder).resolved.exists())


def _record(run: Run) -> dict[str, Any]:
    """What the table needs of a run; its model is that of the end of its last sparse phase."""
    summary = json.loads(RunDir(run.folder).summary.read_text())
    found = summary[run.product]
    keys = ("epoch", "top1", "entropy", "val_loss", "train_loss", "sparsity", "sparsity_all")
    return {
        "method": run.name,
        "target": run.target,
        "seed": run.seed,
        **{key: found[key] for key in keys},
        "seconds": summary["seconds"],
        "overrides": run.overrides,
    }


def summarise(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds of each method and target."""
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["method"], record["target"]), []).append(record)
    return [
        {
            "method": method,
            "target": target,
            "seeds": len(group),
            **{f"{key}_{name}": of([record[key] for record in group]) for key, name, of in _COLUMNS},
        }
        for (method, target), group in groups.items()
    ]


_COLUMNS = (
    ("top1", "mean", mean),
    ("top1", "std", stdev),
    ("entropy", "mean", mean),
    ("entropy", "std", stdev),
    ("sparsity", "mean", mean),
    ("sparsity_all", "mean", mean),
    ("seconds", "mean", mean),
)


def _write(folder: Path, records: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    import torch

    from acdc_cli.runs.provenance import provenance

    facts = json.loads((RunDir(Path(Run("dense", None, 0).folder)).path / "provenance.json").read_text())[0]["data"]
    facts.pop("path")
    origin = provenance(torch.device("cpu"), "fp32", facts, ["make", "compare"])
    result = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "provenance": origin, "runs": records}
    (folder / "compare-demo.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    with (folder / "compare-demo.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def _plain(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _show(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("method", "target", "top-1", "± std", "entropy", "zeros", "of all", "s")
    console.table(
        columns,
        [
            (
                row["method"],
                "-" if row["target"] is None else f"{row['target']:.0%}",
                f"{row['top1_mean']:.2%}",
                f"{row['top1_std']:.2%}",
                f"{row['entropy_mean']:.3f}",
                f"{row['sparsity_mean']:.2%}",
                f"{row['sparsity_all_mean']:.2%}",
                f"{row['seconds_mean']:.0f}",
            )
            for row in sorted(rows, key=lambda row: (row["target"] or 0, -row["top1_mean"]))
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
