"""docs/scale.svg: images a second along the number of GPUs, and the study's hours along the size of a group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from scripts.scale.parts import Assumed, Machine
from scripts.scale.study import resnet50, schedule, speed

_GPUS = tuple(2**power for power in range(10))


def draw(path: Path, assumed: Assumed) -> None:
    # the same bytes whenever the numbers are the same
    matplotlib.rcParams.update({"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 8})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    _draw_rates(left, assumed)
    _draw_hours(right, assumed)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_rates(axes: Axes, assumed: Assumed) -> None:
    agreed = replace(assumed, agree_every=50)
    variants = {
        "as it is": (assumed, 1024),
        "agreement every 50 steps": (agreed, 1024),
        "… and steps launched in 2 ms": (replace(agreed, launch=0.002), 1024),
        "… and batches of 8,192": (replace(agreed, launch=0.002), 8192),
    }
    alone = _rate(1, assumed, 1024)
    axes.plot(_GPUS, [gpus * alone for gpus in _GPUS], color="grey", linestyle=":", label="in proportion")
    for label, (parts, batch) in variants.items():
        axes.plot(_GPUS, [_rate(gpus, parts, batch) for gpus in _GPUS], marker=".", label=label)
    axes.set(xlabel="GPUs that train one run", ylabel="images/s at 160 pixels", yscale="log")
    _axis(axes)


def _rate(gpus: int, assumed: Assumed, batch: int) -> float:
    return batch / speed(Machine(resnet50(), gpus, assumed, batch)).step[160]


def _draw_hours(axes: Axes, assumed: Assumed) -> None:
    for label, parts, asynchronous in (
        ("as it is", assumed, False),
        ("agreement every 50 steps, asynchronous checkpoints", replace(assumed, agree_every=50), True),
    ):
        hours = [schedule(Machine(resnet50(), size, parts), 512, asynchronous).makespan / 3600 for size in _GPUS]
        axes.plot(_GPUS, hours, marker=".", label=label)
    axes.set(xlabel="GPUs of a group, 512 in all", ylabel="hours for Figure C.1", yscale="log")
    _axis(axes)


def _axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(_GPUS, [str(gpus) for gpus in _GPUS])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
