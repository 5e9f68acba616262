"""The simulation behind docs/scale.md: hand-worked cases, limits, and that the document says what it says."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.scale import parts, tables
from scripts.scale.__main__ import DOCUMENT, assume, main, renewed
from scripts.scale.parts import Assumed, Machine, Model
from scripts.scale.run import Checkpoint, Failures, Work, simulate
from scripts.scale.steps import Step, joint_steps, mean_step, step_ends
from scripts.scale.study import cells, list_schedule, resnet50

WORK = Work(training=9.0, validation=1.0, epochs=3)
ONE_FAILURE = Failures(restart=5.0, at=(20.0,))


def test_a_run_that_never_fails_is_its_work_and_its_checkpoints() -> None:
    outcome = simulate(WORK, Checkpoint(stop=1.0, write=2.0), Failures())
    assert (outcome.training, outcome.validation, outcome.stopped, outcome.total) == (27.0, 3.0, 9.0, 39.0)
    assert (outcome.lost, outcome.restarting, outcome.failures) == (0.0, 0.0, 0)
    # two writes go on beside the next epoch; only the last one is waited for
    behind = simulate(WORK, Checkpoint(stop=1.0, write=2.0, asynchronous=True), Failures())
    assert behind.total == 30 + 3 * 1 + 2


def test_one_failure_costs_the_work_since_the_checkpoint_and_a_restart() -> None:
    # 0-10 work, 10-13 checkpoint, 13-20 work that is lost, 20-25 restart, then 10 + 3 + 10 + 3
    outcome = simulate(WORK, Checkpoint(stop=1.0, write=2.0), ONE_FAILURE)
    assert (outcome.lost, outcome.restarting, outcome.stopped, outcome.total) == (7.0, 5.0, 9.0, 51.0)
    assert outcome.goodput == 27 / 51
    # asynchronous: work from 11 on, the first checkpoint is there at 13; 25-35, 36-46, 47 and its write until 49
    behind = simulate(WORK, Checkpoint(stop=1.0, write=2.0, asynchronous=True), ONE_FAILURE)
    assert (behind.lost, behind.restarting, behind.stopped, behind.total) == (9.0, 5.0, 5.0, 49.0)


def test_a_write_that_a_failure_interrupts_saves_nothing() -> None:
    # the write of the first checkpoint takes until 21: everything is done again
    for asynchronous, lost in ((False, 10.0), (True, 19.0)):
        outcome = simulate(WORK, Checkpoint(1.0, 10.0, asynchronous), ONE_FAILURE)
        assert outcome.lost == lost


def test_a_checkpoint_waits_for_the_one_before() -> None:
    # writes of 15 s end at 26, 42 and 58; the steps are done at 10, 21 and 37
    outcome = simulate(WORK, Checkpoint(1.0, 15.0, asynchronous=True), Failures())
    assert outcome.total == 58.0


def test_a_failure_within_a_restart_begins_it_anew() -> None:
    outcome = simulate(WORK, Checkpoint(1.0, 2.0), Failures(restart=5.0, at=(20.0, 22.0)))
    assert (outcome.failures, outcome.restarting, outcome.total) == (2, 2 + 5, 51 + 2)


def test_checkpoints_lie_at_multiples_of_the_interval_and_at_the_end() -> None:
    assert list(Work(10.0, 2, interval=6.0).checkpoints()) == [6.0, 12.0, 18.0, 20.0]
    assert list(Work(10.0, 2).checkpoints()) == [10.0, 20.0]


SECONDS = st.floats(0.0, 20.0).map(lambda value: round(value, 2))


@settings(deadline=None)
@given(
    stop=SECONDS,
    write=SECONDS,
    training=st.floats(1.0, 50.0),
    validation=SECONDS,
    interval=st.none() | st.floats(1.0, 60.0),
    per_hour=st.floats(0.0, 60.0),
    restart=SECONDS,
    seed=st.integers(0, 2**32),
)
def test_asynchronous_checkpoints_are_never_worse(
    stop: float,
    write: float,
    training: float,
    validation: float,
    interval: float | None,
    per_hour: float,
    restart: float,
    seed: int,
) -> None:
    # few enough failures that a piece of work and its checkpoint succeed sooner or later
    piece = (interval or training + validation) + stop + write + restart
    failures = Failures(min(per_hour, 3600 / piece), restart)
    work = Work(training, 8, validation, interval)
    sync, behind = (simulate(work, Checkpoint(stop, write, mode), failures, seed) for mode in (False, True))
    assert behind.total <= sync.total + 1e-6
    for outcome in (sync, behind):
        assert 0 < outcome.goodput <= 1
        assert min(outcome.stopped, outcome.lost, outcome.restarting) >= -1e-6
        assert outcome == simulate(work, Checkpoint(stop, write, outcome is behind), failures, seed)


def test_the_mean_run_is_as_long_as_daly_says() -> None:
    # exponential failures, M seconds apart: a piece of τ with its checkpoint of C takes M e^(R/M) (e^((τ+C)/M) - 1)
    apart, restart, interval, stop = 1000.0, 60.0, 200.0, 10.0
    work = Work(training=interval, epochs=20_000)
    outcome = simulate(work, Checkpoint(stop, 0.0), Failures(3600 / apart, restart), seed=1)
    expected = 20_000 * apart * math.exp(restart / apart) * math.expm1((interval + stop) / apart)
    assert outcome.failures > 4000
    assert outcome.total == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_youngs_interval_is_the_best_of_those_tried(asynchronous: bool) -> None:
    checkpoint, failures = Checkpoint(2.0, 20.0, asynchronous), Failures(0.05, restart=300)
    assert tables.young(checkpoint, failures) == pytest.approx(math.sqrt(2 * (2 if asynchronous else 22) * 72_000))
    quarter, _, once, _, four = (each.goodput for each in tables.tried_intervals(checkpoint, failures, failed=400))
    assert once > max(quarter, four)


def test_two_ranks_step_as_worked_out_by_hand() -> None:
    # without noise: the loader has its first batch at 3; then it is faster than the step of 4 + 1
    step = Step(device=4.0, exposed=1.0, batch=3.0, queue=1)
    assert step_ends(step, ranks=2, machine=2, count=3).tolist() == [8.0, 13.0, 18.0]
    # a loader that is slower than the step sets the pace, whatever its queue holds
    slow = replace(step, batch=7.0, queue=4)
    assert step_ends(slow, 2, 2, 4).tolist() == [12.0, 19.0, 26.0, 33.0]
    # a host that launches for longer than the device computes, and agrees beside the next step
    launched = Step(device=1.0, exposed=1.0, host=3.0, agreement=2.0)
    assert step_ends(launched, 2, 1, 3).tolist() == [3.0, 6.0, 9.0]
    # agreements that take longer than a step set the pace, from the second step on
    assert step_ends(replace(launched, agreement=4.0), 2, 1, 3).tolist() == [3.0, 7.0, 11.0]


def test_steps_are_those_of_an_event_queue() -> None:
    """Against a slow reference: one event at a time, each rank, loader and queue by itself."""
    step = Step(device=1.0, exposed=0.2, batch=1.1, queue=2, noise=0.5)
    ranks, machine, count = 6, 2, 40
    expected = _by_events(step, ranks, machine, count, seed=3)
    assert step_ends(step, ranks, machine, count, seed=3) == pytest.approx(expected)


def _by_events(step: Step, ranks: int, machine: int, count: int, seed: int) -> list[float]:
    device, _ = step.drawn(np.random.default_rng(seed), (count, ranks))
    machines = ranks // machine
    events: list[tuple[float, str, int]] = [(step.batch, "drawn", owner) for owner in range(machines)]
    heapq.heapify(events)
    queued, drawing = [0] * machines, [True] * machines
    waiting, computing, index, ends = set(range(machines)), 0, 0, []
    while len(ends) < count:
        now, what, owner = heapq.heappop(events)
        if what == "drawn":
            queued[owner] += 1
            drawing[owner] = False
        elif what == "computed":
            computing -= 1
            if not computing and not waiting:
                heapq.heappush(events, (now + step.exposed, "ended", 0))
        else:
            ends.append(now)
            index += 1
            waiting = set(range(machines))
        for each in sorted(waiting):
            if queued[each] and index < count:
                queued[each] -= 1
                waiting.discard(each)
                for rank in range(each * machine, (each + 1) * machine):
                    computing += 1
                    heapq.heappush(events, (now + device[index, rank], "computed", each))
        for each in range(machines):
            if not drawing[each] and queued[each] < step.queue:
                drawing[each] = True
                heapq.heappush(events, (now + step.batch, "drawn", each))
    return ends


def test_stragglers_cost_what_the_slowest_of_all_ranks_does() -> None:
    rng = np.random.default_rng(7)
    slowest = rng.lognormal(-(0.1**2) / 2, 0.1, (4000, 64)).max(axis=1).mean()
    assert mean_step(Step(device=1.0, noise=0.1), 64, count=4000) == pytest.approx(slowest, rel=0.01)


def test_measured_steps_of_two_processes_are_the_slower_one_and_the_exchange() -> None:
    # of {1, 3} and {2, 3}, the slower one is 2 once in four times
    assert joint_steps([[1.0, 3.0], [2.0, 3.0]], [0.5]) == [2.5, 3.5, 3.5, 3.5]
    # two rounds of two steps; each process's list holds one after the other
    milliseconds = {
        "one": [[4.0, 4.0, 5.0, 7.0]],
        "apart": [[1.0, 3.0, 2.0, 2.0], [2.0, 3.0, 2.0, 2.0]],
        "exchange": [[0.5, 0.5, 2.0, 2.0], [0.7, 0.9, 1.0, 1.0]],
        "together": [[3.0, 3.0, 2.0, 2.0], [3.5, 3.0, 2.0, 2.0]],
    }
    first, second = tables.joints({"steps_per_round": 2, "ms": milliseconds})
    assert (first.predicted, first.measured, first.one) == (3.25, 3.25, 4.0)
    assert (second.predicted, second.measured, second.one) == (3.0, 2.0, 6.0)
    # 1 and 1.5
    assert tables.error([first, second]) == pytest.approx(0.25)


MODEL = Model(gradient_bytes=100_000_000, buckets=5, flops={160: 1e10, 192: 1.5e10, 224: 2e10})
FREE = assume(["launch=0", "noise=0", "nvlink=inf", "nic=inf", "hop_nvlink=0", "hop_network=0", "cores=1000000"])


@pytest.mark.parametrize("gpus", [2, 8, 64, 512])
def test_with_free_exchange_and_hosts_images_grow_in_proportion(gpus: int) -> None:
    free = replace(FREE, agree_every=10**12)
    one, many = (mean_step(Machine(MODEL, count, free).step(160), count) for count in (1, gpus))
    assert one / many == pytest.approx(gpus, rel=1e-3)


def test_an_all_reduce_sends_nearly_twice_the_gradients_over_the_narrowest_way() -> None:
    plain = replace(Assumed(), hop_nvlink=0.0, hop_network=0.0, nvlink=400e9, nic=50e9, nics=1)
    assert Machine(MODEL, 1, plain).exchange() == 0
    assert Machine(MODEL, 2, plain).exchange() == pytest.approx(1e8 / 400e9)
    assert Machine(MODEL, 16, plain).exchange() == pytest.approx(2 * 15 / 16 * 1e8 / 50e9)
    # hops alone, 16 GPUs in two machines: 2 × 7 within and 2 × 1 between, for each of five buckets
    hops = replace(plain, nvlink=math.inf, nic=math.inf, hop_nvlink=2e-6, hop_network=10e-6)
    assert Machine(MODEL, 16, hops).exchange() == pytest.approx(5 * (14 * 2e-6 + 2 * 10e-6))
    # a flat ring of 16 has 30 hops, four of them between machines
    assert Machine(MODEL, 16, hops).ring_exchange() == pytest.approx(5 * (28 * 2e-6 + 4 * 10e-6))


def test_the_longest_runs_are_scheduled_first() -> None:
    # 5 | 4: then 3 with 4, 3 with 5, and 3 with 7
    assert list_schedule([3, 3, 3, 4, 5], 2) == 10
    assert list_schedule([3, 3], 5) == 3


def test_the_study_is_the_figure_that_it_ships() -> None:
    assert len(cells()) == 60
    assert sum(cell.epochs for cell in cells()) == 5625
    (longest,) = {cell.sides for cell in cells() if cell.epochs == 200}
    assert (longest.count(160), longest.count(192)) == (160, 40)


def test_resnet50_is_counted_and_not_assumed() -> None:
    assert resnet50().gradient_bytes == 4 * 25_557_032
    # 1 MiB, then 25 MiB each
    assert resnet50().buckets == 5
    assert resnet50().flops[224] == pytest.approx(3 * 8.178e9, rel=1e-3)


def test_two_measured_processes_are_predicted_within_the_tolerance_that_the_document_states() -> None:
    document = parts.result("processes")
    assert len(document["steps"]) == 2
    assert all(abs(tables.error(tables.joints(steps))) <= tables.TOLERANCE for steps in document["steps"].values())
    assert abs(tables.loss_error(tables.losses(document))) <= tables.TOLERANCE
    assert f"within {tables.TOLERANCE:.0%}" in DOCUMENT.read_text()


def test_every_assumed_part_has_a_source_and_can_be_set() -> None:
    assert list(tables.RANGES) == list(Assumed.__dataclass_fields__)
    assert assume(["flops=1e14", "agree_every=50"]) == replace(Assumed(), flops=1e14, agree_every=50)
    with pytest.raises(ValueError, match="there is no part flop; there are flops, launch"):
        assume(["flop=1"])


@pytest.mark.slow
def test_the_document_holds_every_table_as_the_script_prints_it() -> None:
    text = DOCUMENT.read_text()
    assert [name for name in tables.TABLES if f"<!-- table: {name} -->" not in text] == []
    assert renewed(text, Assumed()) == text


def test_the_command_prints_the_tables_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scale", "exchange", "loaders", "--set", "cores=3"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert f"exchange\n\n{tables.exchange(assume(['cores=3']))}\n" in printed
    assert f"loaders\n\n{tables.loaders(assume(['cores=3']))}\n" in printed
    monkeypatch.setattr("sys.argv", ["scale", "exchanges"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no table exchanges; there are assumed" in capsys.readouterr().err
