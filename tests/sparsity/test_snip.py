"""SNIP: which weights it keeps, from which gradients, and that none has moved by then."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from by_hand import ByHand, of_two_layers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acdc_cli.errors import RecipeError, RunError
from acdc_cli.schedule.time import Moment

NAN, INF = float("nan"), float("inf")


def run_of(*layers: list[float], **keys: Any) -> ByHand:
    """Layers of one row each, under SGD with momentum and decay."""
    weights = {f"{name}.weight": [row] for name, row in zip("ab", layers, strict=False)}
    block = {"target": 0.5} | keys
    return ByHand("snip", block, weights, epochs=8, steps=10, lr=0.1, momentum=0.9, weight_decay=0.1)


def test_weights_stay_whose_product_with_their_gradient_is_largest() -> None:
    # |w g| is 0, 0.5, 0.2 and 0.3: the largest weight goes, and one of the smallest stays
    run = run_of([10.0, 0.1, -2.0, 1.0])
    assert not run.step(0, [0.0, 5.0, -0.1, 0.3])
    assert run.living() == [1, 3]
    assert run.values() == pytest.approx([0.0, 0.1, 0.0, 1.0])


def test_a_global_ranking_compares_the_layers() -> None:
    gradients = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, -30.0, 1.0]
    by_layer, by_all = run_of([1.0] * 4, [-1.0] * 4, distribution="uniform"), run_of([1.0] * 4, [-1.0] * 4)
    by_layer.step(0, *gradients)
    by_all.step(0, *gradients)
    assert of_two_layers(by_layer.living) == [[2, 3], [1, 2]]
    assert of_two_layers(by_all.living) == [[3], [0, 1, 2]]


@pytest.mark.parametrize(
    ("keys", "living"),
    [
        ({"pattern": "1:2"}, [1, 2, 5, 6]),
        ({"pattern": "block4"}, [4, 5, 6, 7]),
        ({"pattern": "block2"}, [4, 5, 6, 7]),
    ],
)
def test_a_pattern_ranks_by_the_same_product(keys: dict[str, Any], living: list[int]) -> None:
    run = run_of([9.0] + [1.0] * 7, **keys)
    run.step(0, [0.0, 1.0, 2.0, 1.0, 1.0, 5.0, -6.0, 0.0])  # |w g|: 0 1 2 1 1 5 6 0
    assert run.living() == living


def test_gradients_of_several_batches_are_averaged_and_not_their_sizes() -> None:
    # weight 0 has the largest gradient of each batch, of opposite signs
    run = run_of([1.0] * 4, batches=2, target=0.75)
    run.step(0, [9.0, 1.0, 2.0, -1.0])
    assert run.living() == [0, 1, 2, 3], "nothing is pruned before the last batch"
    run.step(0, [-9.0, 1.0, 1.0, -1.0])
    assert run.living() == [2]
    sizes = run_of([1.0] * 4, target=0.75)
    sizes.step(0, [-9.0, 1.0, 1.0, -1.0])
    assert sizes.living() == [0], "one batch alone would have kept weight 0"


def test_no_weight_has_moved_when_the_masks_are_set() -> None:
    run = run_of([4.0, 3.0, 2.0, 1.0], batches=3)
    assert [run.step(0, [1.0, 0.0, 1.0, 0.0]) for _ in range(3)] == [False] * 3
    assert run.values() == [4.0, 0.0, 2.0, 0.0]
    assert not run.optimizer.state, "momentum has not seen a gradient yet"
    assert run.gradient() == [1.0, 0.0, 1.0, 0.0]
    assert run.step(0, [1.0, 1.0, 1.0, 1.0])
    # g + decay · w = 1.4 and 1.2
    assert run.values() == pytest.approx([4 - 0.14, 0, 2 - 0.12, 0])
    assert run.step(0, [-5.0, 50.0, 1.0, 50.0])
    assert run.living() == [0, 2], "the masks stay"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_batch_without_finite_gradients_does_not_count(bad: float) -> None:
    run = run_of([1.0] * 4, batches=2, target=0.75)
    assert not run.step(0, [0.0, bad, 5.0, 0.0])
    assert not run.step(0, [1.0, 0.0, 0.0, 3.0])
    assert not run.step(0, bad)
    assert run.living() == [0, 1, 2, 3]
    assert run.values() == [1.0] * 4
    assert not run.step(0, [3.0, 0.0, 0.0, 0.0])
    assert run.living() == [0]
    assert run.step(0, [0.0] * 4)


def test_a_mean_that_was_begun_is_part_of_the_state() -> None:
    whole, resumed = (run_of([1.0] * 4, batches=2, target=0.75) for _ in range(2))
    whole.step(0, [0.0, 0.0, 0.0, 3.0])
    state = copy.deepcopy(whole.method.state_dict())
    assert state["gradients"]["a.weight"].tolist() == [[0.0, 0.0, 0.0, 3.0]]
    whole.step(0, [2.0, 0.0, 0.0, 0.0])
    resumed.method.load_state_dict(state)
    assert not resumed.step(0, [2.0, 0.0, 0.0, 0.0])
    assert resumed.living() == whole.living() == [3]
    assert resumed.method.state_dict()["gradients"] == whole.method.state_dict()["gradients"] == {}
    again = run_of([1.0] * 4, batches=2, target=0.75)
    again.method.load_state_dict(whole.method.state_dict())
    assert again.step(0, [5.0, 0.0, 0.0, 0.0]), "pruned once, for good"
    assert again.living() == [3]


def test_a_layer_that_no_gradient_reaches_is_pruned_first() -> None:
    run = run_of([5.0, 5.0], [1.0, 2.0])
    run.weights["b.weight"].grad = torch.tensor([[1.0, 1.0]])
    run.method.on_gradients(run.at(0))
    assert of_two_layers(run.living) == [[], [0, 1]]


def test_layers_left_without_weights_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of([1.0, 1.0], [1.0, 1.0], target=0.5)
    run.step(0, [0.0, 1.0], [2.0, 0.0])
    assert capsys.readouterr().err == ""
    run = run_of([1.0, 1.0], [1.0, 1.0], target=0.5)
    run.step(0, [0.0, 1.0], [2.0, 2.0])
    assert "SNIP leaves no weight in 1 of 2 layers, a, so they pass no signal" in capsys.readouterr().err


def test_batches_must_be_fewer_than_an_epochs_steps() -> None:
    with pytest.raises(RecipeError, match=r"sparsity\.batches: .* found 10"):
        run_of([1.0], batches=10).start(0)
    run_of([1.0], batches=9).start(0)


class Given:
    """Gradients of two layers, however many are asked for."""

    def __init__(self, *gradients: float) -> None:
        self.left = [{f"{name}.weight": torch.tensor([[1.0, each]]) for name in "ab"} for each in gradients]

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        while self.left and batches:
            batches -= 1
            yield self.left.pop(0)


def pruned_at_once(training: Any) -> ByHand:
    run = run_of([1.0, 1.0], [4.0, 1.0], batches=2)
    run.method.training = training
    run.method.prune_trained(run.at(0), batch_size=8)
    return run


def test_a_trained_model_is_pruned_by_gradients_that_move_nothing() -> None:
    # the mean gradients are 1 and 3
    training = Given(9.0, -3.0, 7.0)
    run = pruned_at_once(training)
    assert of_two_layers(run.living) == [[1], [0]]
    assert of_two_layers(run.values) == [[0.0, 1.0], [4.0, 0.0]]
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
    run = run_of(weights, target=target)
    run.step(0, gradients)
    products: Tensor = (torch.tensor(weights) * torch.tensor(gradients)).abs()
    kept = int((1 - target) * len(pairs) + 0.5)
    # stable: the first among equals
    assert run.living() == sorted(products.argsort(descending=True, stable=True)[:kept].tolist())
