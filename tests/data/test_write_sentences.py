"""GLUE's tables from the cache of the library datasets, which the library itself writes here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from command import run_acdc
from sentence_files import write_tokenizer

from acdc_cli.data.known_sentences import known_sentences
from acdc_cli.data.sentence_files import read
from acdc_cli.data.sentence_set import open_set
from acdc_cli.recipe.blocks.sentences import SentencesBlock

Example = tuple[list[str], Any]
PAIRS = ["sentence1", "sentence2"]
YES_NO = ["entailment", "not_entailment"]
GLUE: Mapping[str, tuple[Sequence[str], Sequence[str] | None, str]] = {
    "rte": (PAIRS, YES_NO, "sentence1\tsentence2\tlabel"),
    "qnli": (["question", "sentence"], YES_NO, "question\tsentence\tlabel"),
    "mrpc": (PAIRS, ["not_equivalent", "equivalent"], "#1 String\t#2 String\tQuality"),
    "sst2": (["sentence"], ["negative", "positive"], "sentence\tlabel"),
    "cola": (["sentence"], ["unacceptable", "acceptable"], "\t1\t\tcola of train 0"),
    "stsb": (PAIRS, None, "sentence1\tsentence2\tscore"),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], "sentence1\tsentence2\tgold_label"),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], "question1\tquestion2\tis_duplicate"),
}
"""The library's columns and classes, and the first line of the table."""


class Glue(datasets.GeneratorBasedBuilder):
    """As the hub's, for tables that are given."""

    tables: Mapping[str, Sequence[Example]]
    columns: Sequence[str]
    classes: Sequence[str] | None

    def _info(self) -> datasets.DatasetInfo:
        label = datasets.ClassLabel(names=list(self.classes)) if self.classes else datasets.Value("float32")
        text = {column: datasets.Value("string") for column in self.columns}
        return datasets.DatasetInfo(
            features=datasets.Features({**text, "label": label, "idx": datasets.Value("int32")})
        )

    def _split_generators(self, _: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(split, gen_kwargs={"split": split}) for split in self.tables]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (texts, label) in enumerate(self.tables[split]):
            yield number, {**dict(zip(self.columns, texts, strict=True)), "label": label, "idx": number}


def cache(
    folder: Path, name: str, tables: Mapping[str, Sequence[Example]], repository: str = "nyu-mll/glue", **own: Any
) -> Path:
    columns, classes, _ = GLUE[name]
    built = type("Glue", (Glue,), {"tables": tables, "columns": columns, "classes": classes, **own})(
        cache_dir=str(folder),
        dataset_name="glue",
        config_name=name,
        hash="0123abc",
        repo_id=repository if "/" in repository else None,
    )
    built.download_and_prepare()
    assert any(folder.glob(f"{repository.replace('/', '___')}/{name}/0.0.0/0123abc/glue-*.arrow"))
    return folder


def tables(name: str) -> dict[str, list[Example]]:
    columns, classes, _ = GLUE[name]
    vals = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)

    def row(split: str, number: int) -> Example:
        label = (number + 1) % len(classes) if classes else [3.2, 0.0, 5.0, 2.6666667, 1.75][number]
        return [f"{name} of {split} {number}", f"and \"{number}'"][: len(columns)], label

    test = [(row("test", 0)[0], -1 if classes else -1.0)]
    return {split: [row(split, number) for number in range(5)] for split in ("train", *vals)} | {"test": test}


def written(name: str, *options: str | Path) -> tuple[int, str]:
    result = run_acdc("data", "write", name, *options)
    return result.exit_code, " ".join(result.stderr.split())


@pytest.mark.parametrize("name", GLUE)
def test_a_cached_set_becomes_tables_that_hold_the_same(name: str, tmp_path: Path) -> None:
    made, out = tables(name), tmp_path / "out"
    code, said = written(name, "--source", cache(tmp_path / "cache", name, made), "--out", out)
    assert code == 0, said
    known, (_, classes, first) = known_sentences()[name], GLUE[name]
    assert {file.name for file in out.iterdir()} == set(known.files.values())
    assert (out / "train.tsv").read_text().splitlines()[0] == first
    tokens = write_tokenizer(tmp_path / "tokens")
    data = open_set(SentencesBlock(name=name, path=str(out), batch_size=2, tokenizer=str(tokens), length=8))
    if classes:
        assert set(data.class_names) == set(classes)
    for split in known.files:
        examples = made[{"train": "train", "mismatched": "validation_mismatched"}.get(split) or list(made)[1]]
        assert data.rows(split).texts == [tuple(texts) for texts, _ in examples]
        got = data.targets(split)
        if classes:
            assert [data.class_names[number] for number in got] == [classes[label] for _, label in examples]
        else:
            assert np.array_equal(got, np.array([label for _, label in examples], np.float32))


HOSTILE = [
    (["a\tb\nc", "d\r\ne"], 0),
    (['"quoted', "it''s \u2028 one line\x0b"], 1),
    (["plain", "\ufeffmark \U0001f600 ä"], 0),
    (["\\t stays", " \tedge\t"], 1),
]


def test_tabs_and_line_ends_in_sentences_become_spaces_and_are_counted(tmp_path: Path) -> None:
    made = {"train": HOSTILE, "validation": HOSTILE[1:3]}
    code, said = written("rte", "--source", cache(tmp_path / "cache", "rte", made), "--out", tmp_path)
    assert code == 0, said
    assert f"{tmp_path / 'train.tsv'}: 4 examples; tabs or line ends became spaces in 3 sentences" in said
    assert f"{tmp_path / 'dev.tsv'}: 2 examples" in said
    assert said.count("became spaces") == 1
    assert read(tmp_path / "train.tsv", known_sentences()["rte"]).texts == [
        ("a b c", "d e"),
        ('"quoted', "it''s \u2028 one line"),
        ("plain", "\ufeffmark \U0001f600 ä"),
        ("\\t stays", "edge"),
    ]


def test_the_librarys_own_cache_of_old_is_read_and_a_folder_of_its_name_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache(tmp_path / "hf", "sst2", tables("sst2"), "glue"))
    Path("glue").mkdir()
    Path("glue/train.csv").write_text("sentence,label\nwrong,0\n")
    assert written("sst2")[0] == 0
    assert read(Path("data/sst2/train.tsv"), known_sentences()["sst2"]).texts[0] == ("sst2 of train 0",)


def test_tables_that_are_there_stay_unless_forced(tmp_path: Path) -> None:
    source, out = cache(tmp_path / "cache", "rte", tables("rte")), tmp_path / "out"
    out.mkdir()
    (out / "dev.tsv").write_text("mine")
    code, said = written("rte", "--source", source, "--out", out)
    assert (code, f"{out / 'dev.tsv'} exists already; --force replaces it" in said) == (2, True)
    assert [file.name for file in out.iterdir()] == ["dev.tsv"]
    assert written("rte", "--source", source, "--out", out, "--force")[0] == 0
    assert (out / "dev.tsv").read_text().startswith("sentence1\t")


NO_LABEL = {"train": tables("rte")["train"], "validation": [(["a", "b"], 0), (["c", "d"], -1)]}
EMPTY = {"train": tables("rte")["train"], "validation": [(["a", "b"], 0), (["c", " \n"], 1)]}


@pytest.mark.parametrize(
    ("made", "own", "said"),
    [
        (None, {}, "has no rte: fetch it where there is a network, with python -c"),
        ({"train": tables("rte")["train"]}, {}, "has no validation, only train; load the whole set again"),
        (NO_LABEL, {}, "rte, val: 1 examples of the cache have no label"),
        (EMPTY, {}, "rte, val, example 1 of the cache: a sentence is empty"),
        (tables("rte"), {"classes": ["no", "yes"]}, "has the classes no, yes, not entailment, not_entailment"),
        (tables("rte"), {"columns": ["a", "b"]}, "has no column sentence1, sentence2, only a, b, label, idx"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_leaves_no_table(
    tmp_path: Path, made: Mapping[str, Sequence[Example]] | None, own: Mapping[str, Any], said: str
) -> None:
    source, out = tmp_path / "cache", tmp_path / "out"
    if made:
        cache(source, "rte", made, **own)
    code, line = written("rte", "--source", source, "--out", out)
    assert (code, said in line) == (2, True), line
    assert not out.exists() or not list(out.iterdir())


def test_a_damaged_cache_is_one_line(tmp_path: Path) -> None:
    source = cache(tmp_path / "cache", "rte", tables("rte"))
    (arrow,) = source.rglob("glue-validation.arrow")
    arrow.write_bytes(b"damaged\nfile")
    code, said = written("rte", "--source", source, "--out", tmp_path)
    assert (code, "cache: validation cannot be read (" in said.replace("/nyu-mll___glue/rte/0.0.0/0123abc", "")) == (
        2,
        True,
    )
    (info,) = source.rglob("dataset_info.json")
    info.write_text("{")
    code, said = written("rte", "--source", source, "--out", tmp_path)
    assert (code, f"{source}: the library datasets cannot read rte (" in said) == (2, True)


def test_without_the_library_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, said = written("rte", "--out", tmp_path)
    assert (code, "pip install datasets" in said) == (2, True)
    # tables of one's own are no set of the library
    code, said = written("sentences", "--out", tmp_path)
    assert (code, "is read as it is: put train.tsv, dev.tsv" in said) == (2, True)
    code, said = written("rte", "--workers", "2")
    assert (code, "--workers: not an option of rte, which is a set of sentences" in said) == (2, True)
