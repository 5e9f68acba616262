"""Commands that a part starts, and that end before the part must."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_PERIOD = 0.1


def python(
    words: Sequence[str],
    seconds: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> int | None:
    """The exit code of `python WORDS…`; None where it was interrupted after `seconds`, as Ctrl-C would.

    watch: called ten times a second while it runs. The output goes to the file `log`.
    """
    end = time.monotonic() + seconds
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, env=environment)
    while process.poll() is None and time.monotonic() < end:
        time.sleep(_PERIOD)
        watch()
    if process.poll() is not None:
        watch()
        return process.returncode
    process.send_signal(signal.SIGINT)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


@contextmanager
def on_stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C call `stop` and do not end this process."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:400] if lines else "it said nothing"
