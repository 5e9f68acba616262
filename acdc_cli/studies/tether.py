"""Runs a command that is asked to end when the process which started it does, however that comes: by SIGTERM.

    python tether.py PARENT CORES COMMAND…      CORES: 0,1,2

A file of its own, started by its path: what Python would do between fork and exec may block where there are threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, cores: set[int], command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        # it has ended before it could be heard of
        sys.exit(128 + signal.SIGTERM)
    os.sched_setaffinity(0, cores)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), {int(core) for core in sys.argv[2].split(",")}, sys.argv[3:])
