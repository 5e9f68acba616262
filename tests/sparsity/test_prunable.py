"""Which layers are pruned."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from acdc_cli.errors import ModelError
from acdc_cli.sparsity.prunable import Extent, extent, layer_name, layers, pruned, zero_counts


class BlurredConv2d(nn.Conv2d):
    """As BlurPool puts in the place of a strided convolution."""


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        BlurredConv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Conv1d(4, 4, 1),
        nn.Linear(4, 6),
        nn.Linear(6, 2),
    )


def kept(keep_dense: list[str]) -> dict[str, str | None]:
    return {layer.name: layer.kept_dense for layer in layers(small(), keep_dense)}


def test_every_convolution_and_linear_weight_is_a_layer_in_registration_order() -> None:
    prunable = layers(small(), [])
    assert [(layer.name, layer.kind) for layer in prunable] == [
        ("0", "conv"),
        ("2", "conv"),
        ("3", "conv"),
        ("4", "conv"),
        ("5", "linear"),
        ("6", "linear"),
    ]
    assert prunable[2].shape == (4, 4, 1, 1)
    assert {layer.kept_dense for layer in prunable} == {None}
    assert list(pruned(prunable)) == ["0.weight", "2.weight", "3.weight", "4.weight", "5.weight", "6.weight"]


def test_the_extent_names_the_largest_weight_and_counts_what_is_empty() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.0], [-7.0, 1.0]]).view(3, 2, 1, 1))
        model[1].weight.zero_()
    assert extent(layers(model, [])) == Extent(largest_weight=7.0, empty_layers=1, empty_channels=3)


def test_words_and_patterns_hold_layers_back_and_the_first_reason_is_told() -> None:
    assert kept(["first", "last", "depthwise"]) == {
        "0": "first",
        "2": "depthwise",
        "3": None,
        "4": None,
        "5": None,
        "6": "last",
    }
    assert kept(["[45]", "5"]) == {"0": None, "2": None, "3": None, "4": "[45]", "5": "[45]", "6": None}


def test_only_layers_that_are_not_kept_dense_are_pruned() -> None:
    model = small()
    weights = pruned(layers(model, ["first", "last"]))
    assert list(weights) == ["2.weight", "3.weight", "4.weight", "5.weight"]
    assert weights["3.weight"] is model[3].weight


def test_patterns_that_match_nothing_are_an_error_with_near_names() -> None:
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "layer1": nn.Conv2d(8, 8, 3), "head": nn.Linear(8, 2)})
    with pytest.raises(ModelError, match=r"'layr1', 'haed' matches no .* nearest: layer1, .*head"):
        layers(model, ["stem", "layr1", "haed"])
    with pytest.raises(ModelError, match=r"'frist' .* nearest: first"):
        layers(model, ["frist"])


def test_a_word_that_holds_for_no_layer_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    for word in ("last", "depthwise"):
        with pytest.raises(ModelError, match=f"'{word}' matches no"):
            layers(model, [word])


def test_keeping_every_layer_dense_is_an_error() -> None:
    with pytest.raises(ModelError, match="keeps all 6 layers dense"):
        layers(small(), ["first", "*"])


def test_one_input_channel_is_not_depthwise() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3, groups=8))
    assert [layer.kept_dense for layer in layers(model, ["depthwise"])] == [None, "depthwise"]


def test_a_shared_weight_is_counted_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert [layer.name for layer in layers(nn.Sequential(first, second, first), [])] == ["0"]


def test_a_model_that_is_itself_a_layer_has_a_plain_parameter_name() -> None:
    assert list(pruned(layers(nn.Linear(2, 2), []))) == ["weight"]


def test_resnet50_has_54_layers_and_95_percent_without_the_ends_is_873_permille_of_all() -> None:
    with torch.device("meta"):
        prunable = layers(torchvision.models.resnet50(), ["first", "last"])
    weights = sum(layer.shape.numel() for layer in prunable)
    without_ends = sum(weight.numel() for weight in pruned(prunable).values())
    assert (len(prunable), weights, without_ends) == (54, 25_502_912, 23_445_504)
    assert [layer.name for layer in prunable if layer.kept_dense] == ["conv1", "fc"]
    assert round(0.95 * without_ends / weights, 3) == 0.873


def test_a_vision_transformer_has_its_patch_embedding_first_and_its_head_last() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert {layer.name: layer.kept_dense for layer in layers(model, ["first", "last"])} == {
        "patch_embed.proj": "first",
        "blocks.0.attn.qkv": None,
        "blocks.0.attn.proj": None,
        "blocks.0.mlp.fc1": None,
        "blocks.0.mlp.fc2": None,
        "head": "last",
    }


def test_zeros_are_counted_in_every_layer_kept_dense_or_not() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0], [-0.0, 1e-30], [2.0, 0.0]]))
        model[1].weight.fill_(1)
    assert zero_counts(layers(model, ["last"])) == {"0": (3, 6), "1": (0, 3)}
    assert zero_counts([]) == {}


def test_the_packed_projections_of_torchs_attention_are_linear_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2))
    prunable = layers(model, ["first", "last"])
    assert [(layer.name, layer.parameter_name, layer.kept_dense) for layer in prunable] == [
        ("0", "0.weight", "first"),
        ("1.in_proj", "1.in_proj_weight", None),
        ("1.out_proj", "1.out_proj.weight", None),
        ("2", "2.weight", "last"),
    ]
    assert [layer_name(layer.parameter_name) for layer in prunable] == [layer.name for layer in prunable]
    assert prunable[1].shape == (12, 4)
    apart = layers(nn.MultiheadAttention(4, 2, kdim=3, vdim=5), [])
    assert [layer.name for layer in apart] == ["q_proj", "k_proj", "v_proj", "out_proj"]


def test_all_matrices_of_torchvisions_vision_transformer_are_layers() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    # 12 blocks of 12 · 768² weights, the patch embedding's 768 · 3 · 16² and the head's 1000 · 768
    assert sum(layer.shape.numel() for layer in layers(model, [])) == 12 * 12 * 768**2 + 768 * 768 + 1000 * 768
