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
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from acdc_cli import console
from acdc_cli.errors import AcdcError
from acdc_cli.recipe import kinds
from acdc_cli.runs.run_dir import RunDir

TARGETS = (0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)
EPOCHS = 8
COMMON = (
    # the digits at 12 of their 28 pixels: a sixth of the time
    "data.resolution=12",
    "data.val_resize=12",
    "data.val_crop=12",
    "data.augment=random_resized_crop",
    "data.crop_scale=[0.7, 1.0]",
    "data.crop_ratio=[0.9, 1.11]",
    "data.workers=1",
)
"""What all runs share, over the recipes demo_<method>: a seed then sees the same pixels whatever the method."""
LENGTHS: dict[str, dict[str, int]] = {
    # dense 0, sparse 1, dense 2, sparse 3, dense 4-5, sparse 6-7
    "acdc": {
        "warmup_epochs": 1,
        "sparse_epochs": 1,
        "dense_epochs": 1,
        "last_dense_epochs": 2,
        "last_sparse_epochs": 2,
    },
    "dsd": {"sparse_from": 3, "dense_from": 6},
}
"""In runs of 8 epochs, where the demo recipe's are others; longer runs have them in proportion."""
OF_TARGET: dict[str, dict[float, str]] = {
    # four rounds, whatever the target: 1 - (1 - target)^(1/3), rounded up
    "lottery": {0.9: "sparsity.prune=0.54", 0.95: "sparsity.prune=0.64", 0.98: "sparsity.prune=0.73"},
    # its sparsity results; these come close in 8 epochs
    "str": {0.9: "sparsity.s_decay=0.0155", 0.95: "sparsity.s_decay=0.0237", 0.98: "sparsity.s_decay=0.04"},
    # the backward pass has twice the density of the forward pass
    "topkast": {
        0.9: "sparsity.backward_sparsity=0.8",
        0.95: "sparsity.backward_sparsity=0.9",
        0.98: "sparsity.backward_sparsity=0.96",
    },
    # why AC/DC fails at 98 % without them: docs/results/README.md
    "acdc ramp": {0.95: "sparsity.ramp_from=0.9", 0.98: "sparsity.ramp_from=0.9"},
    "acdc erk": {0.98: "sparsity.distribution=erk"},
    "acdc clipped": dict.fromkeys(TARGETS, "optim.clip_norm=1.0"),
    "dpf clipped": {0.98: "optim.clip_norm=1.0"},
    "oneshot early": {0.98: "sparsity.at=1"},
}
"""Further keys by target, beside the target itself, which STR does not know; no runs where a variant has none."""
NAMES = sorted([*kinds.methods(), *(name for name in OF_TARGET if " " in name)])


@dataclass(frozen=True)
class Run:
    name: str
    """The method, and after it the variant, if it is one."""
    target: float | None
    """None: dense training has none."""
    seed: int
    epochs: int

    @property
    def method(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def folder(self) -> Path:
        target = "" if self.target is None else f"-{100 * self.target:g}"
        return Path(f"runs/compare-{self.epochs}") / f"{self.name.replace(' ', '_')}{target}-{self.seed}"

    @property
    def recipe(self) -> str:
        return "demo" if self.method == "acdc" else f"demo_{self.method}"

    @property
    def overrides(self) -> list[str]:
        lengths = LENGTHS.get(self.method, {})
        of_run = [f"epochs={self.epochs}", f"checkpoint.every_epochs={self.epochs}", f"seed={self.seed}"]
        own = [f"sparsity.{key}={value * self.epochs // EPOCHS}" for key, value in lengths.items()]
        return [*COMMON, *of_run, *own, *self._of_target()]

    @property
    def product(self) -> str:
        return "dense" if self.target is None else "sparse"

    def _of_target(self) -> list[str]:
        if self.target is None:
            return []
        target = [] if self.method == "str" else [f"sparsity.target={self.target}"]
        return [*target, *([OF_TARGET[self.name][self.target]] if self.name in OF_TARGET else [])]


def all_runs(names: Sequence[str], targets: Sequence[float], epochs: int) -> list[Run]:
    """Seed by seed, so that a study that is interrupted has whole seeds."""
    return [
        Run(name, target, seed, epochs)
        for seed in SEEDS
        for name in names
        for target in ((None,) if name == "dense" else targets)
        if target in (None, *OF_TARGET.get(name, TARGETS))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="METHOD", help="default: all")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS, choices=TARGETS, help="default: all")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, choices=range(8, 1001, 8), metavar="8N", help="default: 8"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="default: %(default)s")
    asked = parser.parse_args()
    runs = all_runs(asked.methods, asked.targets, asked.epochs)
    try:
        _train_all(runs, asked.workers)
    except AcdcError as error:
        console.error(str(error))
        return 2
    records = [_record(run) for run in runs]
    rows = summarise(records)
    asked.out.mkdir(parents=True, exist_ok=True)
    _write(asked.out / f"compare-demo-{asked.epochs}-epochs", records, rows)
    _show(rows)
    return 0


def _train_all(runs: Sequence[Run], workers: int) -> None:
    """Those that are not finished, `workers` at a time."""
    from acdc_cli.data.inventory import write_demo

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
    log = Path("runs") / f"compare-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr = log.open("a", buffering=1)


def _train(run: Run) -> None:
    from acdc_cli.jobs.training_run import train

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


def _write(stem: Path, records: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    import torch

    from acdc_cli.runs.provenance import provenance

    command = ["make", "compare"] if len(sys.argv) == 1 else ["python", *sys.argv]
    origin = provenance(torch.device("cpu"), "fp32", {"name": "demo"}, command)
    text = json.dumps({"provenance": origin, "runs": records}, indent=1, ensure_ascii=False)
    stem.with_suffix(".json").write_text(text + "\n")
    stem.with_suffix(".md").write_text(_markdown(rows, _origin(origin)))
    _draw(rows, stem.with_suffix(".svg"))
    with stem.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def _origin(origin: dict[str, Any]) -> str:
    from acdc_cli.runs.provenance import cpu_model

    packages = ", ".join(f"{name} {origin['packages'][name]}" for name in ("torch", "torchvision", "ffcv", "numpy"))
    machine = f"{len(os.sched_getaffinity(0))} cores of an {cpu_model()}"
    return f"`{' '.join(origin['command'])}`, {origin['time'][:10]}, {machine}, Python {origin['python']}, {packages}"


def _markdown(rows: Sequence[dict[str, Any]], made: str) -> str:
    """One line a method: top-1 and entropy at each target."""
    heads = [f"{kind}, {target:.0%}" for kind in ("top-1", "entropy") for target in TARGETS]
    found = {(row["method"], row["target"]): row for row in rows}
    names = sorted({row["method"] for row in rows}, key=lambda name: -_top1(found, name))
    lines = [
        f"Made by {made}.",
        "",
        f"| method | {' | '.join(heads)} | zeros at 98 %, of all | s |",
        f"|---|{'--:|' * (len(heads) + 2)}",
    ]
    for name in names:
        at = [found.get((name, target)) or found.get((name, None)) for target in TARGETS]
        last = at[-1] or {}
        lines.append(
            f"| {name} | {' | '.join(_accuracy(row) for row in at)} | {' | '.join(_entropy(row) for row in at)} "
            f"| {last['sparsity_mean']:.2%}, {last['sparsity_all_mean']:.2%} "
            f"| {mean(row['seconds_mean'] for row in at if row):.1f} |"
        )
    return "\n".join(lines) + "\n"


def _top1(found: dict[tuple[str, float | None], dict[str, Any]], name: str) -> float:
    row = found.get((name, TARGETS[-1])) or found[name, None]
    return float(row["top1_mean"])


def _accuracy(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{100 * row['top1_mean']:.2f} ± {100 * row['top1_std']:.2f}"


def _entropy(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['entropy_mean']:.3f} ± {row['entropy_std']:.3f}"


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Top-1 error by method, a mark for each target and seeds' standard deviation as a bar."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    found = {(row["method"], row["target"]): row for row in rows}
    names = sorted({name for name, target in found if target}, key=lambda name: _top1(found, name))
    figure, axes = pyplot.subplots(figsize=(7, 0.3 * len(names) + 1.2), layout="constrained")
    for target, mark, colour in zip(TARGETS, "osD", ("0.75", "0.45", "0.0"), strict=True):
        shown = [(name, found[name, target]) for name in names if (name, target) in found]
        axes.errorbar(
            [100 * (1 - row["top1_mean"]) for _, row in shown],
            [names.index(name) for name, _ in shown],
            xerr=[100 * row["top1_std"] for _, row in shown],
            fmt=mark,
            color=colour,
            capsize=2,
            label=f"{target:.0%} sparse",
        )
    if dense := found.get(("dense", None)):
        axes.axvline(100 * (1 - dense["top1_mean"]), linestyle="--", color="0.5", label="dense")
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xticks([2, 3, 5, 10, 20, 50], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"top-1 error on 1,000 digits, % (mean and standard deviation of {len(SEEDS)} seeds)")
    axes.grid(axis="x", color="0.9")
    axes.legend(loc="upper right")
    figure.savefig(path, metadata={"Date": None})


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
