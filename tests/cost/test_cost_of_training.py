from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import on_meta
from torch import nn
from torch.optim import SGD

from acdc_cli.cost.conventions import Convention, forward_flops
from acdc_cli.cost.count import Operation, operations
from acdc_cli.cost.training_cost import EpochCost, Measured, kept_weights, nominal, training_flops
from acdc_cli.recipe import kinds
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.prunable import layers, pruned
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.where import largest

IMAGENET = 1_281_167


def method(model: nn.Module, name: str, epochs: int, keep_dense: tuple[str, ...] = (), **keys: Any) -> Sparsifier[Any]:
    masked = MaskedParameters(pruned(layers(model, keep_dense)))
    config = kinds.method_config(name)(method=name, **keys)
    assert config.errors(RunSize(epochs)) == []
    return kinds.method_class(name)(config, masked, epochs)


def costs(
    sparsifier: Sparsifier[Any], counted: list[Operation], steps: int = 5004, convention: Convention = "A"
) -> list[EpochCost]:
    return nominal(sparsifier, {224: counted}, [224] * sparsifier.epochs, steps, 256, convention)


def small() -> nn.Sequential:
    """Two layers of 216 and 160 weights, which at 8 x 8 are used 36 times and once."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(32, 5))


FIRST, SECOND = 216 * 36, 160


def test_dense_training_of_resnet50_is_three_forward_passes(resnet50: list[Operation]) -> None:
    dense = costs(method(on_meta("resnet50"), "dense", 100), resnet50)
    assert all(cost.forward == 8_178_368_512 and cost.train == 3 * 8_178_368_512 for cost in dense)
    total = IMAGENET * sum(cost.train for cost in dense)
    assert f"{float(total) / 1e18:.3f}" == "3.143"


def test_alternating_training_is_three_forward_passes_of_each_epochs_weights() -> None:
    counted = operations(small(), 8)
    keys = {"warmup_epochs": 1, "sparse_epochs": 1, "dense_epochs": 1, "last_dense_epochs": 1, "last_sparse_epochs": 1}
    run = method(small(), "acdc", 4, target=0.75, distribution="uniform", **keys)
    dense, sparse = 2 * (FIRST + SECOND), 2 * (FIRST + SECOND) // 4
    assert [cost.forward for cost in nominal(run, {8: counted}, [8] * 4, 10, 32, "A")] == [dense, sparse, dense, sparse]
    assert [cost.train for cost in nominal(run, {8: counted}, [8] * 4, 10, 32, "A")] == [
        3 * dense,
        3 * sparse,
        3 * dense,
        3 * sparse,
    ]


def test_an_epoch_costs_what_its_images_resolution_does() -> None:
    model = on_meta("resnet18")
    sides = [160, 160, 192]
    by_side = {side: operations(model, side) for side in set(sides)}
    priced = nominal(method(model, "dense", 3), by_side, sides, 10, 32, "A")
    assert [cost.resolution for cost in priced] == sides
    assert [cost.forward for cost in priced] == [forward_flops(by_side[side], None, "A") for side in sides]
    assert priced[0].forward < priced[2].forward


def test_top_kast_acts_with_fewer_weights_than_learn() -> None:
    run = method(small(), "topkast", 2, target=0.75, backward_sparsity=0.5)
    cost = nominal(run, {8: operations(small(), 8)}, [8, 8], 10, 32, "A")[0]
    dense = 2 * (FIRST + SECOND)
    assert (cost.forward, cost.train) == (dense // 4, 2 * dense // 4 + dense // 2)


def test_rigls_updates_are_priced_with_a_dense_gradient() -> None:
    # 100 ordinary steps to one update are the paper's (3 f_S dT + 2 f_S + f_D) / (dT + 1)
    mean = training_flops(20, 20, 100, Fraction(1, 101))
    assert mean == Fraction(3 * 20 * 100 + 2 * 20 + 100, 101)
    run = method(small(), "rigl", 4, target=0.75, distribution="uniform", every=5, end=2)
    priced = nominal(run, {8: operations(small(), 8)}, [8] * 4, 10, 32, "A")
    dense, sparse = 2 * (FIRST + SECOND), (FIRST + SECOND) // 2
    # updates at steps 5, 10 and 15: one of ten in epoch 0, two in epoch 1
    shares = [Fraction(1, 10), Fraction(2, 10), Fraction(0), Fraction(0)]
    assert [cost.train for cost in priced] == [3 * sparse + share * (dense - sparse) for share in shares]


def test_the_steps_that_snip_waits_are_priced_dense() -> None:
    by_side = {8: operations(small(), 8)}
    model = small()
    run = method(model, "snip", 2, target=0.75, distribution="uniform", batches=2)
    first, second = nominal(run, by_side, [8, 8], 10, 32, "A")
    dense, sparse = 2 * (FIRST + SECOND), (FIRST + SECOND) // 2
    assert (first.forward, second.forward) == (sparse, sparse)
    assert first.train == 3 * (Fraction(2, 10) * dense + Fraction(8, 10) * sparse)
    assert second.train == 3 * sparse
    with torch.no_grad():
        for weight in run.masked.parameters.values():
            weight.flatten()[: weight.numel() * 3 // 4] = 0
    assert Measured(by_side, "A").add(run, nonzero(model), 0, side=8, steps=10, images=320) == first


WOODFISHER: dict[str, Any] = {
    "target": 0.75,
    "distribution": "uniform",
    "begin": 1,
    "end": 3,
    "every_epochs": 1,
    "samples": 5,
    "fisher_batch_size": 2,
    "fisher_block": 100,
}
"""Prunes at epoch 2 to 0.75 (1 - 1/8) = 65.625 %, which leaves 74 and 55 weights, and at epoch 3 to 75 %."""


# three and two blocks of 40,000 bytes: all in one group, or each in its own
@pytest.mark.parametrize(("memory", "passes"), [(1.0, 1), (4e4 / 2**30, 9)])
def test_gradients_that_are_asked_for_besides_cost_three_forward_passes_of_what_lives_until_then(
    memory: float, passes: int
) -> None:
    run = method(small(), "woodfisher", 5, **WOODFISHER, memory_gib=memory)
    dense, first, second = 2 * (FIRST + SECOND), 2 * (74 * 36 + 55), 2 * (54 * 36 + 40)
    priced = nominal(run, {8: operations(small(), 8)}, [8] * 5, 10, 4, "A")
    assert [cost.forward for cost in priced] == [dense, dense, first, second, second]
    besides = [cost.train - 3 * cost.forward for cost in priced]
    # 10 images in every pass, beside the epoch's 40
    assert besides == [0, 0, passes * 10 * 3 * Fraction(dense, 40), passes * 10 * 3 * Fraction(first, 40), 0]


def test_a_pruning_before_the_first_step_is_asked_of_a_dense_model() -> None:
    run = method(small(), "woodfisher", 2, **WOODFISHER | {"begin": 0, "end": 0})
    dense, sparse = 2 * (FIRST + SECOND), (FIRST + SECOND) // 2
    priced = nominal(run, {8: operations(small(), 8)}, [8] * 2, 10, 4, "A")
    assert [cost.train for cost in priced] == [3 * sparse + Fraction(10 * 3 * dense, 40), 3 * sparse]


def test_what_is_asked_for_besides_is_measured_with_the_weights_of_that_moment() -> None:
    model = small()
    run = method(model, "woodfisher", 5, **WOODFISHER)
    with torch.no_grad():
        model[0].weight[:2] = 0
    ledger = Measured({8: operations(model, 8)}, "A")
    now = 2 * (FIRST * 6 // 8 + SECOND)
    assert [run.cost(epoch, 10).probed_images for epoch in (1, 2)] == [0, 10]
    ledger.probe(10, nonzero(model), side=8)
    assert ledger.total == 10 * 3 * now
    ledger.add(run, nonzero(model), epoch=2, side=8, steps=10, images=40)
    assert ledger.total == 50 * 3 * now


def test_a_global_ranking_is_priced_as_the_same_density_everywhere() -> None:
    run = method(small(), "oneshot", 2, target=0.9, at=0)
    assert run.cost(0, 10).forward.by_layer is None
    # 376 weights, of which 37.6 stay: 38
    share = Fraction(38, 376)
    assert kept_weights(run.masked, run.cost(0, 10).forward) == {"0.weight": 216 * share, "3.weight": 160 * share}
    assert nominal(run, {8: operations(small(), 8)}, [8, 8], 10, 32, "A")[0].forward == 2 * (FIRST + SECOND) * share


def test_learned_sparsity_is_priced_dense() -> None:
    run = method(small(), "str", 2)
    assert nominal(run, {8: operations(small(), 8)}, [8, 8], 10, 32, "A")[1].train == 6 * (FIRST + SECOND)


def random_masks(masked: MaskedParameters, kept: Mapping[str, int]) -> dict[str, torch.Tensor]:
    return {name: largest(torch.rand(shape.numel()), kept[name]).view(shape) for name, shape in masked.shapes.items()}


@pytest.mark.parametrize("convention", ["A", "B", "C"])
@pytest.mark.parametrize("keep_dense", [(), ("first",)])
def test_the_measured_cost_of_a_random_mask_is_the_nominal_one_of_its_density(
    convention: Convention, keep_dense: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    model = small()
    run = method(model, "static", 3, keep_dense, target=0.8, distribution="erk")
    by_side = {8: operations(model, 8)}
    expected = nominal(run, by_side, [8] * 3, 10, 32, convention)
    ledger = Measured(by_side, convention)
    for epoch in range(3):
        kept = run.cost(epoch, 10).forward.by_layer
        assert kept is not None
        for weight in run.masked.parameters.values():
            nn.init.ones_(weight)
        run.masked.set(random_masks(run.masked, kept))
        assert ledger.add(run, nonzero(model), epoch, side=8, steps=10, images=320) == expected[epoch]
    assert ledger.total == 320 * sum(cost.train for cost in expected)


def nonzero(model: nn.Module) -> dict[str, int]:
    return {layer.parameter_name: int(layer.parameter.count_nonzero()) for layer in layers(model, [])}


def test_dead_filters_make_a_dense_phase_cheaper() -> None:
    model = small()
    run = method(model, "dense", 1)
    with torch.no_grad():
        model[0].weight[:2] = 0
    ledger = Measured({8: operations(model, 8)}, "A")
    cost = ledger.add(run, nonzero(model), epoch=0, side=8, steps=10, images=100)
    assert cost.forward == 2 * (FIRST * 6 // 8 + SECOND)
    assert cost.train == 3 * cost.forward
    assert ledger.total == 100 * cost.train


def test_weights_that_learn_without_acting_are_measured_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    model = small()
    run = method(model, "topkast", 2, target=0.75, backward_sparsity=0.5)
    run.attach(SGD(model.parameters(), lr=0.1), training=None)  # type: ignore[arg-type]
    run.on_epoch_start(Moment(0, 0, 2, 10))
    by_side = {8: operations(model, 8)}
    measured = Measured(by_side, "A").add(run, nonzero(model), epoch=0, side=8, steps=10, images=1)
    assert measured == nominal(run, by_side, [8, 8], 10, 32, "A")[0]


RESNET = operations(on_meta("resnet18"), 64)


@given(pair=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)).map(sorted))
@settings(max_examples=10, deadline=None)
def test_training_never_costs_more_at_a_higher_sparsity(pair: list[float]) -> None:
    model = on_meta("resnet18")

    def cost(target: float) -> Any:
        run = method(model, "rigl", 2, target=round(target, 3), every=50, end=1)
        return nominal(run, {64: RESNET}, [64, 64], 100, 32, "A")[0].train

    lower, higher = pair
    assert cost(higher) <= cost(lower) <= 3 * forward_flops(RESNET, None, "A")
