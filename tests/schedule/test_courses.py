"""Learning rate and resolution over a run, against values worked by hand."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from acdc_cli.recipe.blocks.course import ResolutionRamp, ResolutionStep
from acdc_cli.recipe.blocks.optim import CosineSchedule, LinearSchedule, StepSchedule
from acdc_cli.schedule.learning_rate import share_of_peak
from acdc_cli.schedule.sizes import size_at

P1 = CosineSchedule(name="cosine", warmup_epochs=5)
P2 = LinearSchedule(name="linear", warmup_epochs=2, warmup_start=1e-4)
CIFAR = StepSchedule(name="step", warmup_epochs=1, warmup_start=0.5, milestones=[30, 60], gamma=0.1)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 1e-4), (1, (1 + 1e-4) / 2), (2, 1), (51, 0.5), (75.5, 0.25), (100, 0)],
)
def test_the_linear_schedule_of_p2_peaks_at_the_start_of_epoch_2_and_ends_at_zero(
    progress: float, factor: float
) -> None:
    assert share_of_peak(P2, progress, epochs=100) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "factor"),
    # a third of the way down the cosine is (1 + 1/2) / 2
    [(0, 0), (2.5, 0.5), (5, 1), (5 + 95 / 3, 0.75), (52.5, 0.5), (100, 0)],
)
def test_the_cosine_schedule_of_p1_falls_by_half_a_cosine_after_the_warm_up(progress: float, factor: float) -> None:
    assert share_of_peak(P1, progress, epochs=100) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "factor"), [(0, 0.5), (0.5, 0.75), (1, 1), (29.99, 1), (30, 0.1), (60, 0.01), (90, 0.01)]
)
def test_the_step_schedule_drops_at_the_start_of_a_milestone(progress: float, factor: float) -> None:
    assert share_of_peak(CIFAR, progress, epochs=90) == pytest.approx(factor)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_ends_at_its_end_and_needs_no_warm_up(name: str) -> None:
    schedule = LinearSchedule(name="linear", end=0.1) if name == "linear" else CosineSchedule(name="cosine", end=0.1)
    assert share_of_peak(schedule, 0, epochs=10) == 1
    assert share_of_peak(schedule, 5, epochs=10) == pytest.approx(0.55)
    assert share_of_peak(schedule, 10, epochs=10) == pytest.approx(0.1)


def test_a_run_that_is_all_warm_up_stays_below_the_peak() -> None:
    assert share_of_peak(P2, 1.5, epochs=2) == pytest.approx(0.75, abs=1e-4)


def test_one_resolution_holds_throughout() -> None:
    assert size_at(224, epoch=99, epochs=100) == 224


PROGRESSIVE = [ResolutionStep(since=0.0, size=160), ResolutionStep(since=0.8, size=192)]


def test_p2_trains_at_160_for_the_first_80_percent_of_100_epochs() -> None:
    assert [size_at(PROGRESSIVE, epoch, 100) for epoch in (0, 79, 80, 99)] == [160, 160, 192, 192]


def test_80_percent_of_any_number_of_epochs_is_the_nearest_whole_number() -> None:
    for epochs in range(1, 301):
        smaller = (8 * epochs + 5) // 10
        beside = [size_at(PROGRESSIVE, epoch, epochs) for epoch in (0, smaller - 1, min(smaller, epochs - 1))]
        assert beside == [160, 160, 192 if smaller < epochs else 160]


def test_half_an_epoch_is_rounded_up_in_decimals() -> None:
    # 0.35 · 90 is 31.5, though 31.499999999999996 in binary fractions
    steps = [ResolutionStep(since=0.0, size=1), ResolutionStep(since=0.35, size=2)]
    assert [size_at(steps, epoch, 90) for epoch in (31, 32)] == [1, 2]


# ffcv-imagenet's rn50_88_epochs.yaml: start_ramp 65, end_ramp 76, min_res 160, max_res 192
FFCV = ResolutionRamp(start_size=160, end_size=192, begin=65, end=76)


def test_ffcvs_ramp_from_160_to_192_jumps_where_it_is_nearer_to_192() -> None:
    # 176, which is half way, is passed between epochs 70 and 71: 160 + 32 · 5/11 = 174.5…, 160 + 32 · 6/11 = 177.5…
    sizes = [size_at(FFCV, epoch, 88) for epoch in range(88)]
    assert sizes == [160] * 71 + [192] * 17


def test_a_ramp_passes_through_every_multiple_of_its_step_and_halves_go_to_the_even_one() -> None:
    ramp = ResolutionRamp(start_size=128, end_size=224, begin=0, end=6)
    # 128, 144, 160, 176, 192, 208, 224 are 4, 4.5, 5, 5.5, 6, 6.5 and 7 times 32
    assert [size_at(ramp, epoch, 8) for epoch in range(8)] == [128, 128, 160, 192, 192, 192, 224, 224]


def test_a_ramp_in_shares_of_the_run_follows_its_length() -> None:
    ramp = ResolutionRamp(start_size=160, end_size=192, begin="35%", end="85%", step=16)
    for epochs in (20, 100):
        sizes = [size_at(ramp, epoch, epochs) for epoch in range(epochs)]
        assert sizes[: 35 * epochs // 100 + 1] == [160] * (35 * epochs // 100 + 1)
        assert sizes[85 * epochs // 100 :] == [192] * (epochs - 85 * epochs // 100)
        assert set(sizes) == {160, 176, 192}
        assert sizes == sorted(sizes)


def ffcvs(epoch: int, begin: int, end: int, start_size: int, end_size: int, step: int) -> int:
    """`get_resolution` of ffcv-imagenet's train_imagenet.py, with the step as an argument."""
    if epoch <= begin:
        return start_size
    if epoch >= end:
        return end_size
    interp = np.interp([epoch], [begin, end], [start_size, end_size])
    return int(np.round(interp[0] / step)) * step


@settings(max_examples=5 * settings().max_examples)
@given(
    st.integers(0, 60), st.integers(1, 100), st.integers(1, 20), st.integers(0, 20), st.sampled_from([1, 16, 32, 48])
)
def test_a_ramp_is_that_of_ffcvs_script(begin: int, length: int, smallest: int, more: int, step: int) -> None:
    end, sizes = begin + length, (smallest * step, (smallest + more) * step)
    assume(sizes[1] <= 10_000)
    ramp = ResolutionRamp(start_size=sizes[0], end_size=sizes[1], begin=begin, end=end, step=step)
    for epoch in range(end + 2):
        assert size_at(ramp, epoch, end + 2) == ffcvs(epoch, begin, end, *sizes, step)
