import pytest
import torch
from torch import nn

from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.revival import clip_filters, has_empty_filter


def layer(gradient: list[list[float]]) -> MaskedParameters:
    """Filters of two weights each, with these gradients."""
    weight = nn.Parameter(torch.ones(len(gradient), 2, 1, 1))
    weight.grad = torch.tensor(gradient, dtype=torch.float32).view(-1, 2, 1, 1)
    return MaskedParameters({"a": weight})


def gradients(masked: MaskedParameters) -> list[list[float]]:
    gradient = masked.parameters["a"].grad
    assert gradient is not None
    rows: list[list[float]] = gradient.flatten(1).tolist()
    return rows


@pytest.mark.parametrize(("last", "empty"), [([True, False], False), ([False, False], True)])
def test_a_filter_is_empty_without_a_single_weight(last: list[bool], empty: bool) -> None:
    masks = {"a": torch.ones(3, 2, 1, 1, dtype=torch.bool), "b": torch.tensor([[False, True], last])}
    assert has_empty_filter(masks) is empty


def test_no_filters_gradient_is_longer_than_two_medians_of_its_layer() -> None:
    # norms 1, 5, 10 and 50; the filter without a gradient does not count, so the median is the lower of the middle two
    masked = layer([[1, 0], [3, 4], [0, 0], [6, 8], [30, 40]])
    clip_filters(masked)
    assert gradients(masked) == [[1, 0], [3, 4], [0, 0], [6, 8], [pytest.approx(6), pytest.approx(8)]]


def test_a_layer_without_gradients_keeps_its_zeros() -> None:
    masked = layer([[0, 0], [0, 0]])
    clip_filters(masked)
    assert gradients(masked) == [[0, 0], [0, 0]]


def test_an_infinite_gradient_stays_for_the_step_to_be_skipped() -> None:
    masked = layer([[1, 0], [float("inf"), 0], [0, 1]])
    clip_filters(masked)
    assert not torch.tensor(gradients(masked)).isfinite().all()
