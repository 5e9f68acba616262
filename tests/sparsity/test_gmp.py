"""Gradual magnitude pruning: the staircase under the cubic, and pruned weights that never return."""

from typing import Any

import pytest
import torch
from by_hand import ByHand
from torch import Tensor

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.sparsity.methods.gmp import Config

ONCE = "begin must come before end (to prune all at once, use method oneshot)"
LATE = "the sparsity would reach the target at epoch 20, but epoch 19 is the last; make it earlier"


def config(target: float = 0.8, **keys: Any) -> Config:
    return Config(method="gmp", target=target, **keys)


def test_the_sparsity_is_a_staircase_under_the_cubic() -> None:
    # T = 15: updates at epochs 5 and 10, 1 - (2/3)^3 = 19/27 and 1 - (1/3)^3 = 26/27 of the target
    stairs = [config(0.9).sparsity(epoch, epochs=20) for epoch in range(20)]
    assert stairs == pytest.approx([0.0] * 5 + [0.9 * 19 / 27] * 5 + [0.9 * 26 / 27] * 5 + [0.9] * 5)
    assert stairs[15:] == [0.9] * 5


def test_the_target_is_reached_at_the_end_of_the_ramp_though_no_regular_update_falls_on_it() -> None:
    block = config(every_epochs=4)
    assert [epoch for epoch in range(20) if block.updates_at(epoch, epochs=20)] == [4, 8, 12, 15]
    assert [block.sparsity(epoch, epochs=20) for epoch in (14, 15)] == [pytest.approx(0.8 * 124 / 125), 0.8]


def test_the_ramp_may_begin_later() -> None:
    block = config(begin=4, end=12, every_epochs=4)
    assert [epoch for epoch in range(20) if block.updates_at(epoch, epochs=20)] == [8, 12]
    assert [block.sparsity(epoch, epochs=20) for epoch in (3, 4, 7, 8, 12)] == pytest.approx([0, 0, 0, 0.7, 0.8])
    assert [(phase.kind, phase.start, phase.end) for phase in block.phases(20).phases] == [
        ("dense", 0, 4),
        ("ramp", 4, 12),
        ("sparse", 12, 20),
    ]


def test_100_epochs_ramp_up_to_75() -> None:
    assert [(phase.kind, phase.start, phase.end) for phase in config().phases(100).phases] == [
        ("ramp", 0, 75),
        ("sparse", 75, 100),
    ]


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"end": 20}, "end", LATE),
        ({"end": "100%"}, "end", LATE),
        ({"begin": 15}, "begin", "the sparsity would rise from epoch 15 to epoch 15; " + ONCE),
        ({"end": 0}, "begin", "the sparsity would rise from epoch 0 to epoch 0; " + ONCE),
    ],
)
def test_a_ramp_outside_the_run_is_a_problem(keys: dict[str, Any], key: str, message: str) -> None:
    assert config(**keys).errors(RunSize(20)) == [(key, message)]
    assert config().errors(RunSize(20)) == []


def run_of(weights: dict[str, Any], epochs: int, target: float, every: int, **keys: Any) -> ByHand:
    return ByHand("gmp", {"target": target, "every_epochs": every} | keys, weights, epochs=epochs)


def start(run: ByHand, epoch: int) -> dict[str, Tensor]:
    run.start(epoch)
    return {name: mask.clone() for name, mask in run.masked.masks.items()}


def test_masks_are_nested_even_when_living_weights_become_zero() -> None:
    # T = 3, one update an epoch: 8 weights, sparsities 0.75 · (19/27, 26/27, 1) leave 3.8, 2.2 and 2
    run = run_of({"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}, epochs=4, target=0.75, every=1)
    assert start(run, 0)["a"].all()
    assert start(run, 1)["a"].tolist() == [False] * 4 + [True] * 4
    with torch.no_grad():
        run.weight.zero_()
    assert start(run, 2)["a"].tolist() == [False] * 4 + [True, True, False, False]
    assert start(run, 3)["a"].tolist() == [False] * 4 + [True, True, False, False]


def test_a_pattern_with_one_sparsity_only_cannot_be_reached_gradually() -> None:
    assert [key for key, _ in config(0.5, pattern="2:4").errors(RunSize(20))] == ["pattern"]
    assert config(pattern="block4").errors(RunSize(20)) == []


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"distribution": "uniform"},
        {"distribution": "erk"},
        {"layers": {"a": 0.5}, "distribution": "erk"},
        {"layers": {"b": 0.5}},
    ],
)
def test_pruned_weights_never_return(keys: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (7, 5), "b.weight": (31, 1)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    run = run_of(weights, epochs=20, target=0.9, every=3, **keys)
    before, living = start(run, 0), [66]
    for epoch in range(1, 20):
        with torch.no_grad():
            for name, weight in run.weights.items():
                weight.copy_(torch.randn(weight.shape, generator=generator) * run.masked.masks[name])
        after = start(run, epoch)
        assert not any((after[name] & ~before[name]).any() for name in after)
        living.append(sum(int(mask.sum()) for mask in after.values()))
        before = after
    assert living == sorted(living, reverse=True)
    # 6.6 of 66, and 3.5 + 3.1 (4 + 3) of 35 and 31; with half of a layer 17.5 + 3.1 (18 + 3) or 3.5 + 15.5 (4 + 16)
    assert living[15:] == [{"a": 21, "b": 20}.get("".join(keys.get("layers", {})), 7)] * 5


def test_blocks_are_pruned_whole_and_never_return() -> None:
    # 4 blocks of 2, T = 3: sparsities 0.75 · (19/27, 26/27, 1) leave 1.89, 1.11 and 1 block
    weights = {"a": [[1.0, 9.0, 4.0, 5.0], [7.0, 0.0, 4.0, 4.0]]}
    run = run_of(weights, epochs=4, target=0.75, every=1, pattern="block2")
    living = [start(run, epoch)["a"][:, ::2].tolist() for epoch in range(4)]
    assert living[1] == [[True, True], [False, False]]
    assert living[2] == living[3] == [[True, False], [False, False]]
    assert run.weight.tolist() == [[1, 9, 0, 0], [0, 0, 0, 0]]
