"""Moments and phases of a run."""

import pytest

from acdc_cli.schedule.time import Moment, Phase, PhasePlan

PLAN = PhasePlan((Phase("dense", 0, 2), Phase("sparse", 2, 5), Phase("dense", 5, 6)))


def test_progress_counts_epochs_with_their_fraction() -> None:
    assert Moment(epoch=2, step=10, epochs=8, steps_per_epoch=4).progress == 2.5
    assert Moment(epoch=0, step=0, epochs=8, steps_per_epoch=4).progress == 0


def test_every_epoch_lies_in_one_phase() -> None:
    assert [PLAN.at(epoch).kind for epoch in range(6)] == ["dense", "dense", "sparse", "sparse", "sparse", "dense"]
    assert PLAN.epochs == 6


def test_a_phase_begins_at_its_first_epoch_and_ends_at_its_last() -> None:
    assert [epoch for epoch in range(6) if PLAN.begins(epoch)] == [0, 2, 5]
    assert [epoch for epoch in range(6) if PLAN.ends(epoch)] == [1, 4, 5]


@pytest.mark.parametrize("epoch", [-1, 6])
def test_an_epoch_outside_the_run_has_no_phase(epoch: int) -> None:
    with pytest.raises(ValueError, match="outside the run's 6 epochs"):
        PLAN.at(epoch)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "start at epoch 0"),
        ((Phase("dense", 1, 2),), "start at epoch 0"),
        ((Phase("dense", 0, 0), Phase("sparse", 0, 2)), "at least one epoch"),
        ((Phase("dense", 0, 2), Phase("sparse", 3, 4)), "where the one before it ends"),
        ((Phase("dense", 0, 2), Phase("sparse", 1, 4)), "where the one before it ends"),
    ],
)
def test_a_plan_with_gap_overlap_or_empty_phase_is_refused(phases: tuple[Phase, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhasePlan(phases)
