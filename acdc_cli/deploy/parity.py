"""Whether an exported model gives the logits of the original on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from acdc_cli.deploy.contract import Logits
from acdc_cli.errors import ModelError

TOLERANCE = 1e-3
"""As a share of the largest logit: engines sum in other orders, and MNN approximates exp and erf (1e-4 on a ViT)."""
AGREEMENT = 0.95
"""Required share of equal top classes: an image may lie on the border between two."""
SHRUNK_TOLERANCE = 1e-5
"""As a share of the largest logit, for the same function with other weights in the same engine."""


@dataclass(frozen=True)
class Parity:
    images: int
    batches: tuple[int, ...]
    """Batch sizes of the check."""
    difference: float
    """Largest difference of two logits, as a share of the largest absolute logit."""
    agreement: float
    """Share of the answers (an image's class, or whether it has a label) that are the same."""
    noun: str = "images"

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "noun"}

    def __str__(self) -> str:
        return (
            f"{self.images} validation {self.noun} in batches of {' and '.join(map(str, self.batches))}: logits differ "
            f"by {self.difference:.1e} of the largest, answers agree on {self.agreement:.2%}"
        )


def check(
    original: Logits,
    exported: Logits,
    inputs: Tensor,
    batches: Sequence[int],
    what: str,
    tolerance: float = TOLERANCE,
    answers: Logits = lambda logits: logits.argmax(1),
    noun: str = "images",
) -> Parity:
    """inputs: as many as the largest batch or more; those that fill no batch of a fixed size are left out.
    answers: of the models' task, from their logits.

    Raises ModelError where the two differ, or `exported` cannot be run.
    """
    with torch.inference_mode():
        expected = torch.cat([original(part) for part in torch.split(inputs, 16)]).double()
        shares = [_outputs(exported, inputs, size, what) for size in batches]
    if any(each.shape != expected[: len(each)].shape for each in shares):
        raise ModelError(f"{what} gives {list(shares[0].shape)} logits, not {list(expected.shape)}; nothing is kept")
    differences = [difference(expected, each) for each in shares]
    agreed = [(answers(each) == answers(expected[: len(each)])).double().mean() for each in shares]
    # of several maxima NaN wins only in torch's
    parity = Parity(len(inputs), tuple(batches), float(torch.tensor(differences).max()), float(min(agreed)), noun)
    if not (parity.difference <= tolerance and parity.agreement >= AGREEMENT):
        raise ModelError(f"{what} is not the same model and is not kept: {parity}")
    return parity


def difference(expected: Tensor, given: Tensor) -> float:
    """The largest difference of two logits, as a share of the largest absolute logit; `given` may be fewer images."""
    return float((given.double() - expected[: len(given)].double()).abs().max() / expected.abs().max())


def _outputs(exported: Logits, inputs: Tensor, size: int, what: str) -> Tensor:
    whole = inputs[: len(inputs) // size * size]
    try:
        return torch.cat([exported(part) for part in torch.split(whole, size)]).double()
    # whatever an engine raises over a model that it cannot run
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise ModelError(f"{what} cannot be run in batches of {size}, and is not kept: {cause}") from error
