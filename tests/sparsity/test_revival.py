import torch
from torch import nn

from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.revival import clip_filters, filters_with_weights


def layer(gradient: list[list[float]]) -> MaskedParameters:
    """Filters of two weights each, with these gradients."""
    weight = nn.Parameter(torch.ones(len(gradient), 2, 1, 1))
    weight.grad = torch.tensor(gradient, dtype=torch.float32).view(-1, 2, 1, 1)
    return MaskedParameters({"a": weight})


def clipped(gradient: list[list[float]], living: list[bool]) -> list[list[float]]:
    masked = layer(gradient)
    clip_filters(masked, {"a": torch.tensor(living)})
    kept = masked.parameters["a"].grad
    assert kept is not None
    rows: list[list[float]] = kept.flatten(1).tolist()
    return rows


def test_the_filters_with_weights_are_told_where_some_have_none() -> None:
    masks = {"a": torch.ones(3, 2, 1, 1, dtype=torch.bool), "b": torch.tensor([[False, True], [True, False]])}
    assert filters_with_weights(masks) == {}
    masks["b"][1] = False
    living = filters_with_weights(masks)
    assert {name: filters.tolist() for name, filters in living.items()} == {"a": [True] * 3, "b": [True, False]}


def test_no_filters_gradient_is_longer_than_the_median_of_those_with_weights() -> None:
    # norms 1, 5 and 10 of filters with weights, of which 5 is the median; 50 of one that returns
    gradient = [[1, 0], [3, 4], [6, 8], [30, 40]]
    assert clipped(gradient, [True, True, True, False]) == [[1, 0], [3, 4], [3, 4], [3, 4]]


def test_a_filter_without_a_gradient_does_not_lower_the_median() -> None:
    assert clipped([[0, 0], [0, 0], [3, 4], [6, 8]], [True, True, True, False]) == [[0, 0], [0, 0], [3, 4], [3, 4]]


def test_a_layer_without_any_weight_does_not_return() -> None:
    assert clipped([[3, 4], [0, 0]], [False, False]) == [[0, 0], [0, 0]]


def test_where_every_filter_of_every_layer_has_a_weight_nothing_is_clipped() -> None:
    masked = layer([[1, 0], [3, 4]])
    clip_filters(masked, filters_with_weights(masked.masks))
    gradient = masked.parameters["a"].grad
    assert gradient is not None
    assert gradient.flatten(1).tolist() == [[1, 0], [3, 4]]


def test_a_layer_that_the_step_did_not_use_has_nothing_to_clip() -> None:
    masked = layer([[3, 4]])
    masked.parameters["a"].grad = None
    clip_filters(masked, {"a": torch.tensor([False])})
    assert masked.parameters["a"].grad is None


def test_an_infinite_gradient_stays_for_the_step_to_be_skipped() -> None:
    assert not torch.tensor(clipped([[1, 0], [float("inf"), 0], [0, 1]], [True, True, True])).isfinite().all()
