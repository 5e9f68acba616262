"""Checks of the installed packages; heavy ones are imported inside their check, so that it reports broken ones."""

from __future__ import annotations

import functools
import os
import platform
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from acdc_cli import __version__
from acdc_cli.doctor.verdict import Verdict, error, ok, warning
from acdc_cli.errors import RunError

_SHOWN = ("torch", "torchvision", "timm", "wandb", "numpy")


class Declared(NamedTuple):
    """acdc's own metadata: from the installed package, or from pyproject.toml in a checkout."""

    version: str
    python: str
    """The range of supported Python versions."""
    packages: list[Requirement]
    """Requirements; those of an extra have a marker that names it."""


@functools.cache
def declared() -> Declared:
    """Raises RunError if acdc is neither installed nor a checkout."""
    try:
        package = metadata.metadata("acdc-cli")
        packages = [Requirement(line) for line in metadata.requires("acdc-cli") or ()]
        return Declared(package["Version"], package["Requires-Python"], packages)
    except metadata.PackageNotFoundError:
        return _of_checkout(Path(__file__).parents[2] / "pyproject.toml")


def _of_checkout(file: Path) -> Declared:
    try:
        project = tomllib.loads(file.read_text())["project"]
    except FileNotFoundError as e:
        raise RunError(
            f"acdc is not installed, and {file} is missing; use a complete checkout or pip install it"
        ) from e
    packages = [Requirement(line) for line in project["dependencies"]]
    for extra, lines in project["optional-dependencies"].items():
        packages += [Requirement(f'{line}; extra == "{extra}"') for line in lines]
    return Declared(__version__, project["requires-python"], packages)


def python() -> Verdict:
    return judge_python(platform.python_version(), declared().python)


def judge_python(version: str, supported: str) -> Verdict:
    if version in SpecifierSet(supported):
        return ok(version)
    return error(f"{version}, but acdc needs {supported}", "install acdc in an environment with such a Python")


def packages() -> Verdict:
    return judge_packages(declared().version, _installed(needed := required()), needed)


def required(extra: str = "") -> list[Requirement]:
    """acdc's own requirements, or those of one extra alone."""
    wanted = declared().packages
    if not extra:
        return [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [each for each in wanted if each.marker is not None and each.marker.evaluate({"extra": extra})]


def judge_packages(acdc: str, installed: Mapping[str, str], needed: Sequence[Requirement]) -> Verdict:
    """installed: versions by name; a missing name is not installed."""
    unfit = [each for each in needed if not _satisfied(each, installed)]
    if not unfit:
        shown = [f"{name} {installed[name]}" for name in _SHOWN if name in installed]
        return ok(", ".join([f"acdc {acdc}", *shown]))
    problems = [f"{each.name} {installed.get(each.name, 'is missing')} (needed: {_range(each)})" for each in unfit]
    return error(", ".join(problems), "pip install " + " ".join(f"'{each.name}{each.specifier}'" for each in unfit))


def torchvision() -> Verdict:
    """Checks that torchvision's compiled operations match the installed torch."""
    problem = None
    try:
        import torch
        from torchvision import ops

        ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, OSError, AttributeError, RuntimeError) as cause:
        problem = f"{type(cause).__name__}: {cause}"
    versions = _installed([Requirement("torch"), Requirement("torchvision")])
    needed = [Requirement(line) for line in metadata.requires("torchvision") or ()]
    return judge_torchvision(versions, next(each for each in needed if each.name == "torch"), problem)


def judge_torchvision(versions: Mapping[str, str], torch: Requirement, problem: str | None) -> Verdict:
    """torch: the requirement of this torchvision; problem: why its compiled operations do not work, or None."""
    pair = f"{versions.get('torchvision')} and torch {versions.get('torch')}"
    fix = "pip install --force-reinstall torch torchvision (together, so that pip picks a pair)"
    if problem:
        return error(f"{pair} do not work together: {problem}", fix)
    if not _satisfied(torch, versions):
        return error(f"{pair} do not match: this torchvision is built for torch {_range(torch)}", fix)
    return ok(f"{pair} match: compiled operations work")


def ffcv() -> Verdict:
    from acdc_cli.data.image_loaders import FFCV_HINT

    problem = None
    try:
        # loads the compiled kernels, with OpenCV and libturbojpeg
        import acdc_cli.data.ffcv  # noqa: F401
    except (ImportError, OSError) as cause:
        problem = str(cause)
    needed = required("ffcv")
    return judge_ffcv(_installed(needed), needed, problem, FFCV_HINT)


def judge_ffcv(installed: Mapping[str, str], needed: Sequence[Requirement], problem: str | None, hint: str) -> Verdict:
    """problem: why its kernels cannot be loaded, or None."""
    instead = "data.loader `auto` uses torchvision, which is slower on photographs"
    if "ffcv" not in installed:
        return warning(f"not installed: {instead}", hint)
    if problem:
        return warning(f"{installed['ffcv']} cannot be used ({problem}): {instead}", hint)
    unfit = [f"{each.name}{each.specifier}" for each in needed if not _satisfied(each, installed)]
    if unfit:
        result = f"{installed['ffcv']} loads, but acdc is made for {', '.join(unfit)}"
        return warning(result, "pip install " + " ".join(f"'{name}'" for name in unfit))
    return ok(f"{installed['ffcv']}, its kernels load: data.loader `auto` uses it for .beton files")


def processes() -> Verdict:
    """The back ends for training with several processes."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        return judge_processes(False, False, torch.cuda.device_count())
    return judge_processes(distributed.is_gloo_available(), distributed.is_nccl_available(), torch.cuda.device_count())


def judge_processes(gloo: bool, nccl: bool, devices: int) -> Verdict:
    fix = "pip install --force-reinstall torch torchvision (the builds for Linux have both)"
    if not gloo:
        return warning("torch has no gloo: training is limited to one process", fix)
    if devices > 1 and not nccl:
        return warning(f"torch has no NCCL: the {devices} GPUs cannot train together", fix)
    return ok("several processes can train together: gloo" + (" on CPUs, NCCL on GPUs" if nccl else " on CPUs"))


def wandb() -> Verdict:
    try:
        from acdc_cli.runs.tracker import wandb_mode

        return judge_wandb(mode := wandb_mode("auto"), os.environ.get("WANDB_MODE") == mode)
    except ImportError as cause:
        return warning(f"W&B cannot be imported ({cause}): runs write metrics.jsonl only", "pip install wandb")


def judge_wandb(mode: Literal["online", "offline", "disabled"], asked: bool) -> Verdict:
    """asked: whether WANDB_MODE sets the mode."""
    if asked:
        return ok(f"{mode}, as set by WANDB_MODE")
    if mode == "online":
        return ok("logged in: runs are mirrored online")
    return warning(
        "not logged in: runs are logged offline, for a later `wandb sync`", "wandb login; or WANDB_MODE=disabled"
    )


def _installed(needed: Sequence[Requirement]) -> dict[str, str]:
    versions = {}
    for each in needed:
        try:
            versions[each.name] = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _satisfied(each: Requirement, installed: Mapping[str, str]) -> bool:
    return each.name in installed and each.specifier.contains(installed[each.name], prereleases=True)


def _range(each: Requirement) -> str:
    return str(each.specifier) or "any"
