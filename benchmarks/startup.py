"""CPU time of `acdc --help` against that of importing typer alone, and what it imports."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.measure import Target, Timing, alternate, compare, cpus, walls

_HELP = ("-m", "acdc_cli", "--help")
_HEAVY = {"torch", "torchvision", "timm", "ffcv", "wandb", "numpy", "matplotlib"}


def run(smoke: bool) -> dict[str, Any]:
    contestants = {
        "acdc --help": lambda: _process(*_HELP),
        "import typer": lambda: _process("-c", "import typer"),
    }
    # once without counting, so that both find their bytecode
    alternate(contestants, 1)
    rounds = alternate(contestants, 2 if smoke else 20)
    pair = "acdc --help", "import typer"
    heavy = sorted(_HEAVY & _imported(*_HELP))
    return {
        "comparisons": [
            compare("CPU time", "ms", cpus(rounds, 1000), *pair, Target("≤", 2.5)),
            compare("wall time", "ms", walls(rounds, 1000), *pair),
        ],
        "heavy_imports": heavy,
        "imports_no_torch": "torch" not in heavy,
        "notes": [f"acdc --help imports, of {', '.join(sorted(_HEAVY))}: {', '.join(heavy) or 'none'}"],
    }


def _process(*arguments: str) -> Timing:
    wall, cpu = time.perf_counter(), _cpu_of_children()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return Timing(time.perf_counter() - wall, _cpu_of_children() - cpu)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _imported(*arguments: str) -> set[str]:
    """Every module that the interpreter loads."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}
