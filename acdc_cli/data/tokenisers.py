"""How a text is cut into tokens: at white space, as WikiText is, or by a learnt byte-pair encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from acdc_cli.errors import DataError

Lines = Iterable[str]
"""The lines of a text, each with its line break."""
END, UNKNOWN = "<eos>", "<unk>"
_CHUNK = 10_000
"""Lines that are encoded at a time."""


class Tokeniser(Protocol):
    """A vocabulary and how a text becomes numbers of its entries."""

    @property
    def names(self) -> tuple[str, ...]:
        """The text that each token stands for; its length is the number of characters."""

    def encode(self, lines: Lines) -> Iterator[NDArray[np.int64]]:
        """The tokens of a text, part by part. Raises DataError for a token that the vocabulary lacks."""

    def as_dict(self) -> dict[str, Any]:
        """What `tokeniser_of` makes an equal tokeniser of."""


@dataclass(frozen=True)
class Words:
    """Words between white space, the most frequent first, and <eos> for the end of a line."""

    words: Sequence[str]

    @classmethod
    def learnt(cls, lines: Lines, at_least: int = 1) -> Words:
        """at_least: how often a word must occur; rarer ones become <unk>. Ties are in alphabetical order."""
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line.split())
            counts[END] += 1
        kept = {word: count for word, count in counts.items() if count >= at_least or word == END}
        if len(kept) < len(counts):
            rare = counts.total() - sum(kept.values())
            kept[UNKNOWN] = kept.get(UNKNOWN, 0) + rare
        return cls(sorted(kept, key=lambda word: (-kept[word], word)))

    @property
    def names(self) -> tuple[str, ...]:
        # with the white space that follows a word
        return tuple("\n" if word == END else f"{word} " for word in self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, lines: Lines) -> Iterator[NDArray[np.int64]]:
        numbers, unknown = self._numbers, self._numbers.get(UNKNOWN)
        for at, line in enumerate(lines, 1):
            tokens = [numbers.get(word, unknown) for word in line.split()]
            if None in tokens:
                word = line.split()[tokens.index(None)]
                raise DataError(
                    f"line {at}: the vocabulary lacks {word!r} and has no {UNKNOWN}; make a vocabulary with "
                    "--at-least 2, which gives rare words that token"
                )
            yield np.array([*tokens, numbers[END]], np.int64)

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "words", "words": list(self.words)}


class BytePairs:
    """A byte-level byte-pair encoding of the library tokenizers: every text has tokens, white space included."""

    def __init__(self, model: str) -> None:
        """model: the library's own JSON. Raises DataError if it is none."""
        tokenizers = library()
        self._model = model
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model)
        # the library raises a bare Exception for whatever it cannot read
        except Exception as error:
            raise DataError(f"the vocabulary is damaged ({error}); write the text again") from error

    @classmethod
    def learnt(cls, lines: Lines, size: int) -> BytePairs:
        """size: entries of the vocabulary, the 256 bytes included."""
        tokenizers = library()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer.to_str())

    @property
    def names(self) -> tuple[str, ...]:
        entries = sorted(self._tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return tuple(_text(bytes(_BYTE_OF[character] for character in entry)) for entry, _ in entries)

    def encode(self, lines: Lines) -> Iterator[NDArray[np.int64]]:
        for chunk in _chunks(lines):
            encoded = self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
            yield np.concatenate([np.array(each.ids, np.int64) for each in encoded])

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "byte pairs", "model": self._model}


def tokeniser_of(values: dict[str, Any]) -> Tokeniser:
    return BytePairs(values["model"]) if values["kind"] == "byte pairs" else Words(values["words"])


def learnt(spec: str, lines: Lines, at_least: int) -> Tokeniser:
    """spec: `words`, or `bpe:SIZE`. Raises DataError for another."""
    kind, _, size = spec.partition(":")
    if spec == "words":
        return Words.learnt(lines, at_least)
    if kind != "bpe" or not size.isdecimal() or int(size) < _BYTES:
        raise DataError(f"--tokenizer: {spec!r} is none; use words, bpe:SIZE with SIZE from {_BYTES}, or a written set")
    return BytePairs.learnt(lines, int(size))


def library() -> Any:
    try:
        # here because it is an extra
        import tokenizers
    except ImportError as error:
        raise DataError("this tokenizer needs the library tokenizers: pip install 'acdc-cli[language]'") from error
    return tokenizers


def _chunks(lines: Lines) -> Iterator[list[str]]:
    chunk: list[str] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


_BYTES = 256


def _byte_of() -> dict[str, int]:
    """The byte of each character of the byte-level alphabet: visible Latin-1 stands for itself, the other bytes for the
    characters from 256 on, in their order (GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(_BYTES) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(_BYTES + at): byte for at, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()


def _text(content: bytes) -> str:
    """The text of these bytes, a character for each byte that begins one: a token may hold part of a character."""
    begun = sum(byte & 0xC0 != 0x80 for byte in content)
    whole = content.decode("utf-8", "ignore")
    return whole + "\ufffd" * (begun - len(whole))
