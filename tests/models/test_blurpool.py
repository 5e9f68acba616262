import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from acdc_cli.errors import ModelError
from acdc_cli.models import build
from acdc_cli.models.blurpool import apply_blurpool

Blur = Literal["convolution", "shifts"]
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


class Blurred(nn.Module):
    """The definition: a depthwise convolution with the binomial filter, stride 1, zero padding, then `conv`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        channels = conv.in_channels
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise.weight.data = BINOMIAL.to(conv.weight.dtype).expand_as(self.depthwise.weight)
        self.conv = copy.deepcopy(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.depthwise(x))


@pytest.fixture(params=["convolution", "shifts"])
def blur(request: pytest.FixtureRequest) -> Blur:
    chosen: Blur = request.param
    return chosen


CONVOLUTIONS = [
    nn.Conv2d(16, 8, 3, stride=2, padding=1),
    nn.Conv2d(16, 8, 1, stride=2, bias=False),
    nn.Conv2d(16, 8, 1, stride=3, padding="valid"),
    nn.Conv2d(16, 8, 1, stride=2, padding=1),
    nn.Conv2d(16, 32, 1, stride=(2, 3), groups=16),
    nn.Conv2d(16, 32, 3, stride=(1, 2), padding=1, groups=16),
]
SIZES = [(9, 8), (8, 8), (7, 1), (1, 1)]


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:resnet50"])
def test_in_resnet50_exactly_the_six_strided_convolutions_after_the_stem_are_blurred(name: str) -> None:
    with torch.device("meta"):
        model = build.find(name)(num_classes=10)
    assert sorted(apply_blurpool(model)) == RESNET50_BLURRED


def test_in_mobilenet_the_four_strided_depthwise_convolutions_are_blurred() -> None:
    with torch.device("meta"):
        model = build.find("mobilenet_v1")(num_classes=10)
    assert apply_blurpool(model) == [f"blocks.{index}.depthwise" for index in (1, 3, 5, 11)]


def test_names_and_parameters_stay_those_of_the_plain_model(blur: Blur) -> None:
    model = build.find("resnet8")(num_classes=10)
    state, parameters, convs = list(model.state_dict()), dict(model.named_parameters()), dict(model.named_modules())
    changed = apply_blurpool(model, blur)
    assert changed == ["layer2.0.conv1", "layer3.0.conv1"]
    assert list(model.state_dict()) == state
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(model.get_submodule(name) is convs[name] for name in changed)


def test_an_impulse_spreads_as_the_binomial_filter(blur: Blur) -> None:
    conv = subsampling()
    apply_blurpool(nn.Sequential(conv), blur)
    impulse = torch.zeros(1, 16, 5, 5)
    impulse[0, 3, 1, 2] = 16.0
    # rows and columns 0, 2, 4 of the blurred impulse around (1, 2)
    expected = torch.zeros(1, 16, 3, 3)
    expected[0, 3] = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(conv(impulse), expected)


def test_a_constant_stays_inside_and_fades_at_the_border_into_the_zero_padding(blur: Blur) -> None:
    conv = subsampling()
    apply_blurpool(nn.Sequential(conv), blur)
    # 3/4 at an edge, 9/16 in a corner
    expected = torch.tensor([[9.0, 12.0, 9.0], [12.0, 16.0, 12.0], [9.0, 12.0, 9.0]]) / 16
    assert torch.equal(conv(torch.ones(1, 16, 5, 5)), expected.expand(1, 16, 3, 3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_it_equals_a_depthwise_convolution_in_front(conv: nn.Conv2d, size: tuple[int, int], blur: Blur) -> None:
    conv = copy.deepcopy(conv).double()
    torch.manual_seed(0)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    defined = Blurred(conv)
    expected = defined(x)
    wanted = torch.autograd.grad(expected.square().sum(), [x, defined.conv.weight])
    apply_blurpool(nn.Sequential(conv), blur)
    blurred = conv(x)
    torch.testing.assert_close(blurred, expected)
    for gradient, each in zip(torch.autograd.grad(blurred.square().sum(), [x, conv.weight]), wanted, strict=True):
        torch.testing.assert_close(gradient, each)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_a_1x1_convolution_the_kept_values_are_those_of_a_whole_blur_to_the_bit(
    layout: torch.memory_format, dtype: torch.dtype, blur: Blur
) -> None:
    conv = subsampling(32).to(dtype)
    apply_blurpool(nn.Sequential(conv), blur)
    torch.manual_seed(0)
    x = torch.randn(4, 32, 11, 12).to(dtype=dtype, memory_format=layout)
    [hook] = conv._forward_pre_hooks.values()
    whole = hook.func(conv, (x,), stride=(1, 1))
    assert torch.equal(conv(x), whole[:, :, ::2, ::2])


def test_the_shifts_can_be_differentiated_twice() -> None:
    for stride in (1, 2):
        conv = nn.Conv2d(16, 16, 1 if stride == 2 else 2, stride=2).double()
        apply_blurpool(nn.Sequential(conv), "shifts")
        x = torch.randn(1, 16, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(conv, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(conv, x, fast_mode=True)


def test_only_unpadded_1x1_convolutions_give_their_stride_to_the_blur() -> None:
    with torch.device("meta"):
        model = build.find("resnet50")(num_classes=10)
    apply_blurpool(model)
    strides = {name: model.get_submodule(name).stride for name in RESNET50_BLURRED}
    assert strides == {name: (1, 1) if "downsample" in name else (2, 2) for name in RESNET50_BLURRED}


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(15, 32, 3, stride=2), nn.Conv2d(16, 32, 3), nn.ConvTranspose2d(16, 16, 3, stride=2), nn.Linear(16, 16)],
)
def test_a_model_without_such_a_convolution_is_refused(conv: nn.Module) -> None:
    with pytest.raises(ModelError, match="no convolution with stride > 1"):
        apply_blurpool(nn.Sequential(conv))


@pytest.mark.parametrize("blur", ["convolution", pytest.param("shifts", marks=pytest.mark.slow)], indirect=True)
def test_a_copy_and_a_compiled_model_blur_too(blur: Blur) -> None:
    torch.manual_seed(0)
    model = build.find("resnet8")(num_classes=10).eval()
    x = torch.randn(2, 3, 16, 16)
    plain = model(x)
    apply_blurpool(model, blur)
    blurred = model(x)
    assert not torch.allclose(plain, blurred)
    assert torch.equal(copy.deepcopy(model)(x), blurred)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), blurred, atol=1e-6)


def test_it_keeps_channels_last_and_follows_autocast(blur: Blur) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2)).to(memory_format=torch.channels_last)
    apply_blurpool(model, blur)
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    assert model(x).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), model(x), atol=0.05)


def test_the_filter_follows_the_model_to_another_precision(blur: Blur) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2))
    apply_blurpool(model, blur)
    assert model.double()(torch.randn(1, 16, 8, 8, dtype=torch.float64)).dtype == torch.float64
