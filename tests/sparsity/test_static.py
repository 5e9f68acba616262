"""Static: random masks of exact counts, from the seed alone, that never change."""

from typing import Any

import pytest
import torch
from by_hand import ByHand
from pydantic import ValidationError
from torch import Tensor

from acdc_cli.sparsity.methods.static import Config
from acdc_cli.sparsity.which import random_scores


def run_of(seed: int = 0, **keys: Any) -> ByHand:
    weights = {"a.weight": torch.ones(10, 30), "b.weight": torch.ones(20, 5, 3, 3)}
    return ByHand("static", {"target": 0.9} | keys, weights, epochs=4, steps=5, seed=seed)


def started(seed: int = 0, **keys: Any) -> dict[str, Tensor]:
    run = run_of(seed, **keys)
    run.start(0)
    return {name: mask.clone() for name, mask in run.masked.masks.items()}


def test_it_is_sparse_before_the_first_step_and_stays_as_it_is() -> None:
    run = run_of()
    run.start(0)
    before = {name: mask.clone() for name, mask in run.masked.masks.items()}
    for step in range(20):
        if step % 5 == 0:
            run.start(step // 5)
        assert run.step(step, 1.0)
    assert all(torch.equal(mask, before[name]) for name, mask in run.masked.masks.items())
    assert [(phase.kind, phase.start, phase.end) for phase in run.method.phases.phases] == [("sparse", 0, 4)]


@pytest.mark.parametrize(
    ("distribution", "kept"),
    # uniform: a tenth of 300 and 900. ERK: 120 of 1200, shared as the dimensions' sums, 10 + 30 to 20 + 5 + 3 + 3:
    # 67.6 and 52.4
    [("uniform", [30, 90]), ("erk", [68, 52])],
)
def test_the_counts_of_the_layers_are_exact(distribution: str, kept: list[int]) -> None:
    assert [int(mask.sum()) for mask in started(distribution=distribution).values()] == kept


def test_equal_seeds_give_equal_masks_and_others_others() -> None:
    first, again, other = started(7), started(7), started(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_scores_differ_between_layers_of_one_shape_and_between_steps() -> None:
    weights = {"a": torch.zeros(64), "b": torch.zeros(64)}
    now, later = random_scores(weights, seed=3, step=1), random_scores(weights, seed=3, step=2)
    assert not torch.equal(now["a"], now["b"])
    assert not torch.equal(now["a"], later["a"])
    assert torch.equal(random_scores({"b": torch.ones(64)}, seed=3, step=1)["b"], now["b"])


def test_every_weight_is_as_likely_to_live() -> None:
    # 200 draws of 30 from 300: each place is expected 20 times, standard deviation 4.2
    lives = torch.stack([started(seed, distribution="uniform")["a.weight"] for seed in range(200)]).sum(0)
    assert lives.min() > 2
    assert lives.max() < 42


def test_a_global_ranking_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"distribution: global ranks all .* but the masks are random"):
        Config(method="static", target=0.9, distribution="global")
