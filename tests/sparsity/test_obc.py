"""OBC against removing weights one at a time, solving the least squares of a layer exactly each time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from acdc_cli.errors import ModelError
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.obc import Config, Method, columns, damped, reconstructed, removal_errors

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gram(inputs: int, seed: int, samples: int = 40) -> Tensor:
    x = normal(inputs, samples, seed=seed) + normal(1, samples, seed=seed + 1)
    return x @ x.T


def least_squares(row: Tensor, kept: list[int], hessian: Tensor) -> tuple[Tensor, float]:
    """The best weights on `kept`, by solving for them from X itself, and the squared error of the outputs."""
    x = torch.linalg.cholesky(hessian).T
    best = torch.zeros_like(row)
    if kept:
        best[kept] = torch.linalg.lstsq(x[:, kept], x @ row).solution
    return best, float((x @ (best - row)).square().sum())


def removed_slowly(row: Tensor, hessian: Tensor) -> Tensor:
    """The largest rise of the error up to each weight's removal: the one without which the least error is least goes
    first."""
    kept, rises, error, largest = list(range(len(row))), torch.zeros_like(row), 0.0, 0.0
    while kept:
        without = {q: least_squares(row, [k for k in kept if k != q], hessian)[1] for q in kept}
        q = min(without, key=without.__getitem__)
        largest, error = max(largest, without[q] - error), without[q]
        rises[q] = largest
        kept.remove(q)
    return rises


def test_two_weights_by_hand() -> None:
    # H = [[2, 2], [2, 5]], H^-1 = [[5, -2], [-2, 2]] / 6. Removing w_0 = 3 costs 9 · 6/5, w_1 = 1.5 costs 2.25 · 6/2
    hessian = torch.tensor([[2.0, 2.0], [2.0, 5.0]], dtype=DOUBLE)
    weight = torch.tensor([[3.0, 1.5]], dtype=DOUBLE)
    # w_1 goes first, and w_0 becomes 3 + 1.5 · 2/2 = 4.5, whose removal costs 4.5² · 2
    assert removal_errors(weight, hessian, 2).tolist() == [[pytest.approx(40.5), pytest.approx(6.75)]]
    best = reconstructed(weight, torch.tensor([[True, False]]), hessian)
    assert best.tolist() == [[pytest.approx(4.5), 0]]
    # apart, each costs w² H_qq
    assert removal_errors(weight, hessian, 1).tolist() == [[pytest.approx(18.0), pytest.approx(11.25)]]


@given(inputs=st.integers(1, 7), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_errors_are_those_of_removing_weights_one_at_a_time(inputs: int, rows: int, seed: int) -> None:
    hessian, weight = gram(inputs, seed), normal(rows, inputs, seed=seed + 500)
    errors = removal_errors(weight, hessian, block=inputs)
    expected = torch.stack([removed_slowly(row, hessian) for row in weight])
    torch.testing.assert_close(errors, expected, rtol=1e-6, atol=1e-8)


@given(inputs=st.integers(1, 7), seed=st.integers(0, 99), bits=st.integers(0, 127))
def test_the_weights_that_stay_are_the_least_squares_solution(inputs: int, seed: int, bits: int) -> None:
    hessian, weight = gram(inputs, seed), normal(1, inputs, seed=seed + 500)
    kept = [q for q in range(inputs) if bits >> q & 1]
    mask = torch.zeros(1, inputs, dtype=torch.bool)
    mask[0, kept] = True
    expected, _ = least_squares(weight[0], kept, hessian)
    torch.testing.assert_close(reconstructed(weight, mask, hessian)[0], expected, rtol=1e-6, atol=1e-8)


def test_removing_greedily_is_near_the_best_choice_and_better_than_magnitude() -> None:
    losses: dict[str, list[float]] = {"best": [], "obs": [], "magnitude": []}
    for seed in range(10):
        scale = torch.arange(1, 8, dtype=DOUBLE)
        hessian, weight = gram(7, 3 * seed) * scale[:, None] * scale, normal(1, 7, seed=seed + 500)
        errors = removal_errors(weight, hessian, 7)[0]
        chosen = {"obs": errors.topk(3).indices.tolist(), "magnitude": weight[0].abs().topk(3).indices.tolist()}
        for name, kept in chosen.items():
            losses[name].append(least_squares(weight[0], kept, hessian)[1])
        losses["best"].append(
            min(least_squares(weight[0], list(kept), hessian)[1] for kept in combinations(range(7), 3))
        )
    assert sum(losses["obs"]) < 1.2 * sum(losses["best"])
    assert sum(losses["obs"]) < 0.7 * sum(losses["magnitude"])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (3, 6)),
        (nn.Linear(6, 4), (3, 2, 6)),
        (nn.Conv2d(2, 4, 3, padding=1), (3, 2, 5, 5)),
        (nn.Conv2d(4, 6, (3, 1), stride=2, dilation=2, groups=2, bias=False), (3, 4, 8, 7)),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), (3, 2, 5, 5)),
    ],
)
def test_a_layer_is_a_product_of_its_weight_with_its_columns(layer: Any, shape: tuple[int, ...]) -> None:
    inputs = normal(*shape).float()
    x = columns(layer, inputs)
    rows = layer.weight.detach().reshape(len(x), -1, x.shape[1])
    product = (rows @ x).flatten(0, 1)
    outputs = layer(inputs) - (
        0 if layer.bias is None else layer.bias.view(-1, *[1] * (len(shape) - 2) * (len(shape) == 4))
    )
    expected = outputs.transpose(0, 1).flatten(1) if len(shape) == 4 else outputs.flatten(0, -2).T
    torch.testing.assert_close(product, expected)


def test_inputs_that_are_always_zero_leave_an_invertible_hessian() -> None:
    dampened = damped(
        torch.stack([torch.zeros(2, 2, dtype=DOUBLE), torch.diag(torch.tensor([4.0, 0.0], dtype=DOUBLE))]), 0.5
    )
    assert dampened.tolist() == [[[1, 0], [0, 1]], [[5, 0], [0, 1]]]


class Shown:
    """A run whose images are these."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self._images = model, images

    def forward_passes(self, moment: Moment, images: int) -> Iterator[None]:
        for part in self._images[:images].split(8):
            self.model(part)
            yield


def pruned(model: nn.Module, images: Tensor, **keys: Any) -> Method:
    layers = {name: weight for name, weight in model.named_parameters() if name.endswith("weight") and weight.ndim > 1}
    config = Config(method="obc", **{"target": 0.5, "at": 0, "images": len(images)} | keys)
    method = Method(config, MaskedParameters(layers), epochs=2)
    run: Any = Shown(model, images)
    method.attach(SGD(model.parameters(), lr=0.1), run)
    method.on_epoch_start(Moment(0, 0, 2, 10))
    return method


def test_the_outputs_of_a_convolution_change_less_than_by_magnitude() -> None:
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(16, 4, 12, 12), 5, stride=1)
    model = nn.Conv2d(4, 8, 3)
    before, by_magnitude = model(images).detach(), nn.Conv2d(4, 8, 3)
    by_magnitude.load_state_dict(model.state_dict())
    threshold = model.weight.detach().abs().flatten().median()
    by_magnitude.weight.data *= model.weight.detach().abs() > threshold
    pruned(model, images)
    assert int((model.weight == 0).sum()) == model.weight.numel() // 2
    error, of_magnitude = ((each(images) - before).square().mean().item() for each in (model, by_magnitude))
    assert error < 0.5 * of_magnitude


def test_a_pattern_holds_and_what_stays_compensates() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 16) @ torch.randn(16, 16)
    model = nn.Linear(16, 6, bias=False)
    weight = model.weight.detach().clone()
    method = pruned(model, images, pattern="2:4")
    assert set(method.masked.masks["weight"].view(6, 4, 4).sum(2).flatten().tolist()) == {2}
    hessian = damped((images.double().T @ images.double())[None], 0.01)[0]
    for row, old, mask in zip(model.weight, weight, method.masked.masks["weight"], strict=True):
        expected, _ = least_squares(old.double(), mask.nonzero().flatten().tolist(), hessian)
        torch.testing.assert_close(row.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_a_global_ranking_depends_on_no_layers_scale() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 8)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    scaled = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    scaled.load_state_dict(model.state_dict())
    scaled[0].weight.data *= 100
    first, second = (pruned(each, images).masked.masks for each in (model, scaled))
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())


def test_a_layer_without_columns_is_refused() -> None:
    with pytest.raises(ModelError, match=r"obc prunes linear layers and 2-D convolutions; name '?0'? in"):
        pruned(nn.Sequential(nn.Conv1d(2, 3, 3)), torch.randn(4, 2, 9))
