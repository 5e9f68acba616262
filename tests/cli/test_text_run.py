"""A run on a running text, from training to every command that reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc, run_acdc
from safetensors.torch import load_file

from acdc_cli.data.data_set import open_set
from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.jobs.subjects import open_subjects
from acdc_cli.recipe.blocks.text import IGNORED
from acdc_cli.recipe.load import load

SMALL = (
    "epochs=4", "data.batch_size=4", "data.length=8", "data.val_rows=3", "data.tokens=600",
    "model.options={layers: 2, d_model: 16, heads: 2, inner: 24, memory: 8, dropout: 0.1}",
    "sparsity.warmup_epochs=1", "sparsity.last_dense_epochs=1", "sparsity.last_sparse_epochs=1",
    "checkpoint.keep_phases=true", "checkpoint.keep_states=[2]",
)  # fmt: skip
TEST = ("eval", "--split", "test", "--json")
WORDS = ("the", "a", "cat", "dog", "saw", "ran", "and", "then")


def lines(count: int, seed: int) -> str:
    """Sentences of a small grammar: an article before a noun, a verb behind it."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, (count, 4), generator=random).tolist()
    return "".join(f"{WORDS[a]} {WORDS[2 + b]} {WORDS[4 + c]} {WORDS[d]} {WORDS[3 - b]}\n" for a, b, c, d in drawn)


def settings(text: Path, *more: str) -> list[str]:
    return [part for each in (*SMALL, f"data.path={text}", *more) for part in ("--set", each)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for split, count, seed in (("train", 200, 0), ("valid", 30, 1), ("test", 20, 2)):
        (folder / f"{split}.txt").write_text(lines(count, seed))
    write_set("text", WriteOptions(source=folder, out=folder / "tokens"))
    return folder / "tokens"


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "text"
    done = run_acdc("train", "language/kjv_90", "--out", out, *settings(text))
    assert done.exit_code == 0, done.output
    assert "  ep  phase      lr tok train   val   ppl   bpc entr. zeros   all seg/s  time" in done.output
    assert "sparse: perplexity" in done.output
    return out


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_records_speak_of_tokens_and_zeros_are_exact(trained: Path) -> None:
    for record in records(trained):
        assert record["perplexity"] == pytest.approx(math.exp(record["val_loss"]))
        assert (record["length"], record["tokens"]) == (8, 179)
        assert record["segments_per_second"] > 0
        assert not record.keys() & {"resolution", "images_per_second", "top1"}
    last = records(trained)[-1]
    assert last["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert last["layers"]["embeddings.tables.0"] == last["layers"]["layers.0.attention.positions"] == 0
    assert last["perplexity"] < records(trained)[0]["perplexity"] < 9


@torch.inference_mode()
def test_perplexity_is_that_of_a_pass_over_the_rows_by_hand(trained: Path, acdc: Acdc) -> None:
    metrics = json.loads(acdc("eval", "--checkpoint", trained, "--json").stdout)
    (subject,) = open_subjects([trained])
    loaded, data = subject.load(), open_set(load(trained / "resolved.yaml").data)
    words = data.class_names
    total, count, characters = 0.0, 0, 0
    with subject.images() as segments, segments.epoch(0) as batches:
        for batch in batches:
            logits = loaded.model(batch.inputs[:, 1:-1], None, batch.inputs[:, 0] != 0).double().log_softmax(-1)
            for row, place in (batch.targets != IGNORED).nonzero().tolist():
                target = int(batch.targets[row, place])
                total, count = total - float(logits[row, place, target]), count + 1
                characters += len(words[target])
    # 30 lines of five words and an end, of which the first token is not predicted
    assert (count, metrics["tokens"]) == (179, 179)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(total / math.log(2) / characters, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(records(trained)[-1]["perplexity"], rel=1e-6)


def test_perplexity_does_not_depend_on_how_many_rows_are_read_at_once(trained: Path, acdc: Acdc) -> None:
    one, all_ = (
        json.loads(
            acdc(
                "eval", "--checkpoint", trained, "--split", "test", "--set", f"data.val_batch_size={rows}", "--json"
            ).stdout
        )
        for rows in (1, 3)
    )
    assert one["perplexity"] == pytest.approx(all_["perplexity"], rel=1e-6)
    assert one["tokens"] == all_["tokens"] == 119
    piece = json.loads(
        acdc("eval", "--checkpoint", trained, "--split", "test", "--set", "data.val_rows=1", "--json").stdout
    )
    assert piece["tokens"] == 119
    assert piece["perplexity"] != one["perplexity"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("agreement", "both right", marks=pytest.mark.slow),
        ("channels", "outputs"),
        ("curves", "perplexity"),
        pytest.param("interpolate", "barrier", marks=pytest.mark.slow),
        ("masks", "IoU"),
        ("sharpness", "sharpness"),
    ],
)
def test_analyses_work_on_text(trained: Path, acdc: Acdc, tmp_path: Path, name: str, expected: str) -> None:
    small = {"sharpness": ["--set", "images=4"], "interpolate": ["--set", "images=4", "--set", "points=3"]}
    done = acdc("analyze", name, trained, *small.get(name, []), "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / f"{name}-text.json").exists()


@pytest.mark.slow
def test_calibration_counts_each_predicted_token_once(trained: Path, acdc: Acdc, tmp_path: Path) -> None:
    done = acdc("analyze", "calibration", trained, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    calibration = json.loads((tmp_path / "calibration-text.json").read_text())["results"]["models"]["text (sparse)"]
    metrics = json.loads(acdc("eval", "--checkpoint", trained, "--json").stdout)
    assert calibration["samples"] == 179
    assert calibration["nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert calibration["accuracy"] == pytest.approx(metrics["accuracy"])


@pytest.mark.slow
def test_a_fork_equals_the_run_to_the_bit(trained: Path, text: Path, acdc: Acdc, tmp_path: Path) -> None:
    out = tmp_path / "fork"
    assert acdc("train", "language/kjv_90", "--fork", f"{trained}@2", "--out", out, *settings(text)).exit_code == 0
    ours, theirs = (load_file(run / "sparse.safetensors") for run in (out, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_is_what_it_claims_and_is_listed_by_perplexity(trained: Path, acdc: Acdc) -> None:
    assert "it claims to be" in acdc("verify-run", trained).output
    assert "perplexity" in acdc("runs", "list", trained.parent).output


def test_a_plan_speaks_of_segments_and_prices_them_with_a_full_memory(text: Path, acdc: Acdc) -> None:
    planned = json.loads(acdc("plan", "language/kjv_90", *settings(text), "--json").stdout)
    # of a segment of 8 tokens: query, output and feed-forward for each; keys, values and distances for the memory, too
    by_layer = 8 * (2 * 16 * 16 + 2 * 16 * 24) + 16 * (2 * 16 * 16) + 16 * 16 * 16
    # six words and the end of a line
    softmax = 8 * 16 * 7
    assert planned["epochs"][0]["forward_flops"] == 2 * (2 * by_layer + softmax)
    assert "GFLOPs of a segment" in acdc("plan", "language/kjv_90", *settings(text)).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{run}", "--format", "onnx", "--shrink"], "--shrink works on images only"),
        (["bench", "{run}"], "works on images only"),
        (["analyze", "groups", "{run}"], "this analysis judges whole samples, and a text has only tokens"),
        (["analyze", "corruptions", "{run}"], "images"),
    ],
)
def test_what_does_not_work_on_text_says_so_in_a_line(
    trained: Path, acdc: Acdc, arguments: list[str], message: str
) -> None:
    refused = acdc(*(each.format(run=trained) for each in arguments))
    assert refused.exit_code == 2
    assert message in refused.output
    assert refused.output.startswith("error: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compile=reduce-overhead", "compile: reduce-overhead works on images only"),
        ("task.teacher=last_dense", "task.teacher works on images only"),
        ("sparsity={method: synflow, target: 0.5}", "sparsity.method: synflow works on images only"),
        ("data.resolution=8", "data.resolution: unknown key"),
        ("model.name=resnet20", "the model takes no segments of 8 tokens"),
        ("data.length=400", "cuts the 600 training tokens of kjv into rows shorter than data.length 400"),
    ],
)
def test_a_recipe_that_does_not_fit_a_text_is_refused(
    text: Path, acdc: Acdc, tmp_path: Path, change: str, message: str
) -> None:
    more = ["model.options={}", "sparsity.keep_dense=[]"] if change.startswith("model.name") else []
    refused = acdc("train", "language/kjv_90", "--out", tmp_path / "run", *settings(text, *more, change))
    assert refused.exit_code == 2, refused.output
    assert message in refused.output


def test_a_run_refuses_another_vocabulary(trained: Path, text: Path, acdc: Acdc, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(50 * "one two three\n")
    (tmp_path / "valid.txt").write_text("one two\n")
    write_set("text", WriteOptions(source=tmp_path, out=tmp_path / "other"))
    refused = acdc("eval", "--checkpoint", trained, "--data", tmp_path / "other")
    assert refused.exit_code == 2
    assert "embeddings" in refused.output


@pytest.mark.parametrize("form", ["packed", *(pytest.param(form, marks=pytest.mark.slow) for form in ("pt2", "onnx"))])
def test_an_exported_program_gives_the_logits_of_single_segments(
    trained: Path, acdc: Acdc, tmp_path: Path, form: str
) -> None:
    done = acdc("export", trained, "--format", form, "--out", tmp_path / f"text.{form}")
    assert done.exit_code == 0, done.output
    assert "22 validation segments in batches of 1 and 16" in done.output
    assert "answers agree on 100.00%" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_killed_within_an_epoch_resumes_to_the_bit(text: Path, acdc: Acdc, accumulate: int) -> None:
    changes = settings(text, f"optim.accumulate={accumulate}", "data.roll=true")
    done = acdc("verify-resume", "language/kjv_90", *changes, "--kills", "3")
    assert "identical to the bit" in done.output
