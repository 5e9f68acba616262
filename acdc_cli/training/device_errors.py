"""Device errors, explained with the recipe key that fixes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from acdc_cli.errors import RunError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""Messages of CUDA's allocator, CUDA itself, the CPU's allocator, cuDNN and cuBLAS."""
_NOT_DETERMINISTIC = " does not have a deterministic implementation"


@contextmanager
def mendable(attempt: str, way_out: str) -> Iterator[None]:
    """Raises RunError in place of torch's error if another recipe would help.

    attempt: what needs the memory, such as "a batch of 256 images"; way_out: how to need less.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if isinstance(error, MemoryError) or any(text in said for text in _OUT_OF_MEMORY):
            raise RunError(f"out of memory with {attempt}: {way_out}") from error
        if _NOT_DETERMINISTIC in said:
            operation = said.partition(_NOT_DETERMINISTIC)[0].split()[-1]
            raise RunError(
                f"deterministic: {operation} has no deterministic algorithm on this device; use "
                "--set deterministic=false, or a model without this operation"
            ) from error
        raise


def in_words(inputs: Tensor, parts: int) -> str:
    """inputs: those of a batch, passed through the model in `parts` parts."""
    in_parts = f", in {parts} parts" if parts > 1 else ""
    what = f"images of {inputs.shape[-1]} pixels" if inputs.ndim == 4 else "texts"
    return f"a batch of {inputs.shape[0]} {what}{in_parts}"
