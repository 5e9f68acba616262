"""The runs of `python -m benchmarks gpu_cifar`, their recipe keys, and the table of their accuracies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acdc_cli.recipe.blocks.base import part_of
from acdc_cli.statistics import Spread

MODELS = ("wideresnet16_4", "resnet20")
"""The largest first."""
METHODS = ("dense", "acdc", "gmp", "rigl")
TARGETS = (0.9, 0.95, 0.98)
LEAST_EPOCHS = 4
"""One for each phase of AC/DC."""


@dataclass(frozen=True)
class Run:
    model: str
    method: str
    target: float | None
    """None: dense training has none."""
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        target = "" if self.target is None else f"-{100 * self.target:g}"
        return f"{self.model}-{self.method}{target}-{self.seed}"

    def words(self, more: Iterable[str] = ()) -> list[str]:
        """Arguments of `acdc train`. more: further keys, which override the run's own."""
        block = sparsity(self.method, self.target, self.epochs)
        keys = [f"name={self.name}", f"model.name={self.model}", f"epochs={self.epochs}", f"seed={self.seed}"]
        keys += [f"sparsity={json.dumps(block)}", "track.wandb=disabled", *more]
        return ["cifar/resnet20_90", *(word for key in keys for word in ("--set", key))]


def all_runs(
    models: Sequence[str], methods: Sequence[str], targets: Sequence[float], seeds: int, epochs: int
) -> list[Run]:
    """The whole grid with seed 0, then with seed 1, …"""
    return [
        Run(model, method, target, seed, epochs)
        for seed in range(seeds)
        for model in models
        for method in methods
        for target in ((None,) if method == "dense" else targets)
    ]


def sparsity(method: str, target: float | None, epochs: int) -> dict[str, Any]:
    """A recipe's block, with lengths in proportion to the run."""
    if target is None:
        return {"method": method}
    shared = {"method": method, "target": target, "keep_dense": ["first", "last"]}
    own: dict[str, dict[str, Any]] = {
        "acdc": {"distribution": "global", **phases(epochs)},
        "gmp": {"distribution": "global", "every_epochs": max(1, epochs // 20), "end": "75%"},
        "rigl": {"distribution": "erk", "every": 100, "fraction": 0.3, "end": "75%"},
    }
    return shared | own[method]


def phases(epochs: int) -> dict[str, int]:
    """AC/DC's phases of a run of 100 epochs (10 dense, 5 and 5 in turn, 10 dense, 15 sparse), in proportion.

    What rounding leaves over goes to the last sparse phase.
    """
    warmup, each, last_dense, last_sparse = (max(1, part_of(share, epochs)) for share in (0.1, 0.05, 0.1, 0.15))
    alternating = epochs - warmup - last_dense - last_sparse
    # sparse, dense, …, sparse: an odd number of phases
    count = max(1, alternating // each)
    count -= 1 - count % 2
    return {
        "warmup_epochs": warmup,
        "sparse_epochs": each,
        "dense_epochs": each,
        "last_dense_epochs": last_dense,
        "last_sparse_epochs": last_sparse + alternating - count * each,
    }


def fits(run: Run, walls: Mapping[str, Sequence[float]], left: float) -> bool:
    """Will it be done within `left` seconds, by the longest run of its model so far? Unknown: yes, if any are left.

    walls: seconds of finished runs, by model.
    """
    known = walls.get(run.model, ())
    return left > max(known, default=0.0)


def rows(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation of top-1 over the seeds; of the dense and the sparse model of each run."""
    groups: dict[tuple[str, str, float | None], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["model"], record["method"], record["target"]), []).append(record)
    return [
        {"model": model, "method": method, "target": target, "runs": len(group)}
        | {f"{kind}_top1": _spread([r[kind]["top1"] for r in group if r.get(kind)]) for kind in ("sparse", "dense")}
        for (model, method, target), group in groups.items()
    ]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    spread = Spread(tuple(values))
    return {"mean": spread.mean} | ({} if spread.std is None else {"std": spread.std})


def markdown(table: Iterable[Mapping[str, Any]]) -> list[str]:
    """At most 80 columns."""
    lines = ["| model          | method | target | runs | sparse top-1, % | dense top-1, %  |"]
    lines.append("|----------------|--------|-------:|-----:|----------------:|----------------:|")
    for row in table:
        target = "" if row["target"] is None else f"{100 * row['target']:g} %"
        cells = [f"{_percent(row[f'{kind}_top1']):>15}" for kind in ("sparse", "dense")]
        lines.append(
            f"| {row['model']:14} | {row['method']:6} | {target:>6} | {row['runs']:>4} | {' | '.join(cells)} |"
        )
    return lines


def _percent(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    return f"{100 * spread['mean']:.2f}" + (f" ± {100 * spread['std']:.2f}" if "std" in spread else "")
