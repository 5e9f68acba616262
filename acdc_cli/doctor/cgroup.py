"""This process's CPU and memory limits from Linux control groups (cgroups(7))."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_limit(root: Path = Path("/")) -> float | None:
    """CPU limit in cores; None without a limit."""
    limits = []
    for text in _read(root, "cpu", "cpu.max"):
        quota, period = text.split()
        if quota != "max":
            limits.append(int(quota) / int(period))
    periods = _read(root, "cpu", "cpu.cfs_period_us", old=True)
    for quota, period in zip(_read(root, "cpu", "cpu.cfs_quota_us", old=True), periods, strict=True):
        if int(quota) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Memory limit in bytes; None without a limit."""
    limits = [int(text) for text in _read(root, "memory", "memory.max") if text != "max"]
    # version 1 expresses "no limit" by a number that no machine reaches
    old = map(int, _read(root, "memory", "memory.limit_in_bytes", old=True))
    return min([*limits, *(limit for limit in old if limit < 2**60)], default=None)


def _read(root: Path, controller: str, file: str, old: bool = False) -> Iterator[str]:
    """The file's text in this process's group and in every enclosing group; the tightest limit applies."""
    for folder in _groups(root, controller, old):
        try:
            yield (folder / file).read_text().strip()
        except OSError:
            continue


def _groups(root: Path, controller: str, old: bool) -> Iterator[Path]:
    """old: version 1, which has a separate tree for each controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = root / "sys/fs/cgroup" / (controller if old else "")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if (controller in controllers.split(",")) if old else not controllers:
            own = Path(path.lstrip("/"))
            yield from (top / folder for folder in (own, *own.parents))
            # a path outside the container's own view does not exist; the root always does
