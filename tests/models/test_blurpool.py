import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.errors import ModelError
from acdc_cli.models import catalog
from acdc_cli.models.blurpool import apply_blurpool

BINOMIAL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16

RESNET50_BLURRED = [
    "layer2.0.conv2",
    "layer2.0.downsample.0",
    "layer3.0.conv2",
    "layer3.0.downsample.0",
    "layer4.0.conv2",
    "layer4.0.downsample.0",
]


def subsampling(channels: int = 16) -> nn.Conv2d:
    """A 1x1 convolution of stride 2 that copies its input."""
    conv = nn.Conv2d(channels, channels, 1, stride=2, bias=False)
    nn.init.dirac_(conv.weight)
    return conv


def blurred_then_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The definition: a depthwise convolution with the binomial filter, zero padding, then the convolution."""
    depthwise = nn.Conv2d(conv.in_channels, conv.in_channels, 3, padding=1, groups=conv.in_channels, bias=False)
    depthwise.weight.data = BINOMIAL.expand_as(depthwise.weight)
    return F.conv2d(depthwise(x), conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:resnet50"])
def test_in_resnet50_exactly_the_six_strided_convolutions_after_the_stem_are_blurred(name: str) -> None:
    with torch.device("meta"):
        model = catalog.find(name)(num_classes=10)
    assert sorted(apply_blurpool(model)) == RESNET50_BLURRED


def test_in_mobilenet_the_four_strided_depthwise_convolutions_are_blurred() -> None:
    with torch.device("meta"):
        model = catalog.find("mobilenet_v1")(num_classes=10)
    assert apply_blurpool(model) == [f"blocks.{index}.depthwise" for index in (1, 3, 5, 11)]


def test_names_and_parameters_stay_those_of_the_plain_model() -> None:
    model = catalog.find("resnet8")(num_classes=10)
    state, parameters, convs = list(model.state_dict()), dict(model.named_parameters()), dict(model.named_modules())
    changed = apply_blurpool(model)
    assert changed == ["layer2.0.conv1", "layer3.0.conv1"]
    assert list(model.state_dict()) == state
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(model.get_submodule(name) is convs[name] for name in changed)


def test_an_impulse_spreads_as_the_binomial_filter() -> None:
    conv = subsampling()
    apply_blurpool(nn.Sequential(conv))
    impulse = torch.zeros(1, 16, 5, 5)
    impulse[0, 3, 1, 2] = 16.0
    # rows and columns 0, 2, 4 of the blurred impulse around (1, 2)
    expected = torch.zeros(1, 16, 3, 3)
    expected[0, 3] = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(conv(impulse), expected)


def test_a_constant_stays_inside_and_fades_at_the_border_into_the_zero_padding() -> None:
    conv = subsampling()
    apply_blurpool(nn.Sequential(conv))
    # 3/4 at an edge, 9/16 in a corner
    expected = torch.tensor([[9.0, 12.0, 9.0], [12.0, 16.0, 12.0], [9.0, 12.0, 9.0]]) / 16
    assert torch.equal(conv(torch.ones(1, 16, 5, 5)), expected.expand(1, 16, 3, 3))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 8, 3, stride=2, padding=1),
        nn.Conv2d(16, 8, 1, stride=2, bias=False),
        nn.Conv2d(16, 32, 3, stride=(1, 2), groups=16),
    ],
)
def test_it_equals_a_depthwise_convolution_in_front(conv: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 8)
    expected = blurred_then_conv(conv, x)
    apply_blurpool(nn.Sequential(conv))
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_gradients_reach_the_weights_and_the_input() -> None:
    conv = nn.Conv2d(16, 8, 3, stride=2, padding=1)
    x = torch.randn(1, 16, 8, 8, requires_grad=True)
    expected = torch.autograd.grad(blurred_then_conv(conv, x).square().sum(), [x, conv.weight])
    apply_blurpool(nn.Sequential(conv))
    found = torch.autograd.grad(conv(x).square().sum(), [x, conv.weight])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(15, 32, 3, stride=2), nn.Conv2d(16, 32, 3), nn.ConvTranspose2d(16, 16, 3, stride=2), nn.Linear(16, 16)],
)
def test_a_model_without_such_a_convolution_is_refused(conv: nn.Module) -> None:
    with pytest.raises(ModelError, match="no convolution with stride > 1"):
        apply_blurpool(nn.Sequential(conv))


def test_a_copy_and_a_compiled_model_blur_too() -> None:
    torch.manual_seed(0)
    model = catalog.find("resnet8")(num_classes=10).eval()
    x = torch.randn(2, 3, 16, 16)
    plain = model(x)
    apply_blurpool(model)
    blurred = model(x)
    assert not torch.allclose(plain, blurred)
    assert torch.equal(copy.deepcopy(model)(x), blurred)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), blurred, atol=1e-6)


def test_it_keeps_channels_last_and_follows_autocast() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2)).to(memory_format=torch.channels_last)
    apply_blurpool(model)
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    assert model(x).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), model(x), atol=0.05)


def test_the_filter_follows_the_model_to_another_precision() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2))
    apply_blurpool(model)
    assert model.double()(torch.randn(1, 16, 8, 8, dtype=torch.float64)).dtype == torch.float64
