"""What every benchmark's file of results begins with, and how its lines are printed."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from acdc_cli.runs.provenance import cpu_model, versions


def header(name: str, smoke: bool, gpu: str | None) -> dict[str, Any]:
    """gpu: its name; None where the benchmark runs on the CPU."""
    return {
        "benchmark": name,
        "smoke": smoke,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "gpu": gpu,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **versions(), "pillow": metadata.version("pillow")},
    }


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


VERDICTS = {True: "met   ", False: "MISSED", None: "      "}
