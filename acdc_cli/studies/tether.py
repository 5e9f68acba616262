"""Runs a command that receives SIGTERM when the process that started it ends for any reason.

    python tether.py PARENT CORES COMMAND…      CORES: 0,1,2

A separate file, started by its path: running Python code between fork and exec may deadlock in a threaded process.
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
        # the parent ended before the signal was set up

        sys.exit(128 + signal.SIGTERM)
    os.sched_setaffinity(0, cores)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), {int(core) for core in sys.argv[2].split(",")}, sys.argv[3:])
