"""`acdc doctor`: whether this machine can train, check by check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from acdc_cli import console
from acdc_cli.data.inventory import HOME
from acdc_cli.data.known_sets import known_sets
from acdc_cli.doctor import gpu, machine, software
from acdc_cli.doctor.verdict import Status, Verdict, error, ok
from acdc_cli.errors import AcdcError
from acdc_cli.recipe.blocks.images import ImagesBlock

Check = Callable[[], Verdict]


@dataclass(frozen=True)
class Finding:
    check: str
    status: Status
    result: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        return {"check": self.check, "status": self.status, "found": self.result, "fix": self.fix}


def diagnose(data: str | None, out: Path) -> list[Finding]:
    """data: a set's name or folder; by default the demo set, if it exists. out: the folder for runs."""
    return run(checks(data, out))


def checks(data: str | None, out: Path) -> dict[str, Check]:
    folder = _folder(data or "demo")
    checks: dict[str, Check] = {
        "python": software.python,
        "packages": software.packages,
        "torchvision": software.torchvision,
        "gpu": gpu.gpu,
        "processes": software.processes,
        "ffcv": software.ffcv,
        "threads": machine.threads,
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "disk of runs": partial(machine.runs_disk, out),
        "disk of data": partial(machine.data_disk, folder),
        "wandb": software.wandb,
    }
    if data or folder.is_dir():
        checks["data"] = partial(data_set, folder)
    # last, because it sets torch's number of threads
    return checks | {"training": _training}


def run(checks: dict[str, Check]) -> list[Finding]:
    """Runs every check; a failing check does not stop the others."""
    findings = []
    with console.progress("Looking at", "{task.fields[check]}", remaining=False) as bar:
        task = bar.add_task("Looking at", total=len(checks), check="")
        for name, check in checks.items():
            bar.update(task, check=name)
            findings.append(Finding(name, *_survived(check)))
            bar.advance(task)
    return findings


def data_set(folder: Path) -> Verdict:
    """Raises DataError if the set is missing, or is visibly damaged."""
    from acdc_cli.data.data_set import open_set

    data = open_set(ImagesBlock(name=folder.name, path=str(folder), batch_size=1))
    train, val = data.stored("train"), data.stored("val")
    return ok(f"{folder}: {train:,} training and {val:,} validation images of {data.classes:,} classes")


def _folder(data: str) -> Path:
    """The folder that recipes would use: a set of this name is in data/NAME."""
    path = Path(data)
    if not path.exists() and data in known_sets():
        return HOME / data
    return path if path.is_dir() or path.suffix != ".beton" else path.parent


def _training() -> Verdict:
    # imported here because it imports torch: if torch is broken, this check reports it
    from acdc_cli.doctor.training import training

    return training()


def _survived(check: Check) -> Verdict:
    try:
        return check()
    except AcdcError as cause:
        return error(str(cause), "")
    except Exception as cause:
        fix = "fix the other errors, if any; otherwise report this to acdc's developers"
        return error(f"the check itself failed: {type(cause).__name__}: {cause}", fix)
