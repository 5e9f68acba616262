"""AC/DC's variants: fraction of time sparse, sparse decompression, ramp, dense fine-tuning (P2 H, L, C.2; P1 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import ByHand
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from acdc_cli.errors import RecipeError
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.schedule.time import Phase
from acdc_cli.sparsity.methods.acdc import Config

ONE_EACH = dict.fromkeys(
    ("warmup_epochs", "sparse_epochs", "dense_epochs", "last_dense_epochs", "last_sparse_epochs"), 1
)


def config(**keys: Any) -> Config:
    return Config(method="acdc", **{"target": 0.8} | keys)


def kinds(block: Config, epochs: int) -> str:
    return "".join(block.phases(epochs).at(epoch).kind[0] for epoch in range(epochs))


def refusal(**keys: Any) -> str:
    with pytest.raises(ValidationError) as error:
        config(**keys)
    [detail] = error.value.errors()
    return str(detail["msg"]).removeprefix("Value error, ")


class Run(ByHand):
    """One layer of ten weights, 1 to 10, and one step an epoch; notes when the model is copied, and when restored."""

    headline = Quantity("top1", "top-1", "top-1", "%")

    def __init__(self, epochs: int, **keys: Any) -> None:
        weights = {"a.weight": torch.arange(1.0, 11.0).view(1, 10)}
        block = {"target": 0.8} | ONE_EACH | keys
        super().__init__("acdc", block, weights, epochs=epochs, training=self, momentum=0.5)
        self.calls: list[str] = []

    def snapshot(self) -> dict[str, Tensor]:
        self.calls.append("snapshot")
        return {"a.weight": self.weight.detach().clone()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        self.calls.append("restore")
        with torch.no_grad():
            self.weight.copy_(snapshot["a.weight"])
        self.optimizer.state[self.weight]["momentum_buffer"].zero_()


# The fraction of time spent sparse


@pytest.mark.parametrize(
    ("period", "share", "lengths"), [(10, 0.2, (2, 8)), (10, 0.8, (8, 2)), (3, 0.333, (1, 2)), (2, 0.5, (1, 1))]
)
def test_a_period_and_a_fraction_give_the_lengths_of_the_phases(
    period: int, share: float, lengths: tuple[int, int]
) -> None:
    sparse, dense = lengths
    total = 2 + sparse + 2 * period + 3 + 4
    ends: dict[str, Any] = {"warmup_epochs": 2, "last_dense_epochs": 3, "last_sparse_epochs": 4}
    block = config(period_epochs=period, sparse_fraction=share, **ends)
    assert block.errors(RunSize(total)) == []
    assert kinds(block, total) == "dd" + ("s" * sparse + "d" * dense) * 2 + "s" * sparse + "ddd" + "ssss"
    assert block.phases(total) == config(sparse_epochs=sparse, dense_epochs=dense, **ends).phases(total)


@pytest.mark.parametrize(
    ("period", "share", "said"),
    [
        (10, 0.25, "0.25 of 10 epochs is 2.5 epochs; sparse and dense phases need whole epochs, at least one: use "
         "0.2 or 0.3"),
        (10, 0.0, "0 of 10 epochs is 0 epochs; sparse and dense phases need whole epochs, at least one: use 0.1"),
        (10, 1.0, "1 of 10 epochs is 10 epochs; sparse and dense phases need whole epochs, at least one: use 0.9"),
        (3, 0.5, "0.5 of 3 epochs is 1.5 epochs; sparse and dense phases need whole epochs, at least one: use "
         "0.3333 or 0.6667"),
    ],
)  # fmt: skip
def test_a_fraction_that_gives_no_whole_epochs_is_refused_with_those_that_do(
    period: int, share: float, said: str
) -> None:
    assert refusal(period_epochs=period, sparse_fraction=share) == f"sparse_fraction: {said}"


@given(period=st.integers(2, 60), share=st.floats(0, 1))
def test_the_fractions_that_the_refusal_names_are_taken(period: int, share: float) -> None:
    try:
        config(period_epochs=period, sparse_fraction=share)
    except ValidationError as error:
        named = error.errors()[0]["msg"].rpartition("use ")[2].split(" or ")
        lengths = [config(period_epochs=period, sparse_fraction=float(fraction)).lengths for fraction in named]
        assert all(sparse >= 1 and dense >= 1 and sparse + dense == period for sparse, dense in lengths)


def test_lengths_are_given_in_one_way_only() -> None:
    twice = refusal(period_epochs=10, sparse_fraction=0.2, dense_epochs=5)
    assert twice.startswith("period_epochs: sets the phase lengths, and so do")
    assert refusal(period_epochs=10).startswith("sparse_fraction: missing; set both `period_epochs`")
    assert refusal(sparse_fraction=0.2).startswith("period_epochs: missing; ")


def test_periods_that_do_not_fit_name_runs_that_do() -> None:
    [(key, message)] = config(warmup_epochs=10, period_epochs=10, sparse_fraction=0.2).errors(RunSize(100))
    assert key == "period_epochs"
    assert "phases of 2 with dense phases of 8 between them take 2, 12, 22, … epochs" in message
    assert message.endswith("or train 97 or 107 epochs")


# Sparse decompression


def test_a_dense_phase_frees_only_the_weights_that_were_largest_when_the_first_sparse_phase_began() -> None:
    # dense 0, sparse 1, dense 2, sparse 3, dense 4, sparse 5
    run = Run(epochs=6, dense_sparsity=0.5)
    run.start(0)
    assert run.living() == [*range(10)]
    run.step(0, [0.0] * 5 + [-6.0] + [0.0] * 4)
    assert run.values() == [1, 2, 3, 4, 5, 12, 7, 8, 9, 10]
    run.start(1)
    assert run.values() == [0, 0, 0, 0, 0, 12, 0, 0, 0, 10]
    run.step(1, [1.0] * 10)
    assert run.values() == [0, 0, 0, 0, 0, 14, 0, 0, 0, 9]  # momentum 0.5 · -6 + 1 = -2 for the sixth
    run.start(2)
    assert run.values() == [0, 0, 0, 0, 0, 14, 0, 0, 0, 9]
    assert run.living() == [5, 6, 7, 8, 9]
    assert run.momentum() == [0.0] * 10
    run.step(2, [-20.0] * 10)
    assert run.values() == [0, 0, 0, 0, 0, 34, 20, 20, 20, 29]
    run.step(2, [-100.0] * 7 + [10.0] + [20.0] * 2)
    assert run.values() == [0, 0, 0, 0, 0, 144, 130, 20, 10, 19]
    run.start(3)
    assert run.living() == [5, 6]  # chosen anew, among those that lived
    run.start(4)
    assert run.living() == [5, 6, 7, 8, 9]
    run.start(5)
    assert run.living() == [5, 6]
    assert [run.method.cost(epoch, 1).forward.density for epoch in range(6)] == [1, 0.2, 0.5, 0.2, 0.5, 0.2]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("pattern", ["unstructured", "block2"])
def test_a_ranking_at_any_later_compression_would_free_the_same_weights(distribution: str, pattern: str) -> None:
    noise = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (6, 4, 3, 3), "b.weight": (4, 8), "c.weight": (1, 4)}
    weights = {name: torch.randn(shape, generator=noise).round() for name, shape in shapes.items()}
    keys = {"target": 0.8, "dense_sparsity": 0.5, "distribution": distribution, "pattern": pattern}
    run = ByHand("acdc", ONE_EACH | keys, weights, epochs=8)
    freed: list[dict[str, Tensor]] = []
    for epoch in range(8):
        if epoch in (3, 5, 7):
            again = run.method.selector.masks(run.masked.magnitudes(), 0.5)
            assert all(torch.equal(again[name], mask) for name, mask in freed[0].items())
        run.start(epoch)
        if epoch in (2, 4, 6):
            freed.append({name: mask.clone() for name, mask in run.masked.masks.items()})
        with torch.no_grad():
            for weight in run.weights.values():
                weight.add_(torch.randn(weight.shape, generator=noise).round())
        run.masked.apply()
    assert sum(int(mask.sum()) for mask in freed[0].values()) == 126  # half of 252 weights
    assert all(torch.equal(later[name], mask) for later in freed for name, mask in freed[0].items())


def test_the_freed_weights_survive_a_restart_within_the_sparse_phase() -> None:
    run, resumed = Run(epochs=4, dense_sparsity=0.5), Run(epochs=4, dense_sparsity=0.5)
    run.start(0)
    assert set(run.method.state_dict()) == {"masks"}
    run.start(1)
    resumed.weight.data.copy_(run.weight.detach())
    resumed.method.load_state_dict(run.method.state_dict())
    resumed.start(2)
    assert resumed.living() == [5, 6, 7, 8, 9]


def test_dense_phases_must_be_less_sparse_than_the_sparse_ones() -> None:
    said = "dense_sparsity: expected less than {}, the sparsity of the first sparse phase, found 0.8"
    assert refusal(dense_sparsity=0.8) == said.format(0.8)
    assert refusal(dense_sparsity=0.8, target=0.9, ramp_from=0.7) == said.format(0.7)
    assert refusal(dense_sparsity=0.25, target=0.5, pattern="2:4").startswith(
        "dense_sparsity: pattern 2:4 has a single"
    )


# The ramp


def test_the_sparsity_rises_by_the_same_step_at_each_sparse_phase_to_the_target_at_the_last() -> None:
    block = config(target=0.98, ramp_from=0.9, **ONE_EACH)
    assert [block.sparsity(epoch, 10) for epoch in range(10)] == [0, 0.9, 0, 0.92, 0, 0.94, 0, 0.96, 0, 0.98]
    run = Run(epochs=10, target=0.8, ramp_from=0.4)
    living = []
    for epoch in range(10):
        run.start(epoch)
        living.append(len(run.living()))
    assert living == [10, 6, 10, 5, 10, 4, 10, 3, 10, 2]
    assert [10 * run.method.cost(epoch, 1).forward.density for epoch in range(10)] == living


def test_a_phase_keeps_its_sparsity_to_its_end() -> None:
    lengths = {"warmup_epochs": 0, "sparse_epochs": 2, "dense_epochs": 1, "last_dense_epochs": 1}
    block = config(target=0.9, ramp_from=0.5, dense_sparsity=0.2, last_sparse_epochs=3, **lengths)
    assert [block.sparsity(epoch, 9) for epoch in range(9)] == [0.5, 0.5, 0.2, 0.7, 0.7, 0.2, 0.9, 0.9, 0.9]


@given(start=st.decimals("0", "0.5", places=3), rise=st.decimals("0", "0.499", places=3), rounds=st.integers(1, 6))
def test_a_ramp_starts_and_ends_exactly_and_never_falls(start: Any, rise: Any, rounds: int) -> None:
    block = config(target=float(start + rise), ramp_from=float(start), **ONE_EACH)
    epochs = 2 * rounds + 2
    sparsities = [block.sparsity(epoch, epochs) for epoch in range(1, epochs, 2)]
    assert (sparsities[0], sparsities[-1]) == (float(start), float(start + rise))
    assert sparsities == sorted(sparsities)


def test_where_the_last_phase_is_dense_the_sparse_phase_before_has_the_target() -> None:
    block = config(target=0.9, ramp_from=0.5, last_phase="dense_last", **ONE_EACH)
    assert kinds(block, 6) == "dsdsdd"
    assert [block.sparsity(epoch, 6) for epoch in range(6)] == [0, 0.5, 0, 0.9, 0, 0]


def test_a_ramp_that_falls_or_cannot_rise_is_refused() -> None:
    assert refusal(target=0.9, ramp_from=0.95) == "ramp_from: expected at most the target, 0.9, found 0.95"
    assert refusal(target=0.5, ramp_from=0.25, pattern="2:4").startswith("ramp_from: pattern 2:4 has a single sparsity")
    once = config(ramp_from=0.5, last_phase="dense_last", **ONE_EACH).errors(RunSize(4))
    assert once == [
        ("ramp_from", "the run has a single sparse phase, so the sparsity cannot rise; remove it, or train longer")
    ]


# Dense fine-tuning in place of the last sparse phase


def test_two_dense_phases_follow_each_other() -> None:
    block = config(last_phase="dense_last", **ONE_EACH | {"last_dense_epochs": 2, "last_sparse_epochs": 3})
    assert [(phase.kind, phase.start, phase.end) for phase in block.phases(9).phases] == [
        ("dense", 0, 1),
        ("sparse", 1, 2),
        ("dense", 2, 3),
        ("sparse", 3, 4),
        ("dense", 4, 6),
        ("dense", 6, 9),
    ]
    [(_, message)] = block.errors(RunSize(8))
    assert "(2 dense and 3 dense)" in message


def fine_tuned(last_phase: str, headline: Quantity = Run.headline) -> Run:
    """Dense 0, sparse 1, dense 2, sparse 3, dense 4-5, fine-tuned 6-7, each weight minus 1 an epoch before that."""
    run = Run(epochs=8, last_phase=last_phase, last_dense_epochs=2, last_sparse_epochs=2)
    run.headline = headline
    # the warm-up is better than any, 4 is the best of the alternation and 5 as good; the fine-tuned ones do not count
    for epoch, top1 in enumerate([0.9, 0.8, 0.2, 0.7, 0.4, 0.4, 0.95]):
        run.start(epoch)
        run.step(epoch, [1.0 if epoch < 6 else 0.0] * 10)
        run.end(epoch, top1=top1)
        if epoch == 4:
            run.calls.append(str(run.values()))
    return run


def test_the_best_dense_epoch_after_the_warm_up_is_fine_tuned() -> None:
    run = fine_tuned("dense_best")
    saved = run.calls[2]
    assert run.calls == ["snapshot", "snapshot", saved, "restore"]
    assert str(run.values()) == saved
    assert run.momentum() == [0.0] * 10
    assert run.living() == [*range(10)]
    assert set(run.method.state_dict()) == {"masks"}  # done with


def test_the_best_dense_epoch_has_the_lowest_value_where_less_is_better() -> None:
    run = fine_tuned("dense_best", replace(Run.headline, better="less"))
    # epoch 2 has 0.2, less than the 0.4 of the epochs 4 and 5
    assert [call for call in run.calls if call in ("snapshot", "restore")] == ["snapshot", "restore"]


def test_the_last_dense_model_simply_goes_on() -> None:
    run = fine_tuned("dense_last")
    assert len(run.calls) == 1
    assert str(run.values()) != run.calls[0]
    assert run.momentum() != [0.0] * 10


def test_the_best_model_and_how_good_it_is_survive_a_restart() -> None:
    keys: dict[str, Any] = {"last_phase": "dense_best", "last_dense_epochs": 2}
    run, resumed = Run(epochs=5, **keys), Run(epochs=5, **keys)
    for epoch in range(3):
        run.start(epoch)
        run.step(epoch, [1.0] * 10)
        run.end(epoch, top1=0.5)
    best = run.values()
    state = run.method.state_dict()
    run.step(2, [1.0] * 10)
    resumed.method.load_state_dict(state)
    resumed.step(3, [1.0] * 10)
    resumed.end(3, top1=0.4)
    assert resumed.calls == []
    resumed.start(4)
    assert resumed.values() == best


def test_both_repeats_the_last_phase_and_its_clock_with_the_dense_model() -> None:
    # as P1's: 100 epochs with a last dense phase of 10 and a last sparse one of 15, and 15 more
    block = config(last_phase="both", warmup_epochs=10)
    alone = config(warmup_epochs=10)
    assert block.phases(115).phases[:-1] == alone.phases(100).phases
    assert block.phases(115).phases[-1] == Phase("dense", 100, 115)
    assert [block.clock(at, 115) for at in (0, 84.5, 85, 99.5, 100, 100.5, 114)] == [
        (at, 100) for at in (0, 84.5, 85, 99.5, 85, 85.5, 99)
    ]
    shares = config(last_phase="both", warmup_epochs=10, last_sparse_epochs="15%")
    assert shares.phases(115) == block.phases(115)
    assert [alone.clock(at, 100) for at in (0, 99.5)] == [(0, 100), (99.5, 100)]


@pytest.mark.parametrize("dense_sparsity", [0.0, 0.25])
def test_both_fine_tunes_the_dense_model_of_the_last_dense_epoch(dense_sparsity: float) -> None:
    """Dense 0, sparse 1, dense 2, sparse 3, dense 4-5, sparse 6-7, fine-tuned 8-9."""
    run = Run(epochs=10, last_phase="both", last_dense_epochs=2, last_sparse_epochs=2, dense_sparsity=dense_sparsity)
    ends = []
    for epoch in range(8):
        run.start(epoch)
        run.step(epoch, [1.0] * 10)
        run.end(epoch, top1=0.5)
        ends.append((run.values(), run.living()))
    assert run.calls == ["snapshot"]
    assert ends[7] != ends[5]
    run.start(8)
    assert run.calls == ["snapshot", "restore"]
    assert (run.values(), run.living()) == ends[5]
    assert run.momentum() == [0.0] * 10
    run.step(8, [1.0] * 10)
    run.start(9)
    assert run.calls == ["snapshot", "restore"]
    assert "best" not in run.method.state_dict()


@pytest.mark.parametrize(("last_phase", "epoch"), [("both", 6), ("both", 8), ("dense_best", 6)])
def test_a_fork_without_the_dense_model_that_it_should_fine_tune_is_refused(last_phase: str, epoch: int) -> None:
    run = Run(
        epochs=10 if last_phase == "both" else 8, last_phase=last_phase, last_dense_epochs=2, last_sparse_epochs=2
    )
    with pytest.raises(RecipeError, match=f"last_phase: {last_phase} fine-tunes a dense model .* use dense_last"):
        run.start(epoch)


def test_both_in_a_run_too_short_is_refused_in_words() -> None:
    block = config(last_phase="both", warmup_epochs=10)
    for epochs, fitting in ((1, "55"), (10, "55"), (114, "105 or 115")):
        [(key, message)] = block.errors(RunSize(epochs))
        assert key == "sparse_epochs"
        assert "(10 dense and 15 sparse, then 15 of fine-tuning)" in message
        assert message.endswith(f"train {fitting} epochs")
