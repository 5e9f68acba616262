"""Texts become tokens and back; what is damaged or does not fit is refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.data.data_set import expected_set, kind_of, open_set
from acdc_cli.data.image_set import images_of
from acdc_cli.data.inventory import WriteOptions, check, list_sets, write_set
from acdc_cli.data.token_files import read_facts
from acdc_cli.data.tokenisers import BytePairs, Words, tokeniser_of
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.text import TextBlock

TRAIN = "the cat saw the dog\n\nthe dog ran\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "train.txt").write_text(TRAIN)
    (folder / "valid.txt").write_text("the cat ran\n")
    return folder


def written(source: Path, name: str = "text", **options: object) -> Path:
    out = source.parent / "set"
    write_set(name, WriteOptions(source=source, out=out, **options))  # type: ignore[arg-type]
    return out


def test_words_are_numbered_by_falling_frequency_and_lines_end(source: Path) -> None:
    out = written(source)
    facts = read_facts(out)
    # <eos> and "the" occur three times, "dog" twice
    assert facts.tokeniser["words"] == ["<eos>", "the", "dog", "cat", "ran", "saw"]
    assert np.fromfile(out / "train.tokens", "<u2").tolist() == [1, 3, 5, 1, 2, 0, 0, 1, 2, 4, 0]
    # each word with the white space behind it, each line with its break
    assert facts.splits["train"].characters == 4 + 4 + 4 + 4 + 4 + 1 + 1 + 4 + 4 + 4 + 1
    assert list(facts.splits) == ["train", "val"]


def test_rare_words_become_unknown(source: Path) -> None:
    facts = read_facts(written(source, at_least=2))
    # cat, saw and ran occur once each
    assert facts.tokeniser["words"] == ["<eos>", "<unk>", "the", "dog"]


def test_a_word_that_the_vocabulary_lacks_is_named_with_its_line(source: Path) -> None:
    (source / "valid.txt").write_text("the cat\nthe bird\n")
    with pytest.raises(
        DataError, match=r"valid.txt, line 2: the vocabulary lacks 'bird' and has no <unk>; .*--at-least 2"
    ):
        written(source)
    assert not (source.parent / "set" / "text.json").exists()


def test_another_text_takes_the_vocabulary_of_a_written_one(source: Path, tmp_path: Path) -> None:
    first = written(source)
    (source / "train.txt").write_text("dog dog the cat\n")
    out = tmp_path / "other"
    write_set("text", WriteOptions(source=source, out=out, tokenizer=str(first)))
    assert np.fromfile(out / "train.tokens", "<u2").tolist() == [2, 2, 1, 3, 0]


LEARNT = BytePairs.learnt(["the cat sat on the mat, äöü 猫\n"], 280)


@given(st.text(max_size=60))
def test_byte_pairs_lose_nothing_and_count_characters(text: str) -> None:
    lines = text.splitlines(keepends=True)
    tokens = [token for part in LEARNT.encode(lines) for token in part.tolist()] if lines else []
    assert sum(len(LEARNT.names[token]) for token in tokens) == len("".join(lines))
    again = tokeniser_of(LEARNT.as_dict())
    assert again.names == LEARNT.names
    assert LEARNT._tokenizer.decode(tokens, skip_special_tokens=False) == "".join(lines)


def test_words_are_read_back_as_they_were() -> None:
    words = Words.learnt(["b a a\n"])
    assert words.words == ["a", "<eos>", "b"]
    assert tokeniser_of(words.as_dict()).names == ("a ", "\n", "b ")


@pytest.mark.parametrize(("tokenizer", "size"), [("words", 6), ("bpe:300", 300)])
def test_a_written_text_is_whole_and_opens(source: Path, tokenizer: str, size: int) -> None:
    (source / "train.txt").write_text(40 * TRAIN + "".join(f"{n} dog\n" for n in range(200)) * (size == 300))
    out = written(source, tokenizer=tokenizer)
    check(str(out))
    block = TextBlock(name="text", path=str(out), batch_size=2, length=3)
    data = open_set(block)
    assert data.classes == size
    assert "class_names" not in data.facts()
    loader = data.train_loader(0, [8], torch.device("cpu"))
    assert loader.samples == expected_set(block)[1] == 2 * loader.steps > 0


def test_damage_is_found_at_once_or_by_check(source: Path) -> None:
    out = written(source)
    content = bytearray((out / "train.tokens").read_bytes())
    content[0] ^= 1
    (out / "train.tokens").write_bytes(content)
    read_facts(out)
    with pytest.raises(DataError, match=r"train\.tokens has changed since it was written"):
        check(str(out))
    (out / "train.tokens").write_bytes(content[:-2])
    block = TextBlock(name="text", path=str(out), batch_size=1, length=1)
    with pytest.raises(DataError, match=r"train.tokens has 20 bytes, and text.json says 22; write the text again"):
        open_set(block)
    (out / "train.tokens").unlink()
    with pytest.raises(DataError, match=r"train.tokens cannot be read: No such file.*; write the text again"):
        open_set(block)


def test_a_token_that_the_vocabulary_lacks_is_found_by_check(source: Path) -> None:
    out = written(source)
    facts = json.loads((out / "text.json").read_text())
    del facts["tokeniser"]["words"][-1]
    (out / "text.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"train\.tokens has token 5, and the vocabulary 5; write the text again"):
        check(str(out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "text.json is damaged"),
        ({"splits": 3}, "text.json is damaged"),
        ({"splits": {"train": {"tokens": -1}}}, "text.json is damaged"),
        ({"tokeniser": {}}, r"text.json is damaged \(tokeniser: .*no vocabulary"),
        ({"tokeniser": {"kind": "words", "words": "the"}}, "tokeniser: .*no vocabulary"),
        ({"tokeniser": {"kind": "byte pairs"}}, "tokeniser: .*no vocabulary"),
    ],
)
def test_facts_of_another_form_are_refused(source: Path, change: dict[str, object], message: str) -> None:
    out = written(source)
    facts = json.loads((out / "text.json").read_text()) | change
    (out / "text.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=message):
        read_facts(out)


def unreadable(folder: Path) -> None:
    (folder / "train.txt").unlink()
    # nothing lies at address 0
    (folder / "train.txt").symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "train.txt").write_text(""), "train.txt is empty"),
        (lambda folder: (folder / "train.txt").write_bytes(b"fine\n\xff\n"), "train.txt, line 2: not UTF-8"),
        (unreadable, "train.txt cannot be read: Input/output error"),
        (lambda folder: (folder / "valid.txt").unlink(), "has no valid.txt or val.txt or validation.txt"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(source: Path, make: object, message: str) -> None:
    make(source)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        written(source)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text", {"quality": 90}, "--quality: not an option of text, which is a set of text"),
        ("demo", {"tokenizer": "words"}, "--tokenizer: not an option of demo, which is a set of images"),
        ("text", {"tokenizer": "bpe:12"}, "--tokenizer: 'bpe:12' is none; use words, bpe:SIZE with SIZE from 256"),
    ],
)
def test_options_of_other_kinds_of_sets_are_refused(
    source: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        written(source, name, **options)


def test_a_text_needs_the_folder_that_it_is_made_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text: name the folder of its text with --source"):
        write_set("text", WriteOptions(out=tmp_path))


def test_a_written_text_is_replaced_only_by_force(source: Path) -> None:
    before = read_facts(written(source))
    (source / "train.txt").write_text("dog dog the cat saw ran\n")
    with pytest.raises(DataError, match=r"set holds a text already; --force replaces it"):
        written(source)
    assert read_facts(source.parent / "set") == before
    assert read_facts(written(source, force=True)).splits["train"].tokens == 7


def test_a_written_text_is_listed_with_its_tokens(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    write_set("text", WriteOptions(source=source))
    assert {each["name"]: each["written"] for each in list_sets()}["text"] == {"train": 11, "val": 4}


def test_fingerprints_of_a_place_are_those_of_its_open_set_or_empty(source: Path) -> None:
    block = TextBlock(name="text", path=str(written(source)), batch_size=1, length=1)
    fingerprints, place = kind_of(block).fingerprints, source.parent / "set"
    assert fingerprints(place, thorough=False) == open_set(block).fingerprint
    (place / "val.tokens").unlink()
    assert fingerprints(place, thorough=False) == {"train": ""}
    assert fingerprints(source, thorough=False) == {}


def test_a_text_that_is_not_written_says_how(source: Path) -> None:
    with pytest.raises(DataError, match=r"holds a text that is not written yet.*`acdc data write text --source"):
        open_set(TextBlock(name="text", path=str(source), batch_size=1, length=1))


def test_rows_shorter_than_a_segment_are_refused(source: Path) -> None:
    data = open_set(TextBlock(name="text", path=str(written(source)), batch_size=4, length=2))
    with pytest.raises(DataError, match=r"cuts the 11 training tokens of text into rows shorter than data.length 2"):
        data.train_loader(0, [8], torch.device("cpu"))


def test_splits_that_are_missing_or_too_short_are_refused(source: Path) -> None:
    data = open_set(TextBlock(name="text", path=str(written(source)), batch_size=1, length=1, val_rows=4))
    with pytest.raises(DataError, match=r"set has no test, only train, val; write the set again"):
        data.val_loader(torch.device("cpu"), "test")
    with pytest.raises(DataError, match=r"val has 4 tokens; lower data.val_rows, or raise val_tokens"):
        data.val_loader(torch.device("cpu"))


def test_calibration_sees_the_training_rows_as_they_are(source: Path) -> None:
    block = TextBlock(name="text", path=str(written(source)), batch_size=2, length=2, roll=True)
    data, cpu = open_set(block), torch.device("cpu")
    plain = open_set(block.model_copy(update={"roll": False}))
    with data.calibration_loader(3, cpu).epoch(5) as seen, plain.train_loader(0, [8], cpu).epoch(5) as expected:
        for batch, other in zip(seen, expected, strict=True):
            assert torch.equal(batch.inputs, other.inputs)
            assert torch.equal(batch.targets, other.targets)


def test_what_works_on_images_refuses_a_text(source: Path) -> None:
    data = open_set(TextBlock(name="text", path=str(written(source)), batch_size=1, length=1))
    with pytest.raises(DataError, match="this works on images only, and text is a set of text"):
        images_of(data)


@pytest.mark.parametrize("lines", [3, 4, 7])
def test_tokens_do_not_depend_on_how_many_lines_are_encoded_at_a_time(
    monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    text = [f"the cat {number}\n" for number in range(lines)]
    whole = np.concatenate([*LEARNT.encode(text)])
    monkeypatch.setattr("acdc_cli.data.tokenisers._CHUNK", 2)
    parts = [*LEARNT.encode(text)]
    assert len(parts) == -(-lines // 2)
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_damaged_model_of_byte_pairs_is_refused() -> None:
    with pytest.raises(DataError, match=r"the vocabulary is damaged \(.*\); write the text again"):
        tokeniser_of({"kind": "byte pairs", "model": "{"})


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"needs the library tokenizers: pip install 'acdc-cli\[language\]'"):
        BytePairs.learnt(["the cat\n"], 280)
