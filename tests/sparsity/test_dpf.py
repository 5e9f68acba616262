"""DPF: dense weights learn from the pruned model, and a weight comes back with what it has gathered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import ByHand
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.sparsity.methods.dpf import Config
from acdc_cli.sparsity.sparsifier import Sparsifier

EPOCHS, STEPS = 4, 3


def densities(method: Sparsifier[Any], epoch: int) -> tuple[float | None, float | None]:
    """Forward and backward."""
    work = method.cost(epoch, 1)
    return work.forward.density, work.backward.density


KEYS = {"target": 0.5, "begin": 0, "end": 0, "every": 2}


class Quadratic(ByHand):
    """One layer under the loss |m * w - goal|² / 2, whose gradient is m * w - goal, by SGD."""

    def __init__(self, start: list[float], goal: list[float], momentum: float = 0.0, **keys: Any) -> None:
        run: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "lr": 0.5, "momentum": momentum}
        super().__init__("dpf", KEYS | keys, {"fc.weight": [start]}, **run)
        self.goal = torch.tensor([goal])

    def descend(self, number: int, bad: float = 0.0) -> None:
        """bad: added to the first gradient."""
        gradient = self.weight.detach() - self.goal
        gradient[0, 0] += bad
        assert self.step(number, gradient)


def test_four_steps_worked_by_hand() -> None:
    run = Quadratic(start=[4, 3, 2, -1], goal=[0, 0, 8, -3])
    run.start(0)
    assert (run.latent(), run.values()) == ([4, 3, 2, -1], [4, 3, 0, 0])
    run.descend(0)  # gradient 4, 3, -8, 3: of the pruned model, whose third and fourth weights are 0
    assert (run.latent(), run.values()) == ([2, 1.5, 6, -2.5], [2, 1.5, 0, 0])
    run.descend(1)  # gradient 2, 1.5, -8, 3; then ranked: 10 and -4 come back with what they have gathered
    assert (run.latent(), run.values()) == ([1, 0.75, 10, -4], [0, 0, 10, -4])
    run.descend(2)  # gradient 0, 0, 2, -1
    assert (run.latent(), run.values()) == ([1, 0.75, 9, -3.5], [0, 0, 9, -3.5])
    run.start(1)
    run.descend(3)  # gradient 0, 0, 1, -0.5; ranked, and nothing changes
    assert (run.latent(), run.values()) == ([1, 0.75, 8.5, -3.25], [0, 0, 8.5, -3.25])


def reference(start: list[float], goal: list[float], kept: dict[int, int], every: int) -> list[list[float]]:
    """The pruned model after every step, weight by weight; kept: how many live from an epoch on."""
    dense, models, count, mask = list(start), [], 8, [True] * 8

    def ranked(count: int) -> list[bool]:
        order = sorted(range(len(dense)), key=lambda index: (-abs(dense[index]), index))
        return [index in order[:count] for index in range(len(dense))]

    for step in range(EPOCHS * STEPS):
        if step % STEPS == 0 and step // STEPS in kept:
            count = kept[step // STEPS]
            mask = ranked(count)
        for index, lives in enumerate(mask):
            dense[index] -= 0.5 * ((dense[index] if lives else 0.0) - goal[index])
        if (step + 1) % every == 0 and step + 1 < EPOCHS * STEPS:
            mask = ranked(count)
        models.append([value if lives else 0.0 for value, lives in zip(dense, mask, strict=True)])
    return models


@given(
    start=st.lists(st.integers(-3, 3), min_size=8, max_size=8),
    goal=st.lists(st.integers(-3, 3), min_size=8, max_size=8),
    every=st.integers(1, 5),
    ramp=st.sampled_from([(0, 0), (0, 3), (2, 2), (1, 3)]),
)
def test_the_run_is_that_of_a_slow_reference(
    start: list[float], goal: list[float], every: int, ramp: tuple[int, int]
) -> None:
    # s_f (1 - (1 - t/T)³) of 0.75 · 8 weights: 4.22 and 5.78 zeros of T = 3, 5.25 of T = 2
    kept = {(0, 0): {0: 2}, (0, 3): {1: 4, 2: 2, 3: 2}, (2, 2): {2: 2}, (1, 3): {2: 3, 3: 2}}[ramp]
    run = Quadratic(start, goal, target=0.75, begin=ramp[0], end=ramp[1], every=every)
    expected = reference(start, goal, kept, every)
    for step in range(EPOCHS * STEPS):
        if step % STEPS == 0:
            run.start(step // STEPS)
        run.descend(step)
        assert run.values() == expected[step]
    assert len(run.living()) == 2


def test_pruned_weights_have_gradients_and_momentum_and_the_model_is_pruned_all_the_same() -> None:
    run = Quadratic(start=[4, 3, 2, -1], goal=[0, 0, 8, -3], momentum=0.5)
    run.start(0)
    run.descend(0)
    assert run.momentum() == [4, 3, -8, 3]
    run.descend(1)  # ranked; momentum 0.5 · 4 + 2 = 4, …, -4 - 8 = -12, 1.5 + 3 = 4.5
    assert run.living() == [2, 3]
    assert run.momentum() == [4, 3, -12, 4.5], "a mask that moves on takes no momentum away"
    assert run.values() == [0, 0, 12, -4.75]


def test_while_nothing_is_pruned_a_step_does_nothing_more() -> None:
    run = Quadratic(start=[4, 3, 2, -1], goal=[0, 0, 0, 0], begin=0, end=3)
    run.start(0)
    for step in range(STEPS):
        run.descend(step)
    assert run.values() == [0.5, 0.375, 0.25, -0.125]
    assert run.latent() == [4, 3, 2, -1], "no copies are taken yet"
    run.start(1)  # 0.5 (1 - (2/3)³) of 4 weights: 1.4
    assert run.latent() == [0.5, 0.375, 0.25, -0.125]
    assert run.values() == [0.5, 0.375, 0.25, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_step_moves_nothing_and_ranks_nothing(bad: float) -> None:
    run = Quadratic(start=[4, 3, 2, -1], goal=[0, 0, 8, -3])
    run.start(0)
    run.descend(0)
    before = run.latent(), run.values(), run.living()
    run.descend(1, bad=bad)
    assert (run.latent(), run.values(), run.living()) == before
    run.descend(2)
    run.descend(3)
    assert run.living() == [2, 3]


def test_the_weights_are_ranked_to_the_end_but_not_after_it() -> None:
    run = Quadratic(start=[4, 3, 2, -1], goal=[0, 0, 0, 0], every=4)
    run.start(0)
    for step in range(10):
        run.descend(step)
    run.goal = torch.tensor([[0.0, 0, 0, 99]])
    run.descend(10)
    run.descend(11)
    assert 3 not in run.living()
    assert abs(run.latent()[3]) > 90


def test_the_density_forward_follows_the_cubic_and_backward_is_one() -> None:
    run = Quadratic(start=[0.0] * 8, goal=[0.0] * 8, target=0.75, end=3)
    assert [densities(run.method, epoch) for epoch in range(EPOCHS)] == [
        (1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.25, 1.0),
    ]  # fmt: skip


def test_by_default_the_sparsity_rises_every_epoch_and_ranks_every_16_steps() -> None:
    defaults = Config(method="dpf", target=0.9)
    assert (defaults.every, defaults.every_epochs, defaults.end) == (16, 1, "75%")


def test_two_of_four_takes_a_jump() -> None:
    run = Quadratic(start=[4, 3, 2, -1], goal=[0, 0, 8, -3], pattern="2:4", begin=1, end=1)
    assert run.config.errors(RunSize(EPOCHS)) == []
    assert densities(run.method, 0) == (1.0, 1.0)
    for step in range(EPOCHS * STEPS):
        if step % STEPS == 0:
            run.start(step // STEPS)
        run.descend(step)
    assert len(run.living()) == 2
    gradual = Config(method="dpf", **KEYS | {"pattern": "2:4", "end": 3})
    assert [key for key, _ in gradual.errors(RunSize(EPOCHS))] == ["pattern"]


def test_no_interval_is_refused() -> None:
    with pytest.raises(ValidationError):
        Quadratic(start=[4], goal=[0], every=0)


def test_a_state_grows_by_the_backward_masks() -> None:
    made = Quadratic([2.0, -1.0, 0.5, 3.0], [1.0, 1.0, 1.0, 1.0])
    assert "backward" not in made.method.state_dict()["masks"]
    made.start(0)
    masks = made.method.state_dict()["masks"]["backward"].values()
    assert made.method.later_bytes(model=0) == sum(mask.nbytes for mask in masks) == 4
