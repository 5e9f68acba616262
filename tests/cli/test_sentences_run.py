"""A run on sentences from a recipe to its evaluation, by the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run_acdc
from safetensors.torch import load_file
from sentence_files import write_recipe, write_tokenizer

from acdc_cli.recipe.load import load


def test_a_run_learns_prunes_exactly_and_is_evaluated_as_it_was_validated(tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    result = run_acdc("train", recipe, "--out", run)
    assert result.exit_code == 0, result.output
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["phase"] == "sparse"
    assert last["accuracy"] > 0.9
    weights = load_file(run / "sparse.safetensors")
    pruned = [weights[f"{name}.weight"] for name in last["layers"] if not name.startswith(("bert.embed", "classifier"))]
    # half of the weights of 2 layers and the pooler
    assert sum(int((each == 0).sum()) for each in pruned) == sum(each.numel() for each in pruned) // 2
    assert all(weights[f"bert.embeddings.{kind}_embeddings.weight"].count_nonzero() for kind in ("word", "position"))
    shown = run_acdc("eval", "--checkpoint", run, "--json")
    assert shown.exit_code == 0, shown.output
    values = json.loads(shown.stdout)
    assert {key: values[key] for key in ("accuracy", "macro_f1", "entropy")} == {
        key: pytest.approx(last[key]) for key in ("accuracy", "macro_f1", "entropy")
    }
    assert values["samples"] == 10


TABLES = {
    "mnli": ("gold_label", ["entailment", "neutral"], ("dev_matched", "dev_mismatched")),
    "stsb": ("score", ["0.5", "4"], ("dev",)),
}


@pytest.mark.parametrize("name", TABLES)
def test_glues_tables_give_the_papers_metrics(tmp_path: Path, name: str) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    column, labels, tables = TABLES[name]
    for table in ("train", *tables):
        lines = [f"red\ta {word}\t{label}" for word in ("saw", "nail", "drill", "red") for label in labels]
        (tmp_path / f"words/{table}.tsv").write_text("\n".join([f"sentence1\tsentence2\t{column}", *lines, ""]))
    settings = f"task.name=glue/{name}", f"data.name={name}", "sparsity={method: dense}", "epochs=1"
    result = run_acdc("train", recipe, "--out", run, *(word for each in settings for word in ("--set", each)))
    assert result.exit_code == 0, result.output
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    shown = run_acdc("eval", "--checkpoint", run, "--json")
    assert shown.exit_code == 0, shown.output
    values = json.loads(shown.stdout)
    metrics = ("accuracy", "accuracy/mismatched") if name == "mnli" else ("pearson", "spearman")
    # both tables of MNLI hold the same here
    assert [values[key] for key in metrics] == pytest.approx([last[key] for key in metrics], abs=1e-6)
    assert name == "stsb" or values["accuracy"] == values["accuracy/mismatched"]
    assert values["samples"] == 8
    table = run_acdc("eval", "--checkpoint", run)
    assert ("mismatched" if name == "mnli" else "Spearman correlation") in table.stdout


def test_a_plan_needs_neither_data_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load("language/bert_glue_90")
    assert (recipe.task.name, recipe.data.name) == ("glue/rte", "rte")
    shown = run_acdc("plan", "language/bert_glue_90", "--json")
    assert shown.exit_code == 0, shown.output
    # bert-base-uncased with two classes
    assert json.loads(shown.stdout)["totals"]["params"] == 109_483_778


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.length=600"], "the model takes no examples of 600 tokens (its longest is 512"),
        (
            ["model.options={vocab_size: 12, hidden_size: 24}"],
            "the tokenizer has 15 tokens, and the model 12; name the",
        ),
        (["task.name=glue/rte"], "glue/rte is judged on rte, found sentences"),
        (["task.name=multiclass"], "data.tokenizer"),
        (["model={name: resnet20}", "sparsity.keep_dense=[]"], "the model takes no examples of 16 tokens"),
        (["data.batch_size=128"], "data.batch_size 128 is more than the 96 examples of sentences"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, changes: list[str], said: str) -> None:
    settings = [word for each in changes for word in ("--set", each)]
    result = run_acdc("train", write_recipe(tmp_path), "--out", tmp_path / "run", *settings)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_is_none_is_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (write_tokenizer(tmp_path / "tokens") / "tokenizer.json").write_text("{}")
    result = run_acdc("train", recipe, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert "is no tokenizer" in result.stderr
