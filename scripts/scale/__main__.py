"""`python -m scripts.scale [TABLE …] [--set KEY=VALUE …] [--write]`: print tables of docs/scale.md, or renew all."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

from scripts.scale.figure import draw
from scripts.scale.parts import Assumed
from scripts.scale.tables import TABLES

DOCUMENT = Path(__file__).parents[2] / "docs" / "scale.md"
_TABLE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.scale", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an assumed part, in SI units")
    parser.add_argument("--write", action="store_true", help="renew the tables of docs/scale.md and its figure")
    asked = parser.parse_args()
    if unknown := [name for name in asked.tables if name not in TABLES]:
        parser.error(f"there is no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    try:
        assumed = assume(asked.set)
    except ValueError as error:
        parser.error(str(error))
    if asked.write:
        DOCUMENT.write_text(renewed(DOCUMENT.read_text(), assumed))
        draw(DOCUMENT.with_suffix(".svg"), assumed)
        return 0
    for name in asked.tables or TABLES:
        print(f"{name}\n\n{TABLES[name](assumed)}\n")
    return 0


def assume(changes: list[str]) -> Assumed:
    """The assumed parts with `key=value` in place of some.

    Raises ValueError for an unknown key or a value that is not a number.
    """
    known = {field.name: type(field.default) for field in fields(Assumed)}
    chosen = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in known:
            raise ValueError(f"--set {change}: there is no part {key}; there are {', '.join(known)}")
        chosen[key] = known[key](value)
    return replace(Assumed(), **chosen)


def renewed(text: str, assumed: Assumed) -> str:
    """The document with the content of every `<!-- table: NAME -->` printed anew."""
    return _TABLE.sub(lambda match: f"{match[1]}{TABLES[match[2]](assumed)}\n{match[3]}", text)


if __name__ == "__main__":
    sys.exit(main())
