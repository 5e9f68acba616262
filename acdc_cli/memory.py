"""What a model remembers from one batch to the next: the hidden states of the preceding tokens of each text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Past:
    """What one part of a batch remembers."""

    states: Tensor
    """(layers, remembered, rows, width), without gradient."""
    known: Tensor
    """(rows,): how many of the last remembered states are of the row's own text."""

    @property
    def unknown(self) -> Tensor:
        """(rows, remembered): the states that a row must not look at."""
        remembered = self.states.size(1)
        return torch.arange(remembered, device=self.known.device) < remembered - self.known[:, None]


class Memory:
    """A `Past` for each part: what one forward pass sees of a batch whose rows are split for gradient accumulation.

    A module holds its memory as a plain attribute: a buffer would be saved with the weights, averaged with them and
    sent to other ranks, each of which reads other texts.
    """

    def __init__(self) -> None:
        self.parts: dict[int, Past] = {}
        self.part = 0
        """The part whose rows pass through the model now."""
        self.is_used = True
        """Otherwise every batch begins its texts."""

    def recall(self, begins: Tensor, limit: int) -> Past | None:
        """At most the last `limit` tokens that the current part remembers; None if there are none.

        begins: (rows,), whether each row begins a text. Another number of rows than before begins new texts.
        """
        past = self.parts.get(self.part)
        if limit == 0 or not self.is_used or past is None or past.states.size(2) != len(begins):
            return None
        states = past.states[:, -limit:]
        return Past(states, torch.where(begins, 0, past.known).clamp(max=states.size(1)))

    def store(self, hidden: Sequence[Tensor], past: Past | None, limit: int) -> None:
        """Append the hidden states (rows, length, width) that enter each layer to the `past` that was recalled; only
        the last `limit` tokens stay."""
        if limit == 0 or not self.is_used:
            return
        rows, length, _ = hidden[0].shape
        recent = torch.stack([each.detach()[:, -limit:].transpose(0, 1) for each in hidden])
        older, known = limit - recent.size(1), torch.zeros(rows, dtype=torch.int64, device=recent.device)
        if past is not None:
            known = past.known
            recent = torch.cat([past.states[:, -older:], recent], dim=1) if older > 0 else recent
        self.parts[self.part] = Past(recent, (known + length).clamp(max=recent.size(1)))


def set_aside(model: nn.Module) -> AbstractContextManager[None]:
    """Within it the memory begins empty; afterwards it is what it was before: for validation and other probes."""
    return _with_attributes(model, lambda: {"parts": {}, "part": 0})


def disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Within it every batch begins its texts, and the memory stays as it is."""
    return _with_attributes(model, lambda: {"is_used": False})


def part(model: nn.Module, number: int) -> AbstractContextManager[None]:
    """Within it the model reads and replaces the memory of this part of a batch, counted from 0."""
    return _with_attributes(model, lambda: {"part": number})


@contextmanager
def _with_attributes(model: nn.Module, values: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Within it each memory of the model has these values of its attributes; afterwards its own."""
    former = [(memory, {key: getattr(memory, key) for key in values()}) for memory in _memories(model)]
    try:
        for memory, _ in former:
            vars(memory).update(values())
        yield
    finally:
        for memory, before in former:
            vars(memory).update(before)


def remembered(model: nn.Module) -> dict[str, Tensor]:
    """The `Past` of all parts, rows in the order of the batch, on the CPU; empty if there is none."""
    parts = [past for memory in _memories(model) for _, past in sorted(memory.parts.items())]
    if not parts:
        return {}
    return {
        "states": torch.cat([past.states for past in parts], dim=2).cpu(),
        "known": torch.cat([past.known for past in parts]).cpu(),
    }


def length(model: nn.Module) -> int:
    """Tokens that the current part remembers."""
    return max((past.states.size(1) for memory in _memories(model) for past in memory.parts.values()), default=0)


def restore(model: nn.Module, saved: Sequence[Mapping[str, Tensor]], rank: int, ranks: int, parts: int) -> None:
    """Remember what `remembered` gave on each rank, in their order; this may be one of another number of ranks.

    parts: into which this rank's rows are cut, as `torch.chunk` cuts them.
    """
    for memory in _memories(model):
        memory.parts = {}
        if not saved or not all(saved):
            continue
        states, known = torch.cat([each["states"] for each in saved], 2), torch.cat([each["known"] for each in saved])
        own = slice(*(len(known) * each // ranks for each in (rank, rank + 1)))
        device = next(model.parameters()).device
        # copies, because chunks share their storage
        chunks = zip(states[:, :, own].chunk(parts, dim=2), known[own].chunk(parts), strict=True)
        memory.parts = {at: Past(*(each.clone().to(device) for each in chunk)) for at, chunk in enumerate(chunks)}


def _memories(model: nn.Module) -> list[Memory]:
    held = (getattr(module, "memory", None) for module in model.modules())
    return [memory for memory in held if isinstance(memory, Memory)]
