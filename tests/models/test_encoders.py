"""Encoders of sentences by transformers: a tiny BERT of random weights, without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from acdc_cli.cost.count import operations
from acdc_cli.data.data_set import kind_of
from acdc_cli.errors import ModelError
from acdc_cli.jobs.setup import on_meta
from acdc_cli.models.build import build
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.sentences import SentencesBlock
from acdc_cli.sparsity.prunable import layers

WIDTH, INNER, VOCABULARY, LENGTH = 32, 64, 15, 16
OPTIONS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": INNER,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 24,
}
BLOCK = SentencesBlock(name="sentences", batch_size=8, length=LENGTH, tokenizer="tokens")


def bert(name: str = "hf:bert", **keys: object) -> ModelBlock:
    return ModelBlock.model_validate({"name": name, "options": OPTIONS} | keys)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(bert(), 3).eval()


def test_padding_does_not_change_logits(model: torch.nn.Module) -> None:
    tokens = torch.randint(VOCABULARY, (2, 5))
    mask, types = torch.ones_like(tokens), torch.zeros_like(tokens)
    short = model(tokens, mask, types)
    padded = [torch.nn.functional.pad(each, (0, 7)) for each in (tokens, mask, types)]
    # whatever the padding is
    padded[0][:, 5:] = 4
    torch.testing.assert_close(model(*padded), short)
    assert short.shape == (2, 3)


def test_linear_layers_are_pruned_and_embeddings_and_head_can_be_held(model: torch.nn.Module) -> None:
    held = ["embeddings", "bert.pooler.*", "last"]
    kept = {layer.name: layer.kept_dense for layer in layers(model, held)}
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    encoder = [
        f"bert.encoder.layer.{number}.{part}"
        for number in range(2)
        for part in (*parts, "intermediate.dense", "output.dense")
    ]
    assert [name for name, reason in kept.items() if reason is None] == encoder
    assert kept["classifier"] == "last"
    assert {name for name, reason in kept.items() if reason == "embeddings"} == {
        f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")
    }


def test_linear_layers_and_attention_are_counted() -> None:
    counted = operations(on_meta(bert(), 3), LENGTH, BLOCK)
    linear = sum(each.macs for each in counted if each.kind == "linear")
    attention = sum(each.macs for each in counted if each.kind == "attention")
    # four square matrices and the two of the inner layer for each token; pooler and classifier for the first one
    each_token = 4 * WIDTH**2 + 2 * WIDTH * INNER
    assert linear == 2 * LENGTH * each_token + WIDTH**2 + 3 * WIDTH
    # each layer: scores of all pairs, then their values
    assert attention == 2 * 2 * LENGTH**2 * WIDTH


def test_a_length_beyond_the_positions_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"takes no examples of 25 tokens \(its longest is 24.*data\.length"):
        operations(on_meta(bert(), 3), 25, BLOCK)


def test_a_folder_has_a_configuration_and_weights(model: torch.nn.Module, tmp_path: Path) -> None:
    """Weights as published: without a prefix or a head, with TensorFlow's names, with a head of the pretraining."""
    (tmp_path / "config.json").write_text(json.dumps(OPTIONS | {"model_type": "bert"}))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    bare = {name.removeprefix("bert."): tensor.contiguous() for name, tensor in state.items()}
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in state.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor.contiguous() for name, tensor in old.items()}
    for tensors in (bare, old | {"cls.predictions.bias": torch.zeros(VOCABULARY)}):
        save_file(tensors, tmp_path / "model.safetensors")
        loaded = build(ModelBlock(name=f"hf:{tmp_path}", weights=str(tmp_path), new_head=True), 4).state_dict()
        assert loaded["classifier.weight"].shape == (4, WIDTH)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"its 1 tensors are conv1\.weight"):
        build(bert(weights=str(tmp_path), new_head=True), 3)


def test_layers_of_the_file_that_the_model_lacks_are_not_dropped(model: torch.nn.Module, tmp_path: Path) -> None:
    bare = {name.removeprefix("bert."): each for name, each in model.state_dict().items() if "classifier" not in name}
    save_file(bare, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"16 unknown: bert\.encoder\.layer\.1"):
        build(bert(options=OPTIONS | {"num_hidden_layers": 1}, weights=str(tmp_path), new_head=True), 3)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hf:bert", {"hidden_sise": 32}, "the configuration of bert has no hidden_sise"),
        ("hf:bert", {"num_labels": 3}, "has no num_labels that could be set here"),
        ("hf:nothing", {}, "neither a folder, nor OWNER/NAME"),
        ("hf:clip", {}, "no classifier of sentences of type clip"),
    ],
)
def test_what_is_no_encoder_is_refused(name: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(ModelBlock(name=name, options=options), 3)


def test_a_folder_without_a_usable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        build(ModelBlock(name=f"hf:{tmp_path}"), 3)
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ModelError, match=r"config\.json is no configuration"):
        build(ModelBlock(name=f"hf:{tmp_path}"), 3)


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"need the library transformers: pip install 'acdc-cli\[language\]'"):
        build(bert(), 3)


def test_a_model_of_the_hub_is_built_from_the_downloaded_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPTIONS | {"model_type": "bert", "num_hidden_layers": 1}))
    monkeypatch.setattr("acdc_cli.hub.kept", lambda name, file, revision: tmp_path / file)
    names = build(ModelBlock(name="hf:owner/name"), 3).state_dict()
    assert {name.split(".")[3] for name in names if ".layer." in name} == {"0"}


@torch.no_grad()
def test_a_deployed_encoder_takes_one_tensor_of_one_length(model: torch.nn.Module) -> None:
    kind = kind_of(BLOCK)
    tokens = torch.randint(VOCABULARY, (2, 8))
    inputs = torch.stack([tokens, torch.ones_like(tokens), torch.zeros_like(tokens)], 1)
    whole = kind.engine_inputs(inputs, BLOCK)
    assert whole.shape == (2, 3, LENGTH)
    torch.testing.assert_close(kind.deployed(model)(whole), model(*inputs.unbind(1)))
