"""What a check of `acdc doctor` comes to."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "warning", "error"]


class Verdict(NamedTuple):
    status: Status
    found: str
    fix: str
    """Empty where all is well, or where `found` names the way out itself."""


def ok(found: str) -> Verdict:
    return Verdict("ok", found, "")


def warning(found: str, fix: str) -> Verdict:
    """Runs can be made, but more slowly or with less than there could be."""
    return Verdict("warning", found, fix)


def error(found: str, fix: str) -> Verdict:
    """Some run cannot be made."""
    return Verdict("error", found, fix)
