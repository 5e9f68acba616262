"""Placeholder until the branch is merged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def part(model: nn.Module, number: int) -> Iterator[None]:
    yield


def forget(model: nn.Module) -> None: ...
def fill(model: nn.Module, run: Callable[[], None]) -> None: ...
def remembered(model: nn.Module) -> Tensor | None:
    return None


def restore(model: nn.Module, memory: Tensor | None, parts: int) -> None: ...
