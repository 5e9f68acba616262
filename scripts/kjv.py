"""The King James Bible of Debian's package bible-kjv (public domain) as a text: train.txt, valid.txt and test.txt.

    apt-get install bible-kjv
    python scripts/kjv.py FOLDER

A verse is a line, and a chapter is followed by an empty line. Of every twenty chapters the tenth is for validation and
the twentieth for the test. Words and punctuation are set apart, as in WikiText.
"""

import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)")


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


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, (_, chapter) in enumerate(groupby(verses(), key=lambda verse: verse[:2]), 1):
        texts[split_of(number)] += [*(words(text) for _, _, text in chapter), ""]
    for split, lines in texts.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
