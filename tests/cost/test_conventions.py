from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import on_meta
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.cost.conventions import Convention, forward_flops
from acdc_cli.cost.count import Operation, operations
from acdc_cli.sparsity.distributions import kept_erk, kept_per_layer
from acdc_cli.sparsity.prunable import layers, pruned

CONVENTIONS: list[Convention] = ["A", "B", "C"]
every_convention = pytest.mark.parametrize("convention", CONVENTIONS)


class Small(nn.Module):
    """Of every kind of operation one, or two of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.register_buffer("blur", torch.ones(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = F.conv2d(x, self.blur, padding=1, groups=4)
        x = x.flatten(2).transpose(1, 2)
        return self.fc(F.scaled_dot_product_attention(x, x, x))


# 8 x 8 -> 4 x 4 with 4 channels -> 2 x 2 -> 4 tokens of 4 -> 4 tokens of 5
CONV, NORM, RELU, POOL, BLUR, ATTENTION, LINEAR = 27 * 4 * 16, 64, 64, 16, 9 * 16, 2 * 4 * 4 * 4, 4 * 20


def test_each_convention_counts_what_it_says() -> None:
    counted = operations(Small(), 8)
    assert forward_flops(counted, None, "A") == 2 * (CONV + LINEAR)
    assert forward_flops(counted, None, "B") == (
        2 * (CONV + LINEAR + BLUR + ATTENTION) + 4 * 5 + 2 * NORM + RELU + 4 * POOL
    )
    # (8 + 2·1) / 2 = 5 positions along each side
    assert forward_flops(counted, None, "C") == (2 * 27 + 1) * 4 * 25 + (2 * 4 + 1) * 4 * 5


def test_zeros_are_not_counted() -> None:
    counted = operations(Small(), 8)
    kept = {"conv.weight": 11, "fc.weight": 3}
    assert forward_flops(counted, kept, "A") == 2 * (11 * 16 + 3 * 4)
    dense = forward_flops(counted, None, "B")
    assert forward_flops(counted, kept, "B") == dense - 2 * (97 * 16 + 17 * 4)
    assert forward_flops(counted, kept, "C") == (2 * 11 + 4) * 25 + (2 * 3 + 5) * 4


def test_a_layer_that_is_not_named_is_dense() -> None:
    counted = operations(Small(), 8)
    assert forward_flops(counted, {"fc.weight": 20}, "A") == forward_flops(counted, {}, "A") == 2 * (CONV + LINEAR)


def test_counts_are_exact_even_where_they_are_no_whole_numbers() -> None:
    counted = operations(Small(), 8)
    assert forward_flops(counted, {"conv.weight": Fraction(1, 3), "fc.weight": 0}, "A") == Fraction(32, 3)
    assert isinstance(forward_flops(counted, None, "C"), int)


def test_resnet50_under_each_convention(resnet50: list[Operation]) -> None:
    assert forward_flops(resnet50, None, "A") == 8_178_368_512
    # + 1000 biases, 2 per element of 11,113,984 normalised, 9,608,704 of ReLUs, 9 and 49 per pooled
    elements = {kind: sum(each.elements for each in resnet50 if each.kind == kind) for kind in ("norm", "activation")}
    assert elements == {"norm": 11_113_984, "activation": 9_608_704}
    expected = 8_178_368_512 + 1000 + 2 * 11_113_984 + 9_608_704 + 9 * 64 * 56**2 + 49 * 2048
    assert forward_flops(resnet50, None, "B") == expected
    # 1 per output, and 115² instead of 112² outputs of the stem
    more = (115**2 - 112**2) * 64
    assert forward_flops(resnet50, None, "C") == 8_178_368_512 + 11_113_984 + 1000 + more * (2 * 147 + 1)


SPARSITY = st.integers(0, 999).map(lambda thousandths: thousandths / 1000)
MOBILENET = operations(on_meta("mobilenet_v1"), 64)
SHAPES = {name: weight.shape for name, weight in pruned(layers(on_meta("mobilenet_v1"), [])).items()}
SIZES = {name: shape.numel() for name, shape in SHAPES.items()}


@every_convention
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@given(pair=st.tuples(SPARSITY, SPARSITY).map(sorted))
@settings(max_examples=15, deadline=None)
def test_cost_never_rises_with_sparsity(convention: Convention, distribution: str, pair: list[float]) -> None:
    def cost(sparsity: float) -> int | Fraction:
        if distribution == "uniform":
            return forward_flops(MOBILENET, kept_per_layer(SIZES, sparsity), convention)
        dimensions = {name: sum(shape) for name, shape in SHAPES.items()}
        return forward_flops(MOBILENET, kept_erk(dimensions, SIZES, sparsity), convention)

    lower, higher = pair
    assert cost(0.0) == forward_flops(MOBILENET, None, convention)
    assert cost(higher) <= cost(lower) <= cost(0.0)
