"""What a device cannot do, said in the recipe's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from acdc_cli.errors import RunError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""As CUDA's allocator and CUDA itself say it, the CPU's allocator, cuDNN and cuBLAS."""
_NOT_DETERMINISTIC = " does not have a deterministic implementation"


@contextmanager
def mendable(tried: str, way_out: str) -> Iterator[None]:
    """Raises RunError in place of torch's error where another recipe would help.

    tried: what takes the memory, such as "a batch of 256 images"; way_out: how to take less.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if isinstance(error, MemoryError) or any(text in said for text in _OUT_OF_MEMORY):
            raise RunError(f"out of memory with {tried}: {way_out}") from error
        if _NOT_DETERMINISTIC in said:
            operation = said.partition(_NOT_DETERMINISTIC)[0].split()[-1]
            raise RunError(
                f"deterministic: {operation} has no deterministic algorithm on this device; use "
                "--set deterministic=false, or a model without it"
            ) from error
        raise
