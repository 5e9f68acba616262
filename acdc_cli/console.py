"""The only writer to the terminal: data on stdout, commentary on stderr."""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from acdc_cli.reading import plain
from acdc_cli.streams import Stream

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor or change the order of text, and bytes of file names that are no UTF-8."""


def inert(text: str) -> str:
    """The text with escapes in place of characters that a terminal would obey or cannot show."""
    return _UNSAFE.sub(_escaped, text) if _UNSAFE.search(text) else text


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python decodes a byte that is no UTF-8 as U+DC00 and the byte
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class _Terminal(Console):
    """Writes nothing that a name in a file may have smuggled in: only rich's own styles and movements."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(inert(segment.text), segment.style)


_SECONDS_BETWEEN_LINES = 30.0

_stdout = cast(IO[str], Stream("stdout"))
_out = _Terminal(file=_stdout, soft_wrap=True, highlight=False, emoji=False)
_err = _Terminal(file=cast(IO[str], Stream("stderr")), highlight=False, emoji=False)


def out(text: str) -> None:
    """A line of data on stdout."""
    _out.print(text, markup=False)


def out_json(value: Any) -> None:
    """One JSON document on stdout, never coloured or wrapped."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    _stdout.write(_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")
    _stdout.flush()


def say(text: str) -> None:
    """A line of commentary on stderr."""
    _comment(escape(text))


def warn(text: str) -> None:
    _comment(f"[yellow]warning:[/yellow] {escape(text)}")


def mute(muted: bool) -> None:
    """Only one of several processes of a run writes. `out_json` is never muted, because a program reads it."""
    _out.quiet = _err.quiet = muted


def muted() -> bool:
    return _err.quiet


def error(text: str) -> None:
    _comment(f"[bold red]error:[/bold red] {escape(text)}")


def _comment(text: str) -> None:
    # wrapped between words for a person, one line for a file
    _err.print(text, soft_wrap=not _err.is_terminal)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, whole: int = 0) -> None:
    """A table on stdout; a column whose cells are all numbers is right-aligned.

    whole: number of columns, the first ones, whose cells are never broken into lines.
    """
    rows = [list(row) for row in rows]
    heading = None if title is None else escape(inert(title))
    grid = Table(title=heading, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, name in enumerate(columns):
        numeric = all(_is_number(row[position]) for row in rows)
        grid.add_column(
            escape(inert(name)), justify="right" if numeric else "left", overflow="fold", no_wrap=position < whole
        )
    for row in rows:
        grid.add_row(*(escape(inert(cell)) for cell in row))
    _out.print(grid)


def with_prefix(value: float, digits: int = 3) -> str:
    """The start of a number with its unit: `4.71 M` for 4,706,064."""
    power = min(max(int(math.log10(value)) // 3, 0), 6) if value > 0 else 0
    return f"{value / 1000**power:.{digits}g} {' kMGTPE'[power]}".rstrip()


def progress(description: str, fields: str = "", remaining: bool = True) -> Progress:
    """A progress bar on stderr; off a terminal, a line twice a minute.

    fields: further text in rich's format, filled by `update(task, name=value)`.
    remaining: append the bar's own estimate of the remaining time.
    """
    return _Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn(fields),
        *([TimeRemainingColumn(compact=True)] if remaining else []),
        console=_err,
        transient=True,
        # the thread that draws takes time from the thread that trains
        refresh_per_second=4,
        disable=not _err.is_terminal,
    )


class _Bar(Progress):
    """Off a terminal, says in a line now and then how far it is, so that a log shows a long epoch to be alive."""

    _said = float("-inf")

    def start(self) -> None:
        self._said = time.monotonic()
        super().start()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        task, now = self._tasks[task_id], time.monotonic()
        if self.disable and not task.finished and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            title, fields = (each.text_format.format(task=task) for each in self.columns if type(each) is TextColumn)
            total = "" if task.total is None else f" of {task.total:,.0f}"
            say(f"{title} {task.completed:,.0f}{total} {fields}".rstrip())


@contextmanager
def unprinted() -> Iterator[None]:
    """Discards what a library writes to stdout, even from C: stdout is for data."""
    _stdout.flush()
    stdout = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            # the C library's own buffer
            ctypes.CDLL(None).fflush(None)
            os.dup2(stdout, 1)
            os.close(stdout)


def screen() -> Live | None:
    """A part of stderr for `update(…, refresh=True)` to draw on, below the printed lines; None if stderr is no
    terminal."""
    return Live(console=_err, auto_refresh=False, transient=True) if _err.is_terminal else None


def is_terminal() -> bool:
    """Whether a person reads both streams."""
    return _out.is_terminal and _err.is_terminal


def width() -> int:
    """Columns of the terminal, or 80."""
    return _out.width


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).rstrip(" %").isdigit() or cell in ("", "-")
