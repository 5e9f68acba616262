"""`acdc watch`: draws runs again and again, in the terminal and as a page, until none of them is training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.text import Text

from acdc_cli import console, files
from acdc_cli.studies.watch.live_lines import lines
from acdc_cli.studies.watch.live_page import page
from acdc_cli.studies.watch.state import gpus, watched_runs


def watch(paths: Sequence[Path], html: Path | None = None, every: int = 5, once: bool = False) -> None:
    """html: also write the page there.  every: seconds.  once: draw once, whatever the runs do.

    Without a terminal and without a page it draws once.
    """
    live = console.screen() if console.is_terminal() and not once else None
    once = once or (live is None and html is None)
    with live or nullcontext():
        while True:
            watched, cards, now = watched_runs(paths), gpus(), time.time()
            on = not once and any(each.seen.status == "running" for each in watched)
            if html is not None:
                files.write_text(html, page(watched, cards, every if on else None, now))
            shown = lines(watched, cards, console.width(), now)
            if not on:
                break
            if live:
                live.update(Text("\n".join(shown)), refresh=True)
            time.sleep(every)
    for line in shown:
        console.out(line)
    if html is not None:
        console.say(f"drawn: {html}")
