"""Sets of sentences: their tables, and batches that follow from (seed, epoch, step), whatever the ranks."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_files import WORDS, write_set, write_tokenizer

from acdc_cli import hub
from acdc_cli.data.batches import Batch, Loader
from acdc_cli.data.data_set import expected_set, open_set
from acdc_cli.data.known_sentences import known_sentences
from acdc_cli.data.sentence_files import read
from acdc_cli.data.sentence_set import SentenceSet
from acdc_cli.data.sentence_tokens import tokens_of
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.sentences import SentencesBlock

CPU = torch.device("cpu")


def block(folder: Path, **keys: object) -> SentencesBlock:
    given = {"name": "sentences", "path": str(folder / "words"), "tokenizer": str(folder / "tokens")}
    return SentencesBlock.model_validate(given | {"batch_size": 8, "length": 16} | keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokens")
    write_set(tmp_path / "words")
    return tmp_path


def opened(folder: Path, **keys: object) -> SentenceSet:
    data = open_set(block(folder, **keys))
    assert isinstance(data, SentenceSet)
    return data


def drawn(loader: Loader, epoch: int = 0, start: int = 0) -> list[Batch]:
    with loader.epoch(epoch, start) as batches:
        return list(batches)


def parts(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.inputs, batch.targets, batch.indices


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(parts(x), parts(y), strict=True))


def numbers(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_an_example_is_its_tokens_where_they_are_and_their_types(folder: Path) -> None:
    (folder / "words/train.tsv").write_text(
        "sentence\tsentence2\tlabel\nthe red is a\ta saw\ttool\nred\tblue\tcolour\n"
    )
    data = opened(folder, batch_size=2)
    (batch,) = drawn(data.val_loader(CPU, "train"))
    assert data.class_names == ("colour", "tool")
    assert batch.targets.tolist() == [1, 0]
    # 9 tokens, padded to a multiple of 8
    long, short = batch.inputs.tolist()
    assert long[0] == numbers("[CLS] the red is a [SEP] a saw [SEP]") + 7 * [0]
    assert long[1] == 9 * [1] + 7 * [0]
    assert long[2] == 6 * [0] + 3 * [1] + 7 * [0]
    assert short[0] == numbers("[CLS] red [SEP] blue [SEP]") + 11 * [0]


def test_longer_examples_are_cut_the_longer_sentence_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "words/train.tsv").write_text("sentence\tsentence2\tlabel\nthe red is a green\tsaw\t0\nred\tsaw\t1\n")
    data = opened(folder, batch_size=2, length=8)
    for _ in range(2):
        (batch,) = drawn(data.val_loader(CPU, "train"))
    assert batch.inputs[0, 0].tolist() == numbers("[CLS] the red is a [SEP] saw [SEP]")
    assert capsys.readouterr().err.count("1 of 2 examples are longer") == 1


def test_batches_are_as_long_as_their_longest_example(folder: Path) -> None:
    for batch in drawn(opened(folder, batch_size=4).train_loader(0, [8], CPU)):
        longest = int(batch.inputs[:, 1].sum(dim=1).max())
        assert batch.inputs.shape[2] == (8 if longest <= 8 else 16)


def test_an_epoch_can_be_resumed_at_any_step(folder: Path) -> None:
    loader = opened(folder).train_loader(3, [8], CPU)
    whole = drawn(loader, epoch=1)
    assert len(whole) == loader.steps == 6
    assert sorted(torch.cat([batch.indices for batch in whole]).tolist()) == list(range(48))
    assert equal(whole[4:], drawn(loader, epoch=1, start=4))
    assert not equal(whole, drawn(loader, epoch=0))


@pytest.mark.parametrize("training", [True, False])
def test_ranks_see_together_what_one_sees(folder: Path, training: bool) -> None:
    data = opened(folder, batch_size=4, val_batch_size=2 if not training else None)

    def loader(shard: Shard) -> Loader:
        return data.train_loader(0, [8], CPU, shard) if training else data.val_loader(CPU, shard=shard)

    alone = drawn(loader(UNDIVIDED))
    ranks = [drawn(loader(Shard(rank, 2))) for rank in range(2)]
    if training:
        # all ranks have equal shapes
        pairs = zip(*ranks, strict=True)
        concatenated = [Batch(*map(torch.cat, zip(*map(parts, pair), strict=True))) for pair in pairs]
        assert equal(alone, concatenated)
    else:
        assert equal(alone[::2], ranks[0])
        assert equal(alone[1::2], ranks[1])
        assert sum(len(batch.targets) for rank in ranks for batch in rank) == loader(Shard(0, 2)).samples == 10


def test_a_trial_uses_examples_evenly_spread(folder: Path) -> None:
    data = opened(folder, examples=12, val_examples=5)
    assert torch.cat([batch.indices for batch in drawn(data.val_loader(CPU))]).tolist() == [0, 2, 4, 6, 8]
    assert torch.cat([batch.indices for batch in drawn(data.val_loader(CPU, count=2))]).tolist() == [0, 4]
    assert data.train_loader(0, [8], CPU).samples == 12
    assert expected_set(data.block) == (2, 12, True)


def test_the_fingerprint_changes_with_tables_and_tokenizer(folder: Path) -> None:
    before = opened(folder).fingerprint
    with (folder / "words/dev.tsv").open("a") as table:
        table.write("the saw\ttool\n")
    with (folder / "tokens/tokenizer.json").open("a") as tokenizer:
        tokenizer.write("\n")
    tokens_of.cache_clear()
    after = opened(folder).fingerprint
    assert {split for split in before if before[split] != after[split]} == {"val", "tokenizer"}


def test_classes_are_ordered_by_number_if_they_are_numbers(folder: Path) -> None:
    (folder / "words/train.tsv").write_text("sentence\tlabel\nred\t10\nred\t9\nred\t2\n")
    assert opened(folder).class_names == ("2", "9", "10")


def test_known_sets_are_planned_by_their_published_size(tmp_path: Path) -> None:
    sizes = {}
    for name, known in known_sentences().items():
        if not known.is_generic:
            sizes[name] = expected_set(block(tmp_path, name=name, path=str(tmp_path)))
    assert sizes["mnli"] == (3, 392_702, False)
    assert sizes["stsb"] == (1, 5_749, False)
    assert sizes["kjv_books"] == (6, 28_045, False)
    assert len(sizes) == 9


def test_tables_are_read_as_glue_publishes_them(tmp_path: Path) -> None:
    tables = {
        "cola": ("gj04\t1\t\tFriends came.\nks08\t0\t*\tCame friends.\n", [("Friends came.",), ("Came friends.",)]),
        "mrpc": (
            '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tHe "said\tso.\r\n',
            [('He "said', "so.")],
        ),
        "qqp": (
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\t\t0\n4\t5 broken\n",
            [("Why?", "")],
        ),
    }
    for name, (content, texts) in tables.items():
        file = tmp_path / f"{name}.tsv"
        file.write_bytes(content.encode())
        rows = read(file, known_sentences()[name])
        assert rows.texts == texts
        assert rows.left_out == (name == "qqp")
        assert rows.labels[0] == ("0" if name == "qqp" else "1")


def test_the_mismatched_table_is_a_further_split(folder: Path) -> None:
    data = replace(opened(folder), known=known_sentences()["mnli"])
    assert data.further == ("mismatched",)
    assert opened(folder).further == ()


def _read_all(folder: Path) -> None:
    data = opened(folder, batch_size=1)
    data.train_loader(0, [8], CPU)
    data.val_loader(CPU)


BAD = {
    "a missing column": ("sentence\tclass\nred\t0\n", "has no column label"),
    "an empty file": ("", "is empty"),
    "no example": ("sentence\tlabel\n", "has no example"),
    "an empty line": ("sentence\tlabel\nred\t0\n\nblue\t1\n", "line 3: it is empty"),
    "an empty sentence": ("sentence\tlabel\n \t0\nblue\t1\n", "line 2: the sentence is empty"),
    "a tab too many": ("sentence\tlabel\nred\tblue\t0\n", "line 2: it has 3 columns"),
    "one class": ("sentence\tlabel\nred\t0\nblue\t0\n", "one class only"),
    "an unknown label": ("sentence\tlabel\nred\tcolour\nblue\tcolour\nblue\tanimal\n", None),
    "another encoding": (b"sentence\tlabel\nr\xe9d\t0\n", "is not UTF-8"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_table_is_refused_in_a_line(folder: Path, what: str) -> None:
    content, said = BAD[what]
    (folder / "words/train.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said or "dev.tsv, line 3: the label 'tool' is none of animal, colour") as error:
        _read_all(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", "the label 'maybe' is none of entailment, not"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.5\n", "the score '5.5' is none from 0 to 5"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n", "the score 'high' is none from 0 to 5"),
    ],
)
def test_a_label_out_of_range_is_refused_with_its_line(folder: Path, name: str, content: str, said: str) -> None:
    for table in ("train", "dev"):
        (folder / f"words/{table}.tsv").write_text(content)
    with pytest.raises(DataError, match=f"train.tsv, line 2: {said}"):
        opened(folder, name=name, batch_size=1).train_loader(0, [8], CPU)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tokenizer": "/nowhere"}, "there is no /nowhere/tokenizer.json"),
        ({"path": "/nowhere"}, "/nowhere has no train.tsv"),
        ({"name": "rtf"}, "there is no set of sentences rtf"),
    ],
)
def test_what_is_missing_is_named(folder: Path, keys: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened(folder, **keys).train_loader(0, [8], CPU)


def test_broken_lines_of_a_table_that_has_some_are_left_out_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    for table in ("train", "dev"):
        (folder / f"words/{table}.tsv").write_text(f"{header}1\t2\t3\ta saw\tred\t0\n4\t5 broken\n")
    assert opened(folder, name="qqp").stored("train") == 1
    assert f"{folder / 'words/train.tsv'}: 1 broken lines are left out" in capsys.readouterr().err


def test_a_split_that_the_set_never_has_and_a_table_that_is_a_folder_are_refused(folder: Path) -> None:
    data = opened(folder)
    with pytest.raises(DataError, match="sentences has no mismatched, only train, val"):
        data.rows("mismatched")
    (folder / "words/train.tsv").unlink()
    (folder / "words/train.tsv").mkdir()
    with pytest.raises(DataError, match=r"train\.tsv cannot be read: Is a directory"):
        data.rows("train")


def test_calibration_sees_training_examples_in_shuffled_batches(folder: Path) -> None:
    data = opened(folder)
    assert equal(drawn(data.calibration_loader(3, CPU)), drawn(data.train_loader(3, [8], CPU)))


def test_a_tokenizer_may_name_its_own_padding(folder: Path) -> None:
    file = folder / "tokens/tokenizer.json"
    assert tokens_of(str(file)).padding == WORDS.index("[PAD]")
    stored = json.loads(file.read_text())
    stored["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 7, "pad_type_id": 0, "pad_token": "red",
    }  # fmt: skip
    (folder / "other.json").write_text(json.dumps(stored))
    assert tokens_of(str(folder / "other.json")).padding == 7


def test_tokenizers_that_cannot_be_read_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "latin.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"latin\.json cannot be read .*; fetch it again"):
        tokens_of(str(folder / "latin.json"))
    (folder / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other\.json is no tokenizer .*; fetch it again"):
        _ = tokens_of(str(folder / "other.json")).size
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="needs the library tokenizers"):
        _ = tokens_of(str(folder / "tokens")).size


def test_a_tokenizer_of_the_hub_is_the_downloaded_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def kept(*wanted: object) -> Path:
        asked.append(wanted)
        return folder / "tokens/tokenizer.json"

    monkeypatch.setattr("acdc_cli.hub.kept", kept)
    assert tokens_of("owner/name@v2").size == len(WORDS)
    assert asked == [("owner/name", "tokenizer.json", "v2")]
    tokens_of.cache_clear()


def test_what_was_never_downloaded_is_fetched_or_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc_cli.hub.kept", lambda *wanted: None)
    monkeypatch.setattr("acdc_cli.hub.require_network", lambda: None)
    monkeypatch.setattr("acdc_cli.hub.download", lambda *wanted: Path("/".join(map(str, wanted))))
    assert hub.file_of("owner/name", "tokenizer.json", DataError) == Path("owner/name/tokenizer.json/None")

    def offline() -> None:
        raise OSError("no route")

    monkeypatch.setattr("acdc_cli.hub.require_network", offline)
    with pytest.raises(DataError, match="owner/name"):
        tokens_of("owner/name")
