"""Dead channels go and the function stays: in double precision to 1e-10, and through `acdc export --shrink`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Acdc
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acdc_cli.analysis.base.reach import dead_inputs
from acdc_cli.deploy.shrinking import Shrunk, Size, shrunk
from acdc_cli.jobs import export_run
from acdc_cli.models.blurpool import apply_blurpool
from acdc_cli.models.build import build
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.load import load
from acdc_cli.sparsity.prunable import layers
from acdc_cli.training.checkpoint import save_model

SHIFTS = "blurred by shifts"
MODELS = {
    "resnet8": (ModelBlock(name="resnet8"), 32),
    "resnet18": (ModelBlock(name="resnet18"), 64),
    "resnet20": (ModelBlock(name="resnet20"), 32),
    "resnet50": (ModelBlock(name="resnet50"), 64),
    "mobilenet": (ModelBlock(name="mobilenet_v1"), 32),
    "wideresnet": (ModelBlock(name="wideresnet16_4"), 16),
    "blurred": (ModelBlock(name="resnet50_half", blurpool=True), 32),
    SHIFTS: (ModelBlock(name="resnet50_half", blurpool=True, blur="shifts"), 32),
    "blurred depthwise": (ModelBlock(name="mobilenet_v1", blurpool=True), 32),
    "batch norms with activations": (ModelBlock(name="timm:mobilenetv2_035"), 32),
}


def pruned(model: nn.Module, side: int, share: float = 0.28, seed: int = 0) -> nn.Module:
    """In float64 and eval mode; this share of the filters is zero, and batch norms have statistics near those of noise,
    so that logits depend on the image, and affine parameters at random, so that constants are of both signs."""
    model.double().train().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight[draw(len(module.weight)) < share] = 0
            if module.bias is not None:
                module.bias.copy_(draw(len(module.bias)) - 0.5)
    for norm in norms:
        norm.weight.copy_((draw(norm.num_features) + 0.5) * (draw(norm.num_features) - 0.2).sign())
        norm.bias.copy_(draw(norm.num_features) - 0.4)
        norm.momentum = None
    model(draw(2, 3, side, side))
    for norm in norms:
        norm.running_var.clamp_(min=0.1)
        norm.running_mean.add_(draw(norm.num_features) - 0.5)
    return model.eval()


def check_same_function(model: nn.Module, smaller: nn.Module, side: int, least_spread: float = 1e-3) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, logits = model(images).flatten(1), smaller(images).flatten(1)
    scale = expected.abs().max()
    assert (expected - expected[:1]).abs().max() >= least_spread * scale
    assert (logits - expected).abs().max() <= 1e-10 * scale


def widths(model: nn.Module) -> dict[str, int]:
    return {name: len(each.weight) for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize(
    ("block", "side"),
    [
        # ResNet-8 and half a ResNet-50 have the same blocks, and the blurs' formulations the same channels
        pytest.param(*model, id=name, marks=pytest.mark.slow if name in ("resnet20", "resnet50", SHIFTS) else ())
        for name, model in MODELS.items()
    ],
)
def test_a_model_without_its_dead_channels_is_the_same_function(block: ModelBlock, side: int) -> None:
    torch.manual_seed(0)
    model = pruned(build(block, 10), side)
    before = copy.deepcopy(model.state_dict())
    smaller = shrunk(model, side)
    check_same_function(model, smaller.model, side)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    old, new = widths(model), widths(smaller.model)
    cut = {name for name in old if new[name] != old[name]}
    assert cut
    assert all(new[name] % 16 == 0 for name in cut)
    before, after = smaller.sizes
    assert smaller.removed == before.channels - after.channels == sum(old.values()) - sum(new.values())
    assert before.parameters == sum(each.numel() for each in model.parameters())
    assert after.parameters == sum(each.numel() for each in smaller.model.parameters())
    assert after.macs < before.macs


def small(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).double().eval().requires_grad_(False)


def filters(layer: nn.Conv2d, *values: list[float]) -> nn.Conv2d:
    """The weight of every tap, by output and input."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values)[:, :, None, None].expand_as(layer.weight))
    return layer


def norm(*shifts: float) -> nn.BatchNorm2d:
    """Adds something to each channel."""
    layer = nn.BatchNorm2d(len(shifts), eps=0)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(shifts))
    return layer


def test_a_constant_becomes_the_bias_of_an_unpadded_reader() -> None:
    first = filters(nn.Conv2d(3, 2, 1, bias=False), [1, 1, 1], [0, 0, 0])
    batch_norm = norm(0, 3)
    with torch.no_grad():
        batch_norm.running_mean[1], batch_norm.running_var[1], batch_norm.weight[1] = 1, 4, 2
    # the second channel is (0 - 1) / √4 · 2 + 3 = 2 everywhere
    model = small(first, batch_norm, nn.ReLU(), filters(nn.Conv2d(2, 1, 1, bias=False), [5, 7]))
    smaller = shrunk(model, 4, multiple=1)
    last = smaller.model.get_submodule("3")
    assert (last.weight.flatten().tolist(), last.bias.tolist()) == ([5], [7 * 2])
    assert smaller.model(torch.ones(1, 3, 4, 4).double())[0, 0, 0, 0] == 5 * 3 + 7 * 2
    assert (smaller.removed, smaller.dead) == (1, 1)
    # 2 · 3 + 2 · 2 + 2 parameters and 2 · 3 + 2 weights; then 3 + 2 + 1, and a bias
    assert smaller.sizes == (Size(3, 12, 16 * 8), Size(2, 7, 16 * 4))


def test_before_padding_all_constants_merge_into_the_largest() -> None:
    first = filters(nn.Conv2d(3, 4, 1, bias=False), [1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0])
    # constants 2, 6 and, after ReLU, 0
    last = filters(nn.Conv2d(4, 1, 3, padding=1, bias=False), [5, 3, 1, 9])
    model = small(first, norm(0, 2, 6, -1), nn.ReLU(), last)
    smaller = shrunk(model, 4, multiple=1)
    weight = smaller.model.get_submodule("3").weight
    # 3 · 2 + 1 · 6 = 2 · 6
    assert torch.equal(weight, torch.tensor([5.0, 2.0])[None, :, None, None].expand(1, 2, 3, 3))
    assert smaller.model.get_submodule("3").bias is None
    check_same_function(model, smaller.model, 4)


def test_a_zero_vanishes_before_padding_too() -> None:
    first = filters(nn.Conv2d(3, 2, 1, bias=False), [1, 1, 1], [0, 0, 0])
    model = small(first, norm(0, -1), nn.ReLU(), filters(nn.Conv2d(2, 1, 3, padding=1, bias=False), [5, 3]))
    smaller = shrunk(model, 4, multiple=1)
    assert widths(smaller.model) == {"0": 1, "3": 1}
    assert smaller.model.get_submodule("3").bias is None
    check_same_function(model, smaller.model, 4)


def test_a_blur_pads_before_a_layer_that_does_not() -> None:
    torch.manual_seed(0)
    first = filters(nn.Conv2d(3, 16, 1), [1, 1, 1], *[[0, 0, 0]] * 15)
    model = small(first, norm(*range(16)), nn.ReLU(), nn.Conv2d(16, 2, 1, stride=2))
    assert apply_blurpool(model) == ["3"]
    smaller = shrunk(model, 6, multiple=1)
    assert widths(smaller.model) == {"0": 2, "3": 2}
    check_same_function(model, smaller.model, 6)


def test_what_reads_constants_alone_is_dead_too() -> None:
    first = filters(nn.Conv2d(3, 2, 1), [1, 1, 1], [0, 0, 0])
    second = filters(nn.Conv2d(2, 2, 3), [1, 1], [0, 1])
    model = small(first, norm(0, 1), nn.ReLU(), second, norm(0, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    smaller = shrunk(model, 4, multiple=1)
    # a flattened map is not one channel each, so that the second layer stays
    assert widths(smaller.model) == {"0": 1, "3": 2, "7": 3}
    check_same_function(model, smaller.model, 4)
    pooled = small(*model[:6], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    smaller = shrunk(pooled, 4, multiple=1)
    assert widths(smaller.model) == {"0": 1, "3": 1, "8": 3}
    check_same_function(pooled, smaller.model, 4)


@pytest.mark.parametrize(
    ("padding", "shift", "left"),
    [
        pytest.param(1, -1, 1, id="a zero goes"),
        pytest.param(0, 1, 1, id="a constant goes without padding"),
        pytest.param(1, 1, 2, id="a constant that padding makes uneven stays"),
    ],
)
def test_a_depthwise_layer_loses_the_channels_that_stay_constant(padding: int, shift: float, left: int) -> None:
    torch.manual_seed(0)
    first = filters(nn.Conv2d(3, 2, 1, bias=False), [1, 1, 1], [0, 0, 0])
    depthwise = nn.Conv2d(2, 2, 3, padding=padding, groups=2)
    model = small(first, norm(0, shift), nn.ReLU(), depthwise, norm(0.5, 0.7), nn.ReLU(), nn.Conv2d(2, 3, 1))
    smaller = shrunk(model, 5, multiple=1)
    assert widths(smaller.model) == {"0": left, "3": left, "6": 3}
    assert smaller.model.get_submodule("3").groups == left
    check_same_function(model, smaller.model, 5)


def test_a_batch_norm_of_scale_zero_makes_a_channel_dead() -> None:
    batch_norm = norm(0, 1)
    with torch.no_grad():
        batch_norm.weight[1] = 0
    first = filters(nn.Conv2d(3, 2, 1), [1, 1, 1], [1, 2, 3])
    model = small(first, batch_norm, nn.ReLU(), nn.Conv2d(2, 3, 1))
    smaller = shrunk(model, 4, multiple=1)
    assert widths(smaller.model) == {"0": 1, "3": 3}
    check_same_function(model, smaller.model, 4)


def test_a_layer_without_any_weight_keeps_the_least_width() -> None:
    torch.manual_seed(0)
    model = pruned(build(ModelBlock(name="resnet8"), 10), 32)
    model.get_submodule("layer3.0.conv1").weight.zero_()
    smaller = shrunk(model, 32)
    assert widths(smaller.model)["layer3.0.conv1"] == 16
    check_same_function(model, smaller.model, 32)


def test_grouped_layers_and_layers_that_are_called_twice_stay() -> None:
    torch.manual_seed(0)
    twice = nn.Conv2d(8, 8, 1)
    chain = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.ReLU()]
    model = pruned(nn.Sequential(*chain, twice, nn.ReLU(), twice, nn.ReLU(), nn.Conv2d(8, 8, 1)), 8, share=0.5)
    smaller = shrunk(model, 8, multiple=1)
    assert smaller.dead > 0
    assert smaller.removed == 0
    assert smaller.model is model
    assert "channels of small are dead, but residual streams keep their channels" in smaller.described("small")


def test_what_the_analysis_calls_dead_is_gone_but_for_a_carrier() -> None:
    torch.manual_seed(0)
    model = pruned(build(ModelBlock(name="resnet50_half"), 10), 32)
    smaller = shrunk(model, 32, multiple=1).model
    dead = {name: int(each.sum()) for name, each in dead_inputs(smaller, layers(smaller, ()), 32).items()}
    assert all(count <= 1 for name, count in dead.items() if name.endswith("conv2"))
    assert all(count == 0 for name, count in dead.items() if name.endswith("conv3"))
    assert any(count == 1 for name, count in dead.items() if name.endswith("conv2"))


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images if images.mean() > 0 else -images)


@pytest.mark.parametrize(
    ("create", "said"),
    [
        (
            lambda: build(ModelBlock(name="timm:vit_tiny_patch16_224", options={"img_size": 32, "depth": 2}), 10),
            "nothing to shrink: no channel of this is dead",
        ),
        (lambda: build(ModelBlock(name="resnet8"), 10), "nothing to shrink: no channel"),
        (Choosing, "nothing to shrink: this cannot be traced (symbolically traced variables cannot be used as inputs"),
    ],
    ids=["vit", "dense", "untraced"],
)
def test_a_model_without_dead_channels_is_left_untouched(create: Callable[[], nn.Module], said: str) -> None:
    model = create().eval()
    smaller = shrunk(model, 32)
    assert smaller.model is model
    assert smaller.removed == 0
    assert smaller.described("this").startswith(said)


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions with batch norm and ReLU, some of them depthwise, and a classifier."""
    modules: list[nn.Module] = []
    width = 3
    for _ in range(draw(st.integers(2, 4))):
        kernel = draw(st.sampled_from([1, 3]))
        padding = draw(st.integers(0, kernel // 2))
        depthwise = width != 3 and draw(st.booleans())
        before, width = width, width if depthwise else draw(st.integers(1, 6))
        groups = before if depthwise else 1
        modules += [nn.Conv2d(before, width, kernel, padding=padding, groups=groups, bias=draw(st.booleans()))]
        modules += [nn.BatchNorm2d(width), draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Identity()]))]
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


@given(chains(), st.integers(0, 99), st.sampled_from([0.3, 0.6]), st.sampled_from([1, 4]))
def test_any_chain_keeps_its_function(model: nn.Sequential, seed: int, share: float, multiple: int) -> None:
    pruned(model, 9, share, seed)
    check_same_function(model, shrunk(model, 9, multiple).model, 9, least_spread=0)


def save_pruned(run: Path, folder: Path, share: float) -> Path:
    """A ResNet-8 that the run's data fits; this share of the filters of the last block's first layer is zero."""
    recipe = load(run / "resolved.yaml", ["model.name=resnet8"])
    torch.manual_seed(0)
    model = build(recipe.model, 10)
    layer = model.get_submodule("layer3.0.conv1")
    with torch.no_grad():
        layer.weight[: round(share * len(layer.weight))] = 0
        model.get_submodule("layer3.0.bn1").bias.fill_(0.5)
    save_model(folder / "pruned.safetensors", model, {"recipe": recipe.as_dict()})
    return folder / "pruned.safetensors"


def test_an_exported_file_is_smaller_and_agrees(run: Path, tmp_path: Path, acdc: Acdc, exported_as) -> None:
    source = save_pruned(run, tmp_path, 0.6)
    done = acdc("export", source, "--format", "onnx", "--with-preprocessing", "--shrink", "--json")
    assert done.exit_code == 0, done.output
    assert "32 of 250 channels of resnet8 removed: 0.08 to 0.05 million parameters" in done.stderr
    document = json.loads(done.stdout)
    before, after = document["shrunk"]["before"], document["shrunk"]["after"]
    assert (document["shrunk"]["removed"], before["channels"], after["channels"]) == (32, 250, 218)
    # filters of 32 inputs and for 64 outputs, of 9 weights each, and batch norm
    assert before["parameters"] - after["parameters"] == 32 * (32 + 64) * 9 + 2 * 32
    assert document["bytes"] < 4 * before["parameters"]
    assert document["check"]["difference"] <= 1e-5
    assert "shrunk" not in exported_as("packed").as_dict()


@pytest.mark.slow
def test_where_nothing_is_dead_the_export_goes_on(run: Path, tmp_path: Path, acdc: Acdc) -> None:
    done = acdc("export", save_pruned(run, tmp_path, 0), "--format", "pt2", "--shrink")
    assert done.exit_code == 0, done.output
    assert "nothing to shrink: no channel of resnet8 is dead" in done.stderr
    assert (tmp_path / "pruned.pt2").exists()


def test_another_function_is_refused(run: Path, tmp_path: Path, acdc: Acdc, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: nn.Module, side: int) -> Shrunk:
        smaller = shrunk(model, side)
        smaller.model.get_submodule("fc").weight.mul_(1.0001)
        return smaller

    monkeypatch.setattr(export_run, "shrunk", spoilt)
    done = acdc("export", save_pruned(run, tmp_path, 0.6), "--format", "pt2", "--shrink")
    assert done.exit_code == 2
    assert "resnet8 without its dead channels is not the same model" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pruned.safetensors"]
