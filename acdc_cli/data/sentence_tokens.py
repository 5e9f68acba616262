"""Sentences as numbers of a pretrained model's tokens, by the library tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acdc_cli import hub
from acdc_cli.data.tokenisers import library
from acdc_cli.errors import DataError

_FILE = "tokenizer.json"
_PADDING = ("[PAD]", "<pad>")
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Encoded:
    """Examples one after another."""

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    """0 for tokens of the first sentence, 1 for those of the second, where the tokenizer tells them apart."""
    starts: NDArray[np.int64]
    """(examples + 1,): where each begins, and the end of the last."""
    cut: int
    """Examples that were longer."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


@dataclass(frozen=True)
class SentenceTokens:
    """A tokenizer."""

    content: str
    """Its file."""
    source: str
    """Its name in errors."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def size(self) -> int:
        """One more than the largest number of a token."""
        return 1 + max(map(int, self._tokenizer.get_vocab().values()))

    @property
    def padding(self) -> int:
        """The token that fills examples up."""
        tokenizer = self._tokenizer
        stored = tokenizer.padding
        if stored:
            return int(stored["pad_id"])
        numbers = (tokenizer.token_to_id(token) for token in _PADDING)
        return next((int(number) for number in numbers if number is not None), 0)

    def encode(self, texts: Sequence[tuple[str, ...]], length: int) -> Encoded:
        """length: most tokens of an example; longer ones are cut, the longer sentence first."""
        tokenizer = self._tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=length, strategy="longest_first")
        tokens, types, lengths, cut = [], [], [0], 0
        for start in range(0, len(texts), _AT_ONCE):
            some = [text if len(text) > 1 else text[0] for text in texts[start : start + _AT_ONCE]]
            for each in tokenizer.encode_batch(some):
                tokens.append(np.array(each.ids, np.int32))
                types.append(np.array(each.type_ids, np.int8))
                lengths.append(len(each.ids))
                cut += bool(each.overflowing)
        return Encoded(np.concatenate(tokens), np.concatenate(types), np.cumsum(lengths, dtype=np.int64), cut)

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return library().Tokenizer.from_str(self.content)
        # the library raises a bare Exception for whatever it cannot read
        except Exception as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.source} is no tokenizer ({error}); fetch it again") from error


@cache
def tokens_of(name: str) -> SentenceTokens:
    """name: a folder with a tokenizer, its file, or OWNER/NAME of the hub.

    Raises DataError if there is none, or it cannot be fetched.
    """
    place = Path(name).expanduser()
    file = place / _FILE if place.is_dir() else place
    if not file.is_file():
        if place.is_dir() or name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise DataError(f"data.tokenizer: there is no {file if place.is_dir() else place / _FILE}; name its folder")
        file = hub.file_of(name, _FILE, DataError)
    try:
        return SentenceTokens(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); fetch it again") from error
