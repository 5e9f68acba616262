"""SNIP: which weights it keeps, from which gradients, and that none has moved by then."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from acdc_cli.errors import RecipeError, RunError
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.snip import Config, Method

NAN, INF = float("nan"), float("inf")


def at(step: int, steps_per_epoch: int = 10) -> Moment:
    return Moment(step // steps_per_epoch, step, 8, steps_per_epoch)


class Run:
    """Layers of one row each, under SGD with momentum and decay."""

    def __init__(self, *layers: list[float], **keys: Any) -> None:
        self.weights = {
            f"{name}.weight": nn.Parameter(torch.tensor([row])) for name, row in zip("ab", layers, strict=False)
        }
        self.optimizer = SGD(self.weights.values(), lr=0.1, momentum=0.9, weight_decay=0.1)
        masked = MaskedParameters(self.weights)
        masked.attach(self.optimizer)
        self.method = Method(Config(**{"method": "snip", "target": 0.5} | keys), masked, epochs=8)

    def step(self, *gradients: list[float]) -> bool:
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = torch.tensor([gradient])
        taken = self.method.on_gradients(at(0))
        if taken:
            self.optimizer.step()
        self.method.after_step(at(0))
        return taken

    @property
    def living(self) -> list[list[int]]:
        return [mask.flatten().nonzero().flatten().tolist() for mask in self.method.masked.masks.values()]

    @property
    def held(self) -> list[list[float]]:
        return [weight.flatten().tolist() for weight in self.weights.values()]


def test_weights_stay_whose_product_with_their_gradient_is_largest() -> None:
    # |w g| is 0, 0.5, 0.2 and 0.3: the largest weight goes, and one of the smallest stays
    run = Run([10.0, 0.1, -2.0, 1.0])
    assert not run.step([0.0, 5.0, -0.1, 0.3])
    assert run.living == [[1, 3]]
    assert run.held == [pytest.approx([0.0, 0.1, 0.0, 1.0])]


def test_a_global_ranking_compares_the_layers() -> None:
    gradients = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, -30.0, 1.0]
    by_layer, by_all = Run([1.0] * 4, [-1.0] * 4, distribution="uniform"), Run([1.0] * 4, [-1.0] * 4)
    by_layer.step(*gradients)
    by_all.step(*gradients)
    assert by_layer.living == [[2, 3], [1, 2]]
    assert by_all.living == [[3], [0, 1, 2]]


@pytest.mark.parametrize(
    ("keys", "living"),
    [
        ({"pattern": "1:2"}, [1, 2, 5, 6]),
        ({"pattern": "block4"}, [4, 5, 6, 7]),
        ({"pattern": "block2"}, [4, 5, 6, 7]),
    ],
)
def test_a_pattern_ranks_by_the_same_product(keys: dict[str, Any], living: list[int]) -> None:
    run = Run([9.0] + [1.0] * 7, **keys)
    run.step([0.0, 1.0, 2.0, 1.0, 1.0, 5.0, -6.0, 0.0])  # |w g|: 0 1 2 1 1 5 6 0
    assert run.living == [living]


def test_gradients_of_several_batches_are_averaged_and_not_their_sizes() -> None:
    # weight 0 has the largest gradient of each batch, of opposite signs
    run = Run([1.0] * 4, batches=2, target=0.75)
    run.step([9.0, 1.0, 2.0, -1.0])
    assert run.living == [[0, 1, 2, 3]], "nothing is pruned before the last batch"
    run.step([-9.0, 1.0, 1.0, -1.0])
    assert run.living == [[2]]
    sizes = Run([1.0] * 4, target=0.75)
    sizes.step([-9.0, 1.0, 1.0, -1.0])
    assert sizes.living == [[0]], "one batch alone would have kept weight 0"


def test_no_weight_has_moved_when_the_masks_are_set() -> None:
    run = Run([4.0, 3.0, 2.0, 1.0], batches=3)
    assert [run.step([1.0, 0.0, 1.0, 0.0]) for _ in range(3)] == [False] * 3
    assert run.held == [[4.0, 0.0, 2.0, 0.0]]
    assert not run.optimizer.state, "momentum has not seen a gradient yet"
    assert run.weights["a.weight"].grad is not None
    assert run.weights["a.weight"].grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    assert run.step([1.0, 1.0, 1.0, 1.0])
    # g + decay · w = 1.4 and 1.2
    assert run.held == [pytest.approx([4 - 0.14, 0, 2 - 0.12, 0])]
    assert run.step([-5.0, 50.0, 1.0, 50.0])
    assert run.living == [[0, 2]], "the masks stay"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_batch_without_finite_gradients_does_not_count(bad: float) -> None:
    run = Run([1.0] * 4, batches=2, target=0.75)
    assert not run.step([0.0, bad, 5.0, 0.0])
    assert not run.step([1.0, 0.0, 0.0, 3.0])
    assert not run.step([bad] * 4)
    assert run.living == [[0, 1, 2, 3]]
    assert run.held == [[1.0] * 4]
    assert not run.step([3.0, 0.0, 0.0, 0.0])
    assert run.living == [[0]]
    assert run.step([0.0] * 4)


def test_a_mean_that_was_begun_is_part_of_the_state() -> None:
    whole, resumed = (Run([1.0] * 4, batches=2, target=0.75) for _ in range(2))
    whole.step([0.0, 0.0, 0.0, 3.0])
    state = copy.deepcopy(whole.method.state_dict())
    assert state["gradients"]["a.weight"].tolist() == [[0.0, 0.0, 0.0, 3.0]]
    whole.step([2.0, 0.0, 0.0, 0.0])
    resumed.method.load_state_dict(state)
    assert not resumed.step([2.0, 0.0, 0.0, 0.0])
    assert resumed.living == whole.living == [[3]]
    assert resumed.method.state_dict()["gradients"] == whole.method.state_dict()["gradients"] == {}
    again = Run([1.0] * 4, batches=2, target=0.75)
    again.method.load_state_dict(whole.method.state_dict())
    assert again.step([5.0, 0.0, 0.0, 0.0]), "pruned once, for good"
    assert again.living == [[3]]


def test_a_layer_that_no_gradient_reaches_is_pruned_first() -> None:
    run = Run([5.0, 5.0], [1.0, 2.0])
    run.weights["b.weight"].grad = torch.tensor([[1.0, 1.0]])
    run.method.on_gradients(at(0))
    assert run.living == [[], [0, 1]]


def test_layers_left_without_weights_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run([1.0, 1.0], [1.0, 1.0], target=0.5)
    run.step([0.0, 1.0], [2.0, 0.0])
    assert capsys.readouterr().err == ""
    run = Run([1.0, 1.0], [1.0, 1.0], target=0.5)
    run.step([0.0, 1.0], [2.0, 2.0])
    assert "SNIP leaves no weight in 1 of 2 layers, a, so they pass no signal" in capsys.readouterr().err


def test_batches_must_be_fewer_than_an_epochs_steps() -> None:
    with pytest.raises(RecipeError, match=r"sparsity\.batches: .* found 10"):
        Run([1.0], batches=10).method.on_epoch_start(at(0))
    Run([1.0], batches=9).method.on_epoch_start(at(0))


class Given:
    """Gradients of two layers, however many are asked for."""

    def __init__(self, *gradients: float) -> None:
        self.left = [{f"{name}.weight": torch.tensor([[1.0, each]]) for name in "ab"} for each in gradients]

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        while self.left and batches:
            batches -= 1
            yield self.left.pop(0)


def pruned_at_once(training: Any) -> Run:
    run = Run([1.0, 1.0], [4.0, 1.0], batches=2)
    run.method.training = training
    run.method.prune_trained(at(0), batch_size=8)
    return run


def test_a_trained_model_is_pruned_by_gradients_that_move_nothing() -> None:
    # the mean gradients are 1 and 3
    training = Given(9.0, -3.0, 7.0)
    run = pruned_at_once(training)
    assert run.living == [[1], [0]]
    assert run.held == [[0.0, 1.0], [4.0, 0.0]]
    assert [weight.grad for weight in run.weights.values()] == [None, None]
    assert len(training.left) == 1


def test_a_trained_model_without_enough_finite_gradients_is_not_pruned() -> None:
    with pytest.raises(RunError, match="1 of 2 gradients are finite; the model has diverged"):
        pruned_at_once(Given(1.0, NAN))


@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 2.0]), st.sampled_from([0.0, 1.0, -2.0])), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.3, 0.5, 0.999]),
)
def test_ties_and_zeros_are_pruned_to_the_weight(pairs: list[tuple[float, float]], target: float) -> None:
    weights, gradients = ([pair[place] for pair in pairs] for place in (0, 1))
    run = Run(weights, target=target)
    run.step(gradients)
    products: Tensor = (torch.tensor(weights) * torch.tensor(gradients)).abs()
    kept = int((1 - target) * len(pairs) + 0.5)
    # stable: the first among equals
    assert run.living == [sorted(products.argsort(descending=True, stable=True)[:kept].tolist())]
