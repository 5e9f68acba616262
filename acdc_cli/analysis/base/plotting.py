"""The style of figures: readable in grey and for colour-blind readers, and byte-identical each time."""

from __future__ import annotations

import re
from io import BytesIO, StringIO
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers, dark colours first
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "os^Dv<>Pp"
LINES: tuple[Any, ...] = ("-", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_DPI = 150


def new(width: float, height: float) -> Figure:
    """A figure of this size in inches, whose labels never overlap its panels."""
    # imported here because it takes a third of a second
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def styles() -> Iterator[dict[str, Any]]:
    """A new colour, line style and marker each time: keyword arguments of `Axes.plot`."""
    return (
        {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
        for colour, line, marker in zip(cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    )


def log(axes: Axes, which: Literal["x", "y"], shown: Callable[[float], str] = "{:g}".format) -> None:
    """Makes an axis of what has been drawn logarithmic; its ticks are plain numbers, several even within a decade."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(AutoLocator() if high < 10 * low else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: shown(value))
    axis.set_minor_formatter(NullFormatter())


def from_zero(panel: Axes, what: str) -> None:
    """Labels a vertical axis of shares in percent, which begins at 0; a panel that is 0 throughout says so."""
    panel.set(ylabel=what)
    _, top = panel.get_ylim()
    panel.set(ylim=(-0.03 * max(top, 1), max(top, 1)))
    if not panel.dataLim.ymax > 0:
        panel.text(0.5, 0.5, f"no {what.removesuffix(' (%)')}", ha="center", transform=panel.transAxes)
    panel.grid(axis="y", alpha=0.3)


def png(figure: Figure) -> bytes:
    file = BytesIO()
    _literal(figure)
    # leave out matplotlib's version
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _literal(figure: Figure) -> None:
    """Dollar signs in names begin no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text():
            text.set_parse_math(False)


def svg(figure: Figure) -> str:
    """Text stays text, so it can be read aloud, searched and selected."""
    import matplotlib

    file = StringIO()
    fonts = {"font.sans-serif": ["DejaVu Sans", "Verdana"]}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "acdc", **fonts}):
        _literal(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # strip matplotlib's trailing blanks, and digits below a millionth of a point
    tidy = re.sub(r" *\n *", "\n", file.getvalue())
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), tidy)
