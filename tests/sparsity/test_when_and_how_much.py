"""When methods act and how much they prune, against values worked by hand."""

import pytest

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.schedule.time import Moment, Phase
from acdc_cli.sparsity.how_much import Cubic
from acdc_cli.sparsity.methods.gmp import Config
from acdc_cli.sparsity.when import in_turn, ranks_after


def test_phases_follow_each_other_and_empty_ones_are_left_out() -> None:
    plan = in_turn(("dense", 0), ("ramp", 2), ("dense", 0), ("sparse", 3))
    assert plan.phases == (Phase("ramp", 0, 2), Phase("sparse", 2, 5))


def test_weights_are_ranked_after_every_so_many_steps_but_not_after_the_last() -> None:
    moments = [Moment(step // 4, step, epochs=3, steps_per_epoch=4) for step in range(12)]
    assert [moment.step for moment in moments if ranks_after(moment, 3)] == [2, 5, 8]
    assert [moment.step for moment in moments if ranks_after(moment, 1)] == list(range(11))
    assert not any(ranks_after(moment, 12) for moment in moments)


@pytest.mark.parametrize(
    ("time", "sparsity"),
    # 1 - (1/2)^3 = 7/8 and 1 - (3/4)^3 = 37/64 of the target
    [(-3, 0), (0, 0), (1, 0.8 * 37 / 64), (2, 0.7), (4, 0.8), (5, 0.8)],
)
def test_gmp_sparsity_rises_along_the_cubic_and_stays_at_the_target(time: int, sparsity: float) -> None:
    assert Cubic(0, 4, target=0.8).at(time) == pytest.approx(sparsity, abs=1e-15)


def test_the_cubic_starts_late_from_the_sparsity_it_is_given_and_ends_at_the_target_exactly() -> None:
    ramp = Cubic(10, 14, target=0.9, first=0.5)
    assert [ramp.at(time) for time in (0, 10, 14)] == [0.5, 0.5, 0.9]
    assert ramp.at(12) == pytest.approx(0.5 + 0.4 * 7 / 8)


def test_a_cubic_without_length_jumps() -> None:
    assert [Cubic(3, 3, target=0.9).at(time) for time in (2, 3)] == [0.0, 0.9]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"begin": 5, "end": 3}, ("begin", "the sparsity would rise from epoch 5 to epoch 3; begin must come before ")),
        ({"end": "100%"}, ("end", "the sparsity would reach the target at epoch 8, but epoch 7 is the last; ")),
        ({"initial_sparsity": 0.75, "every_epochs": 1}, ("initial_sparsity", "is above the target, 0.5; lower it")),
    ],
)
def test_a_rise_that_is_none_is_a_problem_of_its_key(keys: dict[str, float | str], said: tuple[str, str]) -> None:
    (key, text), *_ = Config.model_validate({"method": "gmp", "target": 0.5, **keys}).errors(RunSize(8))
    assert (key, text[: len(said[1])]) == said
