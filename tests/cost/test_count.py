from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from nets import on_meta, weight_macs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from acdc_cli.cost.count import Operation, operations
from acdc_cli.errors import ModelError
from acdc_cli.models import build as models
from acdc_cli.models.blurpool import apply_blurpool
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.text import TextBlock
from acdc_cli.sparsity.prunable import layers


def by_name(counted: list[Operation]) -> dict[str, Operation]:
    assert len({operation.name for operation in counted}) == len(counted)
    return {operation.name: operation for operation in counted}


def test_resnet50_is_exact_to_the_multiplication(resnet50: list[Operation]) -> None:
    assert weight_macs(resnet50) == 4_089_184_256
    assert Counter(operation.kind for operation in resnet50) == {
        "conv": 53,
        "linear": 1,
        "norm": 53,
        "activation": 49,
        "pool": 2,
    }


def test_resnet18_is_its_closed_form() -> None:
    def stage(width: int, side: int) -> int:
        first, others, shortcut = 9 * width // 2 * width, 3 * 9 * width**2, width // 2 * width
        return (first + others + shortcut) * side**2

    stem, classifier = 7 * 7 * 3 * 64 * 112**2, 512 * 1000
    expected = stem + 4 * 9 * 64**2 * 56**2 + stage(128, 28) + stage(256, 14) + stage(512, 7) + classifier
    assert weight_macs(operations(on_meta("resnet18"), 224)) == expected


def test_mobilenet_is_its_closed_form() -> None:
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    sides = [112, 56, 56, 28, 28, *[14] * 6, 7, 7]
    separable = sum(
        9 * before * side**2 + before * after * side**2
        # a block's stride is that of its depthwise convolution
        for before, after, side in zip(widths[:-1], widths[1:], sides, strict=True)
    )
    counted = operations(on_meta("mobilenet_v1"), 224)
    assert weight_macs(counted) == 9 * 3 * 32 * 112**2 + separable + 1024 * 1000
    # its ReLUs and its pooling are functions, no modules
    assert Counter(operation.kind for operation in counted) == {
        "conv": 27,
        "linear": 1,
        "norm": 27,
        "activation": 27,
        "pool": 1,
    }


def test_a_vision_transformer_is_its_closed_form_attention_apart() -> None:
    tokens, width = 14 * 14 + 1, 384
    counted = operations(on_meta("timm:vit_small_patch16_224"), 224)
    patches = 16 * 16 * 3 * width * 14 * 14
    block = tokens * (3 * width**2 + width**2 + 2 * width * 4 * width)
    assert weight_macs(counted) == patches + 12 * block + width * 1000
    parts = {operation.name: operation.macs for operation in counted if operation.kind == "attention"}
    assert len(parts) == 24
    assert set(parts.values()) == {tokens * tokens * width}
    assert {"blocks.0.attn (scores)", "blocks.11.attn (values)"} <= parts.keys()


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_attention_of_torchvision_is_counted_though_it_calls_no_linear_module(name: str) -> None:
    model = on_meta(name)
    counted = {operation.parameter_name for operation in operations(model, 224)}
    pruned_ones = {layer.parameter_name for layer in layers(model, [])}
    assert pruned_ones <= counted


def test_convolutions_of_every_kind_are_their_closed_forms() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.Conv2d(8, 12, 3, groups=4, padding=1, bias=False),
        nn.Conv2d(12, 12, 3, groups=12, stride=2),
        nn.Conv2d(12, 6, 3, dilation=2, padding="same"),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 9, 7),
    )
    counted = by_name(operations(model, 20))
    # 20 x 20 -> 10 x 20 -> 10 x 20 -> 4 x 9 -> 4 x 9 -> 8 x 18 -> 4 x 9
    expected = {
        "0": (3 * 5 * 3 * 8, 10 * 20),
        "1": (3 * 3 * 2 * 12, 10 * 20),
        "2": (3 * 3 * 1 * 12, 4 * 9),
        "3": (3 * 3 * 12 * 6, 4 * 9),
        "4": (2 * 2 * 6 * 4, 4 * 9),
        "7": (4 * 4 * 9 * 7, 1),
    }
    for name, (weights, positions) in expected.items():
        operation = counted[name]
        assert (operation.weights, operation.positions, operation.macs) == (weights, positions, weights * positions)
    assert counted["4"].elements == 4 * 8 * 18
    assert (counted["5"].kind, counted["5"].taps, counted["5"].elements) == ("pool", 4, 4 * 4 * 9)
    assert [counted[name].bias for name in expected] == [True, False, True, True, True, True]


def test_only_the_first_convolutions_padding_becomes_part_of_the_image(resnet50: list[Operation]) -> None:
    counted = by_name([operation for operation in resnet50 if operation.kind == "conv"])
    assert (counted["conv1"].positions, counted["conv1"].same_positions) == (112**2, 115**2)
    strided = counted["layer2.0.conv2"]
    assert strided.positions == strided.same_positions == 28**2


def test_a_tied_weight_is_counted_where_it_is_used_by_its_first_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    model[3].weight = model[1].weight
    counted = [operation for operation in operations(model, 2) if operation.kind == "linear"]
    assert [(operation.parameter_name, operation.macs) for operation in counted] == [("1.weight", 144)] * 2


def test_a_standardised_weight_is_that_of_its_module() -> None:
    counted = operations(on_meta("timm:resnetv2_50x1_bit"), 224)
    convolutions = [operation for operation in counted if operation.kind == "conv"]
    assert all(operation.parameter_name == f"{operation.name}.weight" for operation in convolutions)
    # the standardisation itself is of the weights, whatever the image
    assert not [operation for operation in counted if operation.name.endswith("conv1") and operation.kind == "norm"]


def test_blurs_are_counted_in_the_convolution_they_stand_before(resnet50: list[Operation]) -> None:
    blurred = operations(on_meta("resnet50", blurpool=True), 224)
    blurs = {operation.name: operation for operation in blurred if operation.kind == "blur"}
    assert len(blurs) == 6
    first = blurs["layer2.0.conv2 (blur)"]
    assert (first.macs, first.taps, first.parameter_name) == (9 * 128 * 56**2, 9, None)
    # a 1x1 convolution with stride 2 reads a quarter of the values; the others are not computed
    assert blurs["layer2.0.downsample.0 (blur)"].macs == 9 * 256 * 28**2
    assert weight_macs(blurred) == weight_macs(resnet50)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_100",
        "vit_tiny_patch16_224",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet26t", "swin_tiny_patch4_window7_224", "convnext_atto")
        ),
    ],
)
def test_torchs_own_counter_agrees_on_timms_models(name: str) -> None:
    """On a pass with real weights, where ours has none.

    It knows no biases, norms, activations and pooling, so they are left out here, and it misses attention where that
    runs as the CPU's fused kernel, so that is switched off. No other difference is left.
    """
    model = timm.create_model(name).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert 2 * sum(operation.macs for operation in operations(model, 224)) == counter.get_total_flops()


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, stride=2))
    apply_blurpool(model)
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    operations(model, 16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooks == [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert [module.training for module in model] == [True, False, True]


def test_nothing_is_drawn_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    operations(on_meta("timm:vit_small_patch16_224"), 224)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_large_model_never_gets_weights() -> None:
    model = on_meta("timm:vit_giant_patch14_224")
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**9
    assert weight_macs(operations(model, 224)) > 2 * 10**11
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_counting_runs_each_layer_once_and_without_weights() -> None:
    model, calls = on_meta("resnet50"), list[tuple[int, str]]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: calls.append((id(module), inputs[0].device.type)))
    operations(model, 224)
    assert len(calls) == len(set(calls)) == 54
    assert {device for _, device in calls} == {"meta"}


def test_a_size_that_the_model_refuses_is_an_error_of_the_user() -> None:
    with pytest.raises(ModelError, match="takes no images of 160 pixels"):
        operations(on_meta("timm:vit_small_patch16_224"), 160)


class Quarters(nn.Module):
    """Shows a convolution each quarter of the image, as a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        quarters = F.pixel_unshuffle(x.transpose(0, 1), 2).transpose(0, 1)
        return self.conv(quarters).flatten().unsqueeze(0)


def test_a_convolution_of_parts_of_the_image_is_counted_for_each() -> None:
    (conv,) = operations(Quarters(), 8)
    # 8 x 8 -> 4 of 4 x 4 -> 4 of 2 x 2, or of (4 + 2·1) / 2 = 3 x 3
    assert (conv.positions, conv.same_positions, conv.elements) == (4 * 4, 4 * 9, 4 * 4 * 4)
    assert conv.macs == 4 * 27 * 4 * 4


class Functional(nn.Module):
    """Layers by functions alone, of which torch's modules are only one spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.matrix = nn.Parameter(torch.zeros(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.hardswish(F.conv2d(x, self.kernel)), 2)
        return torch.einsum("nchw,kc->nkhw", x, self.matrix)


def test_functions_count_like_modules() -> None:
    counted = operations(Functional(), 6)
    assert [(operation.kind, operation.parameter_name, operation.macs) for operation in counted] == [
        ("conv", "kernel", 4 * 27 * 16),
        ("activation", None, 0),
        ("pool", None, 0),
        ("linear", "matrix", 20 * 4),
    ]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dimensions", [(2, 3), (-1, -2), (1,), (-3, 3)])
def test_a_mean_has_the_shape_that_torch_gives_it(dimensions: tuple[int, ...], keep: bool) -> None:
    shapes = []

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            shapes.append(images.mean(dimensions, keep))
            return shapes[-1]

    (pooled,) = operations(Mean(), 8)
    assert shapes[0].shape == torch.zeros(1, 3, 8, 8).mean(dimensions, keep).shape
    assert pooled.kind == "pool"
    assert pooled.elements * pooled.taps == 3 * 8 * 8


def test_a_transformer_xl_attends_to_a_full_memory_and_its_segment() -> None:
    model = models.build(ModelBlock(name="transformer_xl", options={"memory": 10, "layers": 3}), 50)
    block = TextBlock(name="text", batch_size=1, length=4)
    counted = operations(model, 4, block)
    attention = [operation.macs for operation in counted if operation.kind == "attention"]
    # 4 queries by content and by distance on 10 + 4 keys, and the values weighted: 128 numbers each
    assert attention == [4 * 14 * 128] * 9
    by_name = {operation.parameter_name: operation.macs for operation in counted if operation.kind == "linear"}
    assert by_name["layers.2.attention.query.weight"] == 4 * 128 * 128
    assert by_name["layers.2.attention.key_value.weight"] == 14 * 128 * 256
    # the softmax multiplies by the embeddings; looking them up is free
    assert by_name["embeddings.tables.0.weight"] == 4 * 128 * 50
    assert model.memory.parts == {}
