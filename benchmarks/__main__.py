"""`python -m benchmarks [NAME …] [--smoke] [--out FOLDER]`: run, tell, and write one JSON file a benchmark."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from acdc_cli import console
from acdc_cli.errors import AcdcError
from acdc_cli.runs.provenance import cpu_model, describe, versions
from acdc_cli.training.precision import choose_device
from benchmarks.skipped import SkippedError

NAMES = ("startup", "memory", "trainer", "sparse_step", "loader", "resident", "gpu")
"""Each is a file of this folder with `run(smoke)`; only `gpu` uses one."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in NAMES]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.names or NAMES:
        try:
            _run(name, asked.smoke, asked.out)
        except SkippedError as reason:
            console.say(f"{name}: skipped: {reason}")
        except AcdcError as error:
            console.error(f"{name}: {error}")
            return 2
    return 0


def _run(name: str, smoke: bool, folder: Path) -> None:
    device = choose_device("auto" if name == "gpu" else "cpu")
    load = os.getloadavg()[0]
    began = time.perf_counter()
    console.say(f"{name} …")
    found: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").run(smoke)
    result = {
        "benchmark": name,
        "smoke": smoke,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": _machine(device) | {"load_before": round(load, 2)},
        "versions": {"python": platform.python_version(), **versions(), "pillow": metadata.version("pillow")},
        **found,
    }
    path = folder / f"{name}-{_slug(describe(device))}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    _tell(found, path)


def _machine(device: torch.device) -> dict[str, Any]:
    gpu = describe(device) if device.type == "cuda" else None
    return {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _tell(found: dict[str, Any], path: Path) -> None:
    for line in found["comparisons"]:
        verdict = {True: "met   ", False: "MISSED", None: "      "}[line["met"]]
        target = f" (target {line['target']})" if line["target"] else ""
        medians = ", ".join(f"{name} {value:g}" for name, value in line["medians"].items())
        console.out(
            f"{verdict}  {line['what']}: {line['ratio_of']} = {line['ratio']:.3f}{target}; {medians} {line['unit']}"
        )
    for note in found.get("notes", ()):
        console.say(f"        {note}")
    console.say(f"        {path}")


if __name__ == "__main__":
    sys.exit(main())
