"""How long a step waits for a checkpoint of ResNet-50 with AC/DC's masks and momentum, on this disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from acdc_cli.recipe.load import load
from acdc_cli.training import checkpoint
from benchmarks.assemble import Resident, assemble
from benchmarks.measure import Target, Timing, alternate, compare, timed, walls

WAITED, WROTE = "waits for the copy", "waits for the disk"


def run(smoke: bool) -> dict[str, Any]:
    model = ["model.name=resnet20"] if smoke else []
    recipe = load("resnet50_95", ["device=cpu", "data.batch_size=2", *model])
    # on the disk that runs lie on, not on one in memory
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder)
        (path / "checkpoints").mkdir()
        assembly = assemble(recipe, Resident(2, 64, 1, torch.device("cpu")), folder=path)
        assembly.steps(0, 1)
        trainer = assembly.trainer

        def save() -> Timing:
            timing = timed(trainer._save)
            trainer._saves.wait()
            return timing

        contestants = {
            WAITED: save,
            WROTE: lambda: timed(lambda: checkpoint.save_state(path, trainer.state_dict())),
        }
        # the first save allocates the memory that the others copy to
        alternate(contestants, 1)
        seconds = walls(alternate(contestants, 2 if smoke else 25))
        size = (path / "checkpoints" / "last.pt").stat().st_size
    target = Target("≤", 0.1)
    return {"comparisons": [compare("stall of a checkpoint", "s", seconds, WAITED, WROTE, target)], "bytes": size}
