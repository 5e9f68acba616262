"""`acdc verify-resume` on the demo digits: a killed run ends as one that was left alone, to the bit."""

from __future__ import annotations

import json
import os
from pathlib import Path

from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.errors import AcdcError
from acdc_cli.recipe.load import load
from benchmarks.gpu import processes
from benchmarks.gpu.trial import Trial

_DETERMINISTIC = "deterministic=true"
_ENDING = 8.0
_SMOKE = (
    "epochs=4",
    "data.images=128",
    "data.val_images=50",
    "data.workers=0",
    "data.loader=torch",
    "sparsity={warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}",
)


def run(trial: Trial) -> None:
    folder = trial.folder / "resume-data"
    write_set("demo", WriteOptions(out=folder, workers=0))
    changes = [f"data.path={folder.resolve()}", "compile=false", *(_SMOKE if trial.smoke else ())]
    environment = dict(os.environ)
    try:
        load("demo", [*changes, _DETERMINISTIC])
        changes.append(_DETERMINISTIC)
        trial.record(deterministic="by the recipe's key")
    except AcdcError:
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        trial.record(deterministic="by CUBLAS_WORKSPACE_CONFIG: the recipe has no key for it in this version")
    words = ["-m", "acdc_cli", "verify-resume", "demo", "--kills", "1", "--json"]
    words += [word for change in changes for word in ("--set", change)]
    log = trial.folder / "resume-acdc.log"
    code = processes.python(words, trial.left() - _ENDING, log, environment)
    if code is None:
        raise RuntimeError(f"no time left for its runs: {processes.last_line(log)}")
    if code:
        trial.line("verify-resume: runs that are the same to the bit", 0, "of 1")
        raise RuntimeError(f"acdc verify-resume ended with exit code {code}: {processes.last_line(log)}")
    verdict = _verdict(log)
    trial.record(**verdict)
    trial.line("verify-resume: runs that are the same to the bit", int(verdict["exact"]), "of 1")


def _verdict(log: Path) -> dict[str, object]:
    """The JSON object at the end of the commentary."""
    said = log.read_text()
    document: dict[str, object] = json.loads(said[said.index("\n{") :] if "\n{" in said else said)
    return document
