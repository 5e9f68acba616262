"""`acdc transfer`, from an encoder to tasks of GLUE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Acdc, run_acdc
from safetensors.torch import load_file, save_file
from sentence_files import rows, write_recipe

TABLES = {
    "rte": ("sentence1\tsentence2\tlabel", {"colour": "entailment", "tool": "not_entailment"}),
    "mrpc": ("#1 String\t#2 String\tQuality", {"colour": "1", "tool": "0"}),
    "stsb": ("sentence1\tsentence2\tscore", {"colour": "4.5", "tool": "0.5"}),
}
CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 15
}  # fmt: skip
QUICK = ("--set", "data.length=16", "--set", "threads=1", "--seeds", 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse run on words in two classes, and three tasks of GLUE that ask for the same."""
    home = tmp_path_factory.mktemp("glue")
    result = run_acdc("train", write_recipe(home), "--out", home / "words-0")
    assert result.exit_code == 0, result.output
    for name, (header, labels) in TABLES.items():
        (home / "data" / name).mkdir(parents=True)
        for table, count in (("train", 64), ("dev", 20)):
            lines = [each.replace(" is a\t", " is a\tred is\t").rpartition("\t") for each in rows(count)]
            lines = [f"{text}\t{labels[kind]}" for text, _, kind in lines]
            (home / "data" / name / f"{table}.tsv").write_text("\n".join([header, *lines, ""]))
    return home


def test_aie_is_over_the_tasks_own_metrics(
    home: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    to = [word for name in TABLES for word in ("--to", name)]
    models = ("words-0", "words-0/dense.safetensors")
    sgd = ("--set", "epochs=30", "--set", "optim.lr=0.1", "--set", "data.batch_size=16")
    result = acdc("transfer", *models, *to, *QUICK, "--check", *sgd, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    metrics = {row["set"]: row["metric"] for row in results["sets"]}
    assert metrics == {"rte": "accuracy", "mrpc": "f1", "stsb": "pearson"}
    means = {(row["model"], row["set"]): row["mean"] for row in results["sets"]}
    assert min(means.values()) >= 0.5
    assert all(0.6 < row["logistic"] <= 1 for row in results["sets"])
    (row,) = results["aie"]
    errors = {key: 1 - mean for key, mean in means.items()}
    increases = [errors[row["model"], name] / errors[row["baseline"], name] - 1 for name in TABLES]
    assert row["aie"] == pytest.approx(np.mean(increases))
    cells = [json.loads(file.read_text()) for file in (tmp_path / "results").glob("*.json")]
    assert {tuple(cell["scores"]) for cell in cells if cell["to"] == "mrpc"} == {("f1", "accuracy")}
    assert {tuple(cell["scores"]) for cell in cells if cell["to"] == "stsb"} == {("pearson", "spearman")}
    (cell, _) = (cell for cell in cells if cell["to"] == "stsb")
    truth, answers = np.load(tmp_path / "results" / f"{cell['key']}.npy")
    assert set(truth) == {0.5, 4.5}
    assert cell["scores"]["pearson"] == pytest.approx(np.corrcoef(answers, truth)[0, 1])


def test_full_transfer_trains_the_encoder_and_keeps_its_zeros(
    home: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    words = ("--mode", "full", "--set", "epochs=1", *QUICK, "--out", tmp_path)
    result = acdc("transfer", "words-0", "--to", "glue/stsb", *words, "--json")
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "runs").iterdir()
    before, after = load_file("words-0/sparse.safetensors"), load_file(run / "sparse.safetensors")
    assert (before["classifier.weight"].shape, after["classifier.weight"].shape) == ((2, 32), (1, 32))
    masked = [name for name in before if name.endswith("query.weight")]
    assert len(masked) == 2
    for name in masked:
        assert (before[name] == 0).any()
        assert ((before[name] == 0) == (after[name] == 0)).all()
        assert (before[name] != after[name]).any()
    (row,) = json.loads(result.stdout)["results"]["sets"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["mean"] == pytest.approx(last["pearson"], abs=1e-6)


def test_a_pretrained_encoder_needs_neither_a_run_nor_a_classifier(
    home: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    weights = load_file("words-0/sparse.safetensors")
    save_file({name: each for name, each in weights.items() if name.startswith("bert")}, theirs / "model.safetensors")
    (theirs / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG}))
    (theirs / "tokenizer.json").write_text(Path("tokens/tokenizer.json").read_text())
    words = (*QUICK, "--set", "epochs=2", "--set", "data.batch_size=16", "--out", tmp_path / "out", "--json")
    result = acdc("transfer", theirs, "words-0", "--to", "rte", *words)
    assert result.exit_code == 0, result.output
    # the same encoder, however it is named
    first, second = json.loads(result.stdout)["results"]["sets"]
    assert "theirs/model" in (first["model"], second["model"])
    assert (first["mean"], first["sparsity"]) == (second["mean"], second["sparsity"])
    # another command, whose first set is another one, adds to the same folder
    result = acdc("transfer", theirs, "--to", "mrpc", "--to", "rte", *words)
    assert result.exit_code == 0, result.output
    assert [row["set"] for row in json.loads(result.stdout)["results"]["sets"]].count("mrpc") == 1


@pytest.mark.parametrize(
    ("models", "to", "expected"),
    [
        (("words-0",), "rtw", "there is no set of sentences rtw"),
        (("words-0",), "cola", "has no train.tsv"),
    ],
)
def test_what_cannot_be_transferred_is_one_line(
    home: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    models: tuple[str, ...], to: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    result = acdc("transfer", *models, "--to", to, *QUICK, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
