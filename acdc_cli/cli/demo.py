"""`acdc demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo")) -> None:
    """Two minutes on two cores: train a small ResNet on real digits to 90 % sparsity, and evaluate it."""
    from acdc_cli.jobs.demo_run import demo as job

    job(out)
