"""`python -m benchmarks [NAME …] [--smoke] [--out FOLDER]`: run, tell, and write one JSON file a benchmark.

`gpu` and `gpu_cifar` are commands with options of their own: `python -m benchmarks gpu --help`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from acdc_cli import console
from acdc_cli.errors import AcdcError
from benchmarks.report import VERDICTS, header
from benchmarks.skipped import SkippedError

NAMES = ("startup", "memory", "trainer", "sparse_step", "loader", "resident", "blur", "processes", "checkpoint", "host")
"""Each is a file of this folder with `run(smoke)`, and runs on the CPU."""
COMMANDS = {"gpu": "benchmarks.gpu.command", "gpu_cifar": "benchmarks.gpu.cifar"}
"""Each has a `main(arguments)`."""


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        try:
            code: int = importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:])
        except AcdcError as error:
            console.error(f"{sys.argv[1]}: {error}")
            return 2
        return code
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    facts = header(name, smoke, gpu=None)
    began = time.perf_counter()
    console.say(f"{name} …")
    results: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").run(smoke)
    result = {**facts, "seconds": round(time.perf_counter() - began, 1), **results}
    path = folder / f"{name}-cpu.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    _tell(results, path)


def _tell(results: dict[str, Any], path: Path) -> None:
    for line in results["comparisons"]:
        target = f" (target {line['target']})" if line["target"] else ""
        medians = ", ".join(f"{name} {value:g}" for name, value in line["medians"].items())
        ratio = f"{line['ratio_of']} = {line['ratio']:.3f}{target}"
        console.out(f"{VERDICTS[line['met']]}  {line['what']}: {ratio}; {medians} {line['unit']}")
    for note in results.get("notes", ()):
        console.say(f"        {note}")
    console.say(f"        {path}")


if __name__ == "__main__":
    sys.exit(main())
