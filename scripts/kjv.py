"""The King James Bible of Debian's package bible-kjv (public domain): a running text, and verses to be classified.

    apt-get install bible-kjv
    python scripts/kjv.py FOLDER

FOLDER/train.txt, valid.txt and test.txt: a verse is a line, and a chapter is followed by an empty line. Words and
punctuation are set apart, as in WikiText. FOLDER/train.tsv, dev.tsv and test.tsv: a verse as it is, and the group of
books that it is from. Of every twenty chapters the tenth is for validation and the twentieth for the test.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)")
GROUPS = {"Law": 5, "History": 12, "Wisdom": 5, "Prophets": 17, "Gospels and Acts": 5, "Letters and Revelation": 22}
"""Groups of books, and how many books each has, in the Bible's order."""


def verses() -> list[tuple[str, int, str]]:
    """Book, chapter and text of each verse, in the Bible's order."""
    printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    matches = [_VERSE.fullmatch(line) for line in printed.splitlines()]
    return [(match[1], int(match[2]), match[4]) for match in matches if match]


def split_of(chapter: int) -> str:
    """chapter: its number in the whole Bible, from 1."""
    return {0: "test", 10: "valid"}.get(chapter % 20, "train")


def words(text: str) -> str:
    return " ".join(re.findall(r"[A-Za-z]+|[^\sA-Za-z]", text))


def group_of(books: Iterable[str]) -> dict[str, str]:
    """The group of each book.  books: in the Bible's order."""
    names = [name for name, count in GROUPS.items() for _ in range(count)]
    return dict(zip(dict.fromkeys(books), names, strict=True))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    rows: dict[str, list[str]] = {split: ["sentence\tlabel"] for split in texts}
    bible = verses()
    groups = group_of(book for book, _, _ in bible)
    for number, ((book, _), chapter) in enumerate(groupby(bible, key=lambda verse: verse[:2]), 1):
        split, lines = split_of(number), [text for _, _, text in chapter]
        texts[split] += [*map(words, lines), ""]
        rows[split] += [f"{line}\t{groups[book]}" for line in lines]
    for split, table in (("train", "train"), ("valid", "dev"), ("test", "test")):
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in texts[split]))
        (folder / f"{table}.tsv").write_text("".join(f"{row}\n" for row in rows[split]))


if __name__ == "__main__":
    main()
