"""The part of a split that one of several processes draws."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The part that a rank draws: in training an equal part of every batch, else every `size`-th batch."""

    rank: int = 0
    size: int = 1
    """Ranks that share the split."""
    local_size: int = 1
    """Ranks that share this machine's cores."""


UNDIVIDED = Shard()
