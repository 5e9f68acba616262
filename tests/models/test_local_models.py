"""The local models have the sizes that their papers state, derived by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from acdc_cli.errors import ModelError
from acdc_cli.models import build
from acdc_cli.models.transformer_xl import MODELS as LANGUAGE_MODELS
from acdc_cli.recipe.schema import ModelBlock


def build_without_storage(name: str, classes: int, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build.find(name)(num_classes=classes, **options)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_accumulates(model: nn.Module, side: int) -> int:
    """MACs of all convolutions and linear layers for one image of side x side pixels."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, side, side, device="meta"))
    return total


# (3x3 convolutions + BN) of the stem, then of the stages; the classifier
RESNET_8 = (432 + 32) + 2 * (2304 + 32) + (4608 + 9216 + 2 * 64) + (18432 + 36864 + 2 * 128) + 650
RESNET_20 = (432 + 32) + 6 * (2304 + 32) + (4608 + 5 * 9216 + 6 * 64) + (18432 + 5 * 36864 + 6 * 128) + 650
RESNET_32 = (432 + 32) + 10 * (2304 + 32) + (4608 + 9 * 9216 + 10 * 64) + (18432 + 9 * 36864 + 10 * 128) + 650


def bottlenecks(blocks: int, before: int, inner: int, outer: int) -> int:
    """Weights and BN parameters of one stage: a block is 1x1 to `inner`, 3x3, 1x1 to `outer`."""
    first = before * inner + 9 * inner**2 + inner * outer + 2 * (2 * inner + outer)
    other = outer * inner + 9 * inner**2 + inner * outer + 2 * (2 * inner + outer)
    downsample = before * outer + 2 * outer
    return first + downsample + (blocks - 1) * other


RESNET_50_HALF = (
    (3 * 64 * 49 + 2 * 64)
    + bottlenecks(3, 64, 32, 256)
    + bottlenecks(4, 256, 64, 512)
    + bottlenecks(6, 512, 128, 1024)
    + bottlenecks(3, 1024, 256, 2048)
    + (2048 * 1000 + 1000)
)


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("resnet8", 10, RESNET_8),
        ("resnet20", 10, RESNET_20),
        ("resnet20", 10, 269_722),
        ("resnet32", 10, RESNET_32),
        ("wideresnet28_10", 10, 36_479_194),
        ("wideresnet16_4", 10, 2_748_890),
        ("wideresnet16_8", 10, 10_961_370),
        ("mobilenet_v1", 1000, 4_231_976),
        ("resnet50_half", 1000, RESNET_50_HALF),
    ],
)
def test_parameter_count(name: str, classes: int, expected: int) -> None:
    assert parameter_count(build_without_storage(name, classes)) == expected


def test_a_wide_resnet_counts_as_derived_by_hand() -> None:
    def stage(blocks: int, before: int, width: int) -> int:
        first = 2 * before + 9 * before * width + 2 * width + 9 * width**2 + before * width
        other = 2 * width + 9 * width**2 + 2 * width + 9 * width**2
        return first + (blocks - 1) * other

    by_hand = 432 + stage(3, 16, 32) + stage(3, 32, 64) + stage(3, 64, 128) + 2 * 128 + (128 * 10 + 10)
    assert parameter_count(build_without_storage("wideresnet22_2", 10)) == by_hand


def test_p1s_wide_resnet_counts_as_derived_by_hand() -> None:
    def stage(before: int, width: int) -> int:
        # BN of the input; biases: of both convolutions and of the shortcut
        first = (
            2 * before + (9 * before * width + width) + 2 * width + (9 * width**2 + width) + (before * width + width)
        )
        other = 2 * width + (9 * width**2 + width) + 2 * width + (9 * width**2 + width)
        return first + 3 * other

    assert stage(16, 160) == 256_832 + 3 * 461_760
    by_hand = (432 + 16) + stage(16, 160) + stage(160, 320) + stage(320, 640) + 2 * 640 + (640 * 100 + 100)
    assert parameter_count(build_without_storage("wideresnet28_10_biased", 100)) == by_hand == 36_546_980


def test_p1s_wide_resnet_strides_in_the_second_convolution_and_drops_out_before_it() -> None:
    model = build_without_storage("wideresnet28_10_biased", 100)
    block = model.get_submodule("layer2.0")
    assert [block.get_submodule(name).stride for name in ("conv1", "conv2", "shortcut.0")] == [(1, 1), (2, 2), (2, 2)]
    assert block.get_submodule("dropout").p == 0.3
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Conv2d))
    norms = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == [0.1] * 24 + [0.9]


def test_p1s_wide_resnet_starts_with_xaviers_weights_and_biases_of_zero() -> None:
    torch.manual_seed(0)
    model = build.find("wideresnet28_10_biased")(num_classes=10)
    weight = model.get_submodule("layer1.1.conv1").weight
    # uniform: sqrt(2) · sqrt(6 / (fan-in + fan-out)), whose standard deviation is sqrt(2) · sqrt(2 / (2 · 9 · 160))
    assert weight.abs().max().item() == pytest.approx((2 * 6 / (2 * 9 * 160)) ** 0.5, rel=1e-3)
    assert weight.std().item() == pytest.approx((2 * 2 / (2 * 9 * 160)) ** 0.5, rel=0.01)
    assert not any(module.bias.any() for module in model.modules() if isinstance(module, nn.Conv2d))


def test_shortcuts_of_1x1_convolutions_add_their_weights_and_batch_norm() -> None:
    model = build_without_storage("resnet20", 10, shortcut="conv")
    assert parameter_count(model) == RESNET_20 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64) == 272_474
    plain = build_without_storage("resnet20", 10).state_dict().keys()
    added = model.state_dict().keys() - plain
    assert {name.rpartition(".")[0] for name in added} == {
        f"layer{stage}.0.downsample.{part}" for stage in (2, 3) for part in (0, 1)
    }
    assert plain < model.state_dict().keys()
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(ModelError, match="shortcut must be pad or conv"):
        build.build(ModelBlock(name="resnet8", options={"shortcut": "padd"}), 10)


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("mobilenet_v1", 224, 568_740_352),
        # a 3x3 convolution costs 9 * 16^2 * 32^2 = 2,359,296 in every stage, one that doubles the width half of that
        ("resnet20", 32, 432 * 1024 + 6 * 2_359_296 + 2 * (1_179_648 + 5 * 2_359_296) + 640),
    ],
)
def test_multiply_accumulates(name: str, side: int, expected: int) -> None:
    classes = 1000 if name == "mobilenet_v1" else 10
    assert multiply_accumulates(build_without_storage(name, classes), side) == expected


DEEPER = {"resnet34", "resnet44", "resnet56", "resnet101", "resnet110", "resnet152"}
"""More blocks of other models."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ())
        for name in build.names()
        if name not in LANGUAGE_MODELS
    ],
)
def test_every_local_image_model_gives_one_logit_a_class_at_any_size(name: str) -> None:
    model = build_without_storage(name, 7)
    for side in (28, 33):
        assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1", "wideresnet22_2"])
def test_activations_of_a_fresh_model_keep_their_scale(name: str) -> None:
    torch.manual_seed(0)
    model = build.find(name)(num_classes=10)
    logits = model(torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last))
    assert torch.isfinite(logits).all()
    assert 0.05 < logits.std().item() < 5


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", *(pytest.param(f"resnet{layers}", marks=pytest.mark.slow) for layers in (34, 101, 152))],
)
@pytest.mark.parametrize("zero_init_residual", [False, True])
def test_imagenets_resnets_begin_as_torchvisions(name: str, zero_init_residual: bool) -> None:
    states = []
    for source in ("local", "torchvision"):
        torch.manual_seed(3)
        states.append(build.find(f"{source}:{name}")(num_classes=5, zero_init_residual=zero_init_residual).state_dict())
    ours, theirs = states
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "resnet50"])
def test_imagenets_resnets_compute_what_torchvisions_do(name: str) -> None:
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    computed = []
    for source in ("local", "torchvision"):
        torch.manual_seed(3)
        model = build.find(f"{source}:{name}")(num_classes=5)
        logits = model(images)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        computed.append([logits, *gradients, *model.buffers()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*computed, strict=True))


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    torch.manual_seed(0)
    weight = build.find("resnet20")(num_classes=10).get_submodule("layer3.2.conv2").weight
    assert weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.03)


def test_depthwise_convolutions_start_with_a_standard_deviation_of_019() -> None:
    torch.manual_seed(0)
    blocks = build.find("mobilenet_v1")(num_classes=10).get_submodule("blocks")
    for block in blocks:
        # uniform within a third, the root of a fan-in of 9
        assert block.depthwise.weight.std().item() == pytest.approx(1 / 3 / 3**0.5, rel=0.1)
        assert block.pointwise.weight.std().item() == pytest.approx((2 / len(block.pointwise.weight)) ** 0.5, rel=0.1)
    assert blocks[-1].depthwise.weight.abs().max().item() <= 1 / 3


def test_str_starts_with_variance_two_over_fan_in_and_a_classifier_without_bias() -> None:
    torch.manual_seed(0)
    model = build.find("resnet50")(num_classes=1000, init="fan_in", classifier_bias=False)
    for name, fan_in in (("conv1", 3 * 49), ("layer2.0.downsample.0", 256), ("layer3.1.conv2", 9 * 256), ("fc", 2048)):
        assert model.get_submodule(name).weight.var().item() == pytest.approx(2 / fan_in, rel=0.05)
    assert model.get_submodule("fc").bias is None
    assert parameter_count(model) == 25_557_032 - 1000
    with pytest.raises(ModelError, match="init must be fan_out or fan_in"):
        build.build(ModelBlock(name="resnet18", options={"init": "fan"}), 10)


def test_the_parameter_free_shortcut_subsamples_and_adds_zero_channels() -> None:
    block = build.find("resnet8")(num_classes=10).get_submodule("layer2.0")
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(1, 16, 5, 5)
    out = block(images)
    # as many before as after, as in public code and checkpoints
    assert torch.equal(out[:, 8:24], images[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


def test_half_resnet50_has_the_parameter_names_of_resnet50() -> None:
    half, whole = (build_without_storage(name, 10).state_dict() for name in ("resnet50_half", "resnet50"))
    assert list(half) == list(whole)
    assert half["layer3.1.conv2.weight"].shape == (128, 128, 3, 3)
    assert half["layer3.1.conv3.weight"].shape == (1024, 128, 1, 1)


def test_a_file_with_convolutions_in_its_shortcuts_is_a_model_with_them(tmp_path: Path) -> None:
    for options in ({}, {"shortcut": "conv"}):
        torch.save(build.find("resnet20")(num_classes=10, **options).state_dict(), tmp_path / "model.pt")
        assert build.options_for("resnet20", tmp_path / "model.pt") == options
