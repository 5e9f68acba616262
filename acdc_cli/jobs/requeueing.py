"""A run that Slurm asks to make room puts its own job back into the queue (`checkpoint.requeue`)."""

from __future__ import annotations

import os
import subprocess

from acdc_cli import console
from acdc_cli.errors import RunError
from acdc_cli.jobs.opening import Resume
from acdc_cli.recipe.schema import Recipe

_SECONDS = 60


def require_resuming(recipe: Recipe, resume: Resume) -> None:
    """Raises RunError if the requeued job, which repeats this command, would be refused."""
    if recipe.checkpoint.requeue and "SLURM_JOB_ID" in os.environ and resume != "auto":
        raise RunError("checkpoint.requeue repeats this command in a new job: add --resume auto")


def requeue() -> None:
    """Requeues the Slurm job of this process; a failure is a warning, because the run is saved."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        return
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        console.warn(f"Slurm job {job} could not be requeued ({reason}); submit it again")
    else:
        console.say(f"Slurm job {job} is requeued: the run resumes when it starts again")
