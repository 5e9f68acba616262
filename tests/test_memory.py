"""What a process does with the memory of tensors that are gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import numpy as np
from acdc_cli.cli.app import _keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
_keep_freed_memory()
# the first time it grows the heap
faults()
print(before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_large_block_that_is_freed_is_not_fetched_from_the_kernel_again() -> None:
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    by_default, kept = map(int, ran.stdout.split())
    # twenty times from the kernel by default, and not again once the heap has grown
    assert kept < by_default / 10
