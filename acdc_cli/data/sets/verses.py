"""Verses of the King James Bible by the group of books that they are from, as `scripts/kjv.py` writes them."""

from __future__ import annotations

from acdc_cli.data.known_sentences import KnownSentences

GROUPS = ("Law", "History", "Wisdom", "Prophets", "Gospels and Acts", "Letters and Revelation")

SENTENCES = {
    "kjv_books": KnownSentences(
        "verses of the King James Bible in six groups of books, written by scripts/kjv.py",
        text=("sentence",),
        label="label",
        classes={name: name for name in GROUPS},
        files={"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"},
        train_examples=28_045,
    )
}
