"""What AC/DC's weights do at 98 % on the demo digits: the largest of each layer at every phase end, three seeds.

`python -m scripts.giants` writes docs/results/giants.md; docs/results/README.md says what it shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from acdc_cli.jobs.training_run import train
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.study import load_study

VARIANTS = (("acdc", 0.98), ("acdc clipped", 0.98), ("acdc", 0.95))


def main() -> int:
    lines = [
        "Largest weight / filters with a weight / share of zeros, at the end of each phase of the runs of "
        "[compare](README.md), seed by seed. Made by `python -m scripts.giants`.",
    ]
    study = load_study("methods_demo")
    for name, target in VARIANTS:
        for cell in study.cells():
            if (cell.axes["method"], cell.axes["sparsity"]) == (name, target):
                title = f"{name}, {target:.0%}, seed {cell.axes['seed']}:"
                lines += ["", title, "", *_table(str(study.base_recipe), cell)]
    Path("docs/results/giants.md").write_text("\n".join(lines) + "\n")
    return 0


def _table(recipe: str, cell: Cell) -> list[str]:
    folder = Path("runs/giants") / cell.key
    if not RunDir(folder).finished:
        train(recipe, [*cell.overrides, "checkpoint.keep_phases=true"], folder, RunDir(folder).resolved.exists())
    phases = {file.stem: load_file(file) for file in sorted((folder / "checkpoints").glob("*.safetensors"))}
    layers = [name for name in next(iter(phases.values())) if ".conv" in name]
    return [
        f"| layer | {' | '.join(phases)} |",
        f"|---|{'---|' * len(phases)}",
        *(
            f"| {layer.removesuffix('.weight')} | {' | '.join(_cell(model[layer]) for model in phases.values())} |"
            for layer in layers
        ),
    ]


def _cell(weight: Tensor) -> str:
    filters = (weight != 0).flatten(1).any(dim=1)
    zeros = (weight == 0).float().mean().item()
    return f"{weight.abs().max().item():.2f} / {int(filters.sum())} of {len(filters)} / {zeros:.1%}"


if __name__ == "__main__":
    sys.exit(main())
