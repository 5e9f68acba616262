"""`python -m benchmarks gpu`: every part within the minutes given, one file of results, a short table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acdc_cli import console, files
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.runner import Runner
from benchmarks.report import VERDICTS, header, slug

_WIDTH = 80


def main(arguments: Sequence[str]) -> int:
    began = time.monotonic()
    asked = _parsed(arguments)
    gpu = gpu_name()
    if gpu is None and not asked.smoke:
        console.say("gpu: skipped: it needs a CUDA device; --smoke runs every part on the CPU")
        return 0
    name = f"gpu-{slug(gpu or 'cpu')}"
    path, facts = asked.out / f"{name}.json", header("gpu", asked.smoke, gpu)
    before = json.loads(path.read_text())["parts"] if asked.parts is not None and path.exists() else {}

    def write(results: Mapping[str, Any]) -> None:
        result = {**facts, "seconds": round(time.monotonic() - began, 1), "parts": {**before, **results}}
        files.write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")

    rounds = asked.rounds or (1 if asked.smoke else 100)
    words = [str(rounds), *(["--smoke"] if asked.smoke else [])]
    runner = Runner(asked.out / name, words, write)
    spent = time.monotonic() - began
    runner.run([part for part in PARTS if asked.parts is None or part.name in asked.parts], 60 * asked.minutes - spent)
    for line in table(runner.results):
        console.out(line)
    console.say(f"{path}{' (smoke: the sizes are tiny, the numbers mean nothing)' if asked.smoke else ''}")
    return 130 if runner.stopped else 0


def table(results: Mapping[str, Any]) -> list[str]:
    """What became of each part, then every number, with its goal where it has one; at most 80 columns."""
    lines = [f"{name:9} {result.get('seconds', ''):>6}  {result['state']}" for name, result in results.items()]
    for result in results.values():
        for line in result.get("lines", ()):
            value = f"{line['value']:.5g} {line['unit']}".rstrip()
            lines.append(f"{VERDICTS[line['met']]}  {line['what']:44} {value:>14}  {line['target'] or ''}".rstrip())
    return [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines]


def gpu_name() -> str | None:
    """Asked of another process, so that this one holds nothing on the GPU."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or None


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; default: %(default)g")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    names = ",".join(part.name for part in PARTS)
    parser.add_argument("--parts", type=_names, metavar="NAME,…", help=f"only these; default: {names}")
    parser.add_argument("--rounds", type=int, help="most rounds of each part; default: as many as fit, with --smoke 1")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on a CPU too: measures nothing")
    return parser.parse_args(arguments)


def _names(words: str) -> list[str]:
    names = words.split(",")
    if unknown := sorted(set(names) - {part.name for part in PARTS}):
        known: Sequence[Part] = PARTS
        raise argparse.ArgumentTypeError(
            f"there is no part {', '.join(unknown)}, only {', '.join(p.name for p in known)}"
        )
    return names
