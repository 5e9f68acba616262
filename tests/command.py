"""The type of the fixture `acdc`."""

from __future__ import annotations

from collections.abc import Callable

from typer.testing import Result

Acdc = Callable[..., Result]
