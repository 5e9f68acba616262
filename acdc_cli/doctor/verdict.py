"""The result of one check of `acdc doctor`."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "warning", "error"]


class Verdict(NamedTuple):
    status: Status
    result: str
    fix: str
    """Empty if all is well, or if `result` itself says what to do."""


def ok(result: str) -> Verdict:
    return Verdict("ok", result, "")


def warning(result: str, fix: str) -> Verdict:
    """Runs work, but more slowly or with fewer features."""
    return Verdict("warning", result, fix)


def error(result: str, fix: str) -> Verdict:
    """Some runs cannot work."""
    return Verdict("error", result, fix)
