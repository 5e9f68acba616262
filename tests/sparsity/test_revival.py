import pytest
import torch
from torch import nn

from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.revival import Returning


@pytest.fixture
def masked() -> MaskedParameters:
    """A layer of three filters of two weights each, and one whose filters all have weights."""
    masked = MaskedParameters({"a": nn.Parameter(torch.ones(3, 2, 1, 1)), "b": nn.Parameter(torch.ones(2, 2))})
    some = torch.tensor([[True, False], [False, False], [True, True]]).view(3, 2, 1, 1)
    masked.set({"a": some, "b": torch.tensor([[True, False], [False, True]])})
    return masked


def gradients(masked: MaskedParameters, a: list[list[float]], b: list[list[float]]) -> None:
    masked.parameters["a"].grad = torch.tensor(a, dtype=torch.float32).view(3, 2, 1, 1)
    masked.parameters["b"].grad = torch.tensor(b, dtype=torch.float32)


def test_filters_without_a_weight_are_marked_in_the_layers_that_have_some(masked: MaskedParameters) -> None:
    returning = Returning(masked)
    assert returning.filters == {}
    returning.mark()
    assert {name: filters.tolist() for name, filters in returning.filters.items()} == {"a": [False, True, False]}
    returning.forget()
    assert returning.filters == {}


def test_a_returning_filters_gradient_is_no_longer_than_the_mean_of_the_others(masked: MaskedParameters) -> None:
    returning = Returning(masked)
    returning.mark()
    masked.fill()
    gradients(masked, [[3, 4], [30, 40], [0, 1]], [[100, 0], [0, 1]])
    returning.clip_gradients()
    # norms 5 and 1 of the others: 3 is left of 50
    a, b = (masked.parameters[name].grad for name in ("a", "b"))
    assert a is not None
    assert b is not None
    assert a.flatten(1).tolist() == [[3, 4], [pytest.approx(1.8), pytest.approx(2.4)], [0, 1]]
    assert b.tolist() == [[100, 0], [0, 1]]


def test_a_short_gradient_stays_as_it_is(masked: MaskedParameters) -> None:
    returning = Returning(masked)
    returning.mark()
    masked.fill()
    given = [[3.0, 4.0], [0.5, 0.0], [0.0, 1.0]]
    gradients(masked, given, [[1, 0], [0, 1]])
    returning.clip_gradients()
    assert masked.parameters["a"].grad is not None
    assert masked.parameters["a"].grad.flatten(1).tolist() == given
    gradients(masked, [[1, 0], [0, 0], [0, 1]], [[1, 0], [0, 1]])
    returning.clip_gradients()
    assert masked.parameters["a"].grad.isfinite().all()


def test_a_layer_without_any_weight_does_not_return(masked: MaskedParameters) -> None:
    masked.set({"a": torch.zeros(3, 2, 1, 1, dtype=torch.bool), "b": torch.ones(2, 2, dtype=torch.bool)})
    returning = Returning(masked)
    returning.mark()
    masked.fill()
    gradients(masked, [[3, 4], [30, 40], [0, 1]], [[1, 0], [0, 1]])
    returning.clip_gradients()
    assert masked.parameters["a"].grad is not None
    assert masked.parameters["a"].grad.count_nonzero() == 0


def test_held_filters_stay_pruned(masked: MaskedParameters) -> None:
    returning = Returning(masked)
    returning.mark()
    held = returning.held()
    assert held["a"].flatten(1).tolist() == [[True, True], [False, False], [True, True]]
    assert held["b"].all()


def test_the_marked_filters_are_saved(masked: MaskedParameters) -> None:
    returning, resumed = Returning(masked), Returning(masked)
    returning.mark()
    resumed.load_state_dict(returning.state_dict())
    assert resumed.filters.keys() == {"a"}
    assert torch.equal(resumed.filters["a"], returning.filters["a"])
