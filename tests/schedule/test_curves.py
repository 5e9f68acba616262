"""Sparsity, learning rate and resolution over a run, against values worked by hand."""

import pytest

from acdc_cli.recipe.schema import CosineSchedule, LinearSchedule, ResolutionStep, StepSchedule
from acdc_cli.schedule.curves import cubic, learning_rate, resolution

P1 = CosineSchedule(name="cosine", warmup_epochs=5)
P2 = LinearSchedule(name="linear", warmup_epochs=2, warmup_start=1e-4)
CIFAR = StepSchedule(name="step", warmup_epochs=1, warmup_start=0.5, milestones=[30, 60], gamma=0.1)


@pytest.mark.parametrize(
    ("t", "sparsity"),
    # 1 - (1/2)^3 = 7/8 and 1 - (3/4)^3 = 37/64 of the target
    [(-3, 0), (0, 0), (1, 0.8 * 37 / 64), (2, 0.7), (4, 0.8), (5, 0.8)],
)
def test_gmp_sparsity_rises_along_the_cubic_and_stays_at_the_target(t: float, sparsity: float) -> None:
    assert cubic(t, end=4, target=0.8) == pytest.approx(sparsity, abs=1e-15)


def test_gmp_reaches_the_target_exactly() -> None:
    assert cubic(75, end=75, target=0.95) == 0.95


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 1e-4), (1, (1 + 1e-4) / 2), (2, 1), (51, 0.5), (75.5, 0.25), (100, 0)],
)
def test_the_linear_schedule_of_p2_peaks_at_the_start_of_epoch_2_and_ends_at_zero(
    progress: float, factor: float
) -> None:
    assert learning_rate(P2, progress, epochs=100) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "factor"),
    # a third of the way down the cosine is (1 + 1/2) / 2
    [(0, 0), (2.5, 0.5), (5, 1), (5 + 95 / 3, 0.75), (52.5, 0.5), (100, 0)],
)
def test_the_cosine_schedule_of_p1_falls_by_half_a_cosine_after_the_warm_up(progress: float, factor: float) -> None:
    assert learning_rate(P1, progress, epochs=100) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "factor"), [(0, 0.5), (0.5, 0.75), (1, 1), (29.99, 1), (30, 0.1), (60, 0.01), (90, 0.01)]
)
def test_the_step_schedule_drops_at_the_start_of_a_milestone(progress: float, factor: float) -> None:
    assert learning_rate(CIFAR, progress, epochs=90) == pytest.approx(factor)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_ends_at_its_end_and_needs_no_warm_up(name: str) -> None:
    schedule = LinearSchedule(name="linear", end=0.1) if name == "linear" else CosineSchedule(name="cosine", end=0.1)
    assert learning_rate(schedule, 0, epochs=10) == 1
    assert learning_rate(schedule, 5, epochs=10) == pytest.approx(0.55)
    assert learning_rate(schedule, 10, epochs=10) == pytest.approx(0.1)


def test_a_run_that_is_all_warm_up_stays_below_the_peak() -> None:
    assert learning_rate(P2, 1.5, epochs=2) == pytest.approx(0.75, abs=1e-4)


def test_one_resolution_holds_throughout() -> None:
    assert resolution(224, epoch=99, epochs=100) == 224


PROGRESSIVE = [ResolutionStep(since=0.0, size=160), ResolutionStep(since=0.8, size=192)]


def test_p2_trains_at_160_for_the_first_80_percent_of_100_epochs() -> None:
    assert [resolution(PROGRESSIVE, epoch, 100) for epoch in (0, 79, 80, 99)] == [160, 160, 192, 192]


def test_80_percent_of_any_number_of_epochs_is_the_nearest_whole_number() -> None:
    for epochs in range(1, 301):
        sizes = [resolution(PROGRESSIVE, epoch, epochs) for epoch in range(epochs)]
        smaller = (8 * epochs + 5) // 10
        assert sizes == [160] * smaller + [192] * (epochs - smaller)


def test_half_an_epoch_is_rounded_up_in_decimals() -> None:
    # 0.35 · 90 is 31.5, though 31.499999999999996 in binary fractions
    steps = [ResolutionStep(since=0.0, size=1), ResolutionStep(since=0.35, size=2)]
    assert [resolution(steps, epoch, 90) for epoch in (31, 32)] == [1, 2]
