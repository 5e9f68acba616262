"""Out of memory, said in the recipe's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from acdc_cli.errors import RunError

_SAID = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""By CUDA's allocator and CUDA itself, by the CPU's, and by cuDNN and cuBLAS."""


@contextmanager
def out_of_memory(tried: str, way_out: str) -> Iterator[None]:
    """tried: what needed the memory, such as "a batch of 256 images"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _SAID):
            raise
        raise RunError(f"out of memory with {tried}: {way_out}") from error
