"""Lottery tickets: rounds that fill the run, masks of the trained weights, values of the rewound ones."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import RunSize, epochs_of
from acdc_cli.recipe.load import load
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.lottery import Config, Method


def config(target: float = 0.75, prune: float = 0.5, **keys: Any) -> Config:
    return Config(method="lottery", target=target, prune=prune, **keys)


class Loop:
    """A run in miniature: a layer whose weights are set by hand, with a batch norm behind it."""

    def __init__(self, block: Config, epochs: int, weights: list[float], optimizer: str = "sgd") -> None:
        self.epochs = epochs
        self.model = nn.Sequential(nn.Linear(len(weights), 1), nn.BatchNorm1d(1))
        self.masked = MaskedParameters({"0.weight": self.linear.weight})
        self.train_to(weights, bias=0.5, mean=0.25)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9)
        if optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.method = Method(block, self.masked, epochs)
        self.method.attach(self.optimizer, self)

    @property
    def linear(self) -> nn.Linear:
        assert isinstance(self.model[0], nn.Linear)
        return self.model[0]

    def train_to(self, weights: list[float], bias: float, mean: float) -> None:
        """What training might have made of the model."""
        values = {"0.weight": torch.tensor([weights]), "0.bias": torch.tensor([bias]), "1.bias": torch.tensor([bias])}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values.get(name, torch.ones_like(parameter)))
            self.model[1].running_mean.fill_(mean)
            self.model[1].num_batches_tracked.fill_(round(8 * mean))
            self.masked.apply()

    def momentum(self) -> None:
        """State in the optimiser, of all parameters; the learning rate is 0, so that nothing moves."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()

    def start(self, epoch: int) -> list[float]:
        """The weights that the epoch begins with."""
        self.method.on_epoch_start(Moment(epoch, 3 * epoch, self.epochs, 3))
        weights: list[float] = self.linear.weight[0].tolist()
        return weights

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(snapshot)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()


def test_a_ticket_has_the_largest_trained_weights_with_their_initial_values() -> None:
    # half of 8 goes, then half of 4; rounds of 2 epochs
    loop = Loop(config(), 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert loop.start(0) == [1, 2, 3, 4, 5, 6, 7, 8]
    loop.train_to([0.9, -0.1, 0.8, 0.2, -0.7, 0.3, 0.6, 0.4], bias=9.0, mean=9.0)
    assert loop.start(1) == pytest.approx([0.9, -0.1, 0.8, 0.2, -0.7, 0.3, 0.6, 0.4])
    assert loop.start(2) == [1, 0, 3, 0, 5, 0, 7, 0]
    loop.train_to([0.1, 9.0, 0.4, 9.0, 0.2, 9.0, -0.3, 9.0], bias=9.0, mean=9.0)
    assert loop.start(3)[1::2] == [0, 0, 0, 0]
    # a weight once pruned stays so
    assert loop.start(4) == [0, 0, 3, 0, 0, 0, 7, 0]
    loop.train_to([9.0] * 8, bias=9.0, mean=9.0)
    assert loop.start(5) == [0, 0, 9, 0, 0, 0, 9, 0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_whole_model_is_rewound_and_the_optimisers_state_forgotten(optimizer: str) -> None:
    loop = Loop(config(), 6, [1.0, 2.0, 3.0, 4.0], optimizer)
    loop.start(0)
    loop.momentum()
    loop.train_to([4.0, 3.0, 2.0, 1.0], bias=9.0, mean=9.0)
    states = [value for state in loop.optimizer.state.values() for value in state.values()]
    assert all(state.any() for state in states)
    assert len(states) == {"sgd": 4, "adam": 12}[optimizer]
    loop.start(2)
    model = loop.model.state_dict()
    assert model["0.weight"].tolist() == [[1, 2, 0, 0]]
    assert (model["0.bias"].item(), model["1.bias"].item(), model["1.running_mean"].item()) == (0.5, 0.5, 0.25)
    assert model["1.num_batches_tracked"].item() == 2
    assert not any(state.any() for state in states)


def test_rewinding_may_go_back_to_an_early_epoch_of_the_first_round_only() -> None:
    # rounds of 3 that are rewound to epoch 1: 0-2, 3-4, 5-6
    loop = Loop(config(rewind_to=1), 7, [1.0, 2.0, 3.0, 4.0])
    loop.start(0)
    loop.train_to([5.0, 6.0, 7.0, 8.0], bias=0.5, mean=0.25)
    assert loop.start(1) == [5, 6, 7, 8]
    loop.train_to([4.0, 3.0, 2.0, 1.0], bias=9.0, mean=9.0)
    loop.start(2)
    assert loop.start(3) == [5, 6, 0, 0]
    loop.train_to([1.0, 2.0, 0.0, 0.0], bias=9.0, mean=9.0)
    assert loop.start(4) == [1, 2, 0, 0]
    assert loop.start(5) == [0, 6, 0, 0]
    assert loop.model[1].running_mean.item() == 0.25


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_what_is_rewound_to_outlives_a_restart(at: int) -> None:
    trained = [[5.0, 6.0, 7.0, 8.0], [4.0, 3.0, 2.0, 1.0], [8.0, 9.0, 1.0, 1.0]] + [[1.0, 2.0, 9.0, 9.0]] * 4

    def run(loop: Loop, first: int, last: int) -> list[list[float]]:
        seen = []
        for epoch in range(first, last):
            seen.append(loop.start(epoch))
            loop.train_to(trained[epoch], bias=9.0, mean=9.0)
        return seen

    begun, resumed = (Loop(config(rewind_to=1), 7, [1.0, 2.0, 3.0, 4.0]) for _ in range(2))
    seen = run(begun, 0, at)
    file = io.BytesIO()
    torch.save({"method": begun.method.state_dict(), "model": begun.model.state_dict()}, file)
    whole = seen + run(begun, at, 7)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(state["model"])
    resumed.method.load_state_dict(state["method"])
    assert seen + run(resumed, at, 7) == whole
    assert (whole[1], whole[3], whole[5]) == ([5, 6, 7, 8], [5, 6, 0, 0], [0, 6, 0, 0])


def test_a_fifth_of_the_rest_goes_after_each_round_and_the_last_ends_at_the_target() -> None:
    # 0.8^3 = 0.512 > 0.5 > 0.8^4, so that the last pruning takes less than a fifth
    block = config(target=0.5, prune=0.2)
    assert [block.sparsity(number) for number in range(5)] == [0.0, 0.2, 0.36, 0.488, 0.5]
    method = Method(block, MaskedParameters({"0.weight": nn.Parameter(torch.ones(1, 1000))}), epochs=10)
    densities = [method.cost(epoch, 1).forward.density for epoch in range(10)]
    assert densities == [1, 1, 0.8, 0.8, 0.64, 0.64, 0.512, 0.512, 0.5, 0.5]
    assert [(phase.kind, phase.start, phase.end) for phase in method.phases.phases] == [
        ("dense", 0, 2), ("ramp", 2, 4), ("ramp", 4, 6), ("ramp", 6, 8), ("sparse", 8, 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "prune", "prunings"),
    [(0.36, 0.2, 2), (0.2, 0.2, 1), (0.1, 0.2, 1), (0.0, 0.2, 0), (0.95, 0.2, 14), (0.9, 0.2, 11), (0.9, 0.9, 1)],
)
def test_there_are_as_many_prunings_as_the_target_takes(target: float, prune: float, prunings: int) -> None:
    assert config(target, prune).prunings == prunings


@given(st.integers(0, 999), st.integers(10, 990))
def test_the_number_of_prunings_is_that_of_exact_arithmetic(target: int, prune: int) -> None:
    density, number = Fraction(1), 0
    while density > 1 - Fraction(target, 1000):
        density, number = density * (1 - Fraction(prune, 1000)), number + 1
    block = config(target / 1000, prune / 1000)
    assert block.prunings == number
    sparsities = [block.sparsity(each) for each in range(number + 1)]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == target / 1000


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 12), st.booleans())
def test_the_rounds_fill_the_run_and_begin_where_the_clock_says(
    length: int, rewind_to: int, prunings: int, share: bool
) -> None:
    start: int | str = f"{rewind_to}%" if share else rewind_to
    skipped = epochs_of(start, length)
    epochs = length + prunings * (length - skipped)
    block = config(target=1 - 0.5**prunings, rewind_to=start)
    if skipped >= length:
        assert [key for key, _ in block.errors(RunSize(length))] == ["prune"]
        return
    assert block.errors(RunSize(epochs)) == []
    expected = list(range(length)) + list(range(skipped, length)) * prunings
    assert [block.clock(float(epoch), epochs) for epoch in range(epochs)] == [(at, length) for at in expected]
    assert [block.clock(epoch + 0.75, epochs)[0] for epoch in range(epochs)] == [at + 0.75 for at in expected]
    phases = Method(block, MaskedParameters({}), epochs).phases.phases
    assert [phase.start for phase in phases] == [0] + [length + n * (length - skipped) for n in range(prunings)]


def test_a_share_to_rewind_to_is_one_of_a_round() -> None:
    # 5 % of 40 epochs, not of the run's 116
    assert config(rewind_to="5%").clock(40, 116) == (2, 40)


@pytest.mark.parametrize(
    ("keys", "epochs", "said"),
    [
        (
            {"target": 0.95, "prune": 0.2, "rewind_to": 5},
            100,
            "100 epochs do not divide into equal rounds: pruning 0.2 of the rest at a time takes 14 prunings to 0.95, "
            "so there are a first round and 14 more that rewind to epoch 5; change prune or rewind_to, or train 95 "
            "(rounds of 11) or 110 (rounds of 12) epochs",
        ),
        (
            {"rewind_to": "50%"},
            10,
            "10 epochs do not divide into equal rounds: pruning 0.5 of the rest at a time takes 2 prunings to 0.75, "
            "so there are a first round and 2 more that rewind to 50% of its epochs; change prune or rewind_to, or "
            "train 9 (rounds of 5) or 12 (rounds of 6) epochs",
        ),
        (
            {"rewind_to": 9},
            9,
            "9 epochs do not divide into equal rounds: pruning 0.5 of the rest at a time takes 2 prunings to 0.75, "
            "so there are a first round and 2 more that rewind to epoch 9; change prune or rewind_to, or train 12 "
            "(rounds of 10) epochs",
        ),
    ],
)
def test_epochs_that_are_no_whole_rounds_are_a_problem(keys: dict[str, Any], epochs: int, said: str) -> None:
    block = config(**keys)
    assert block.errors(RunSize(epochs)) == [("prune", said)]
    with pytest.raises(ValueError, match="do not divide"):
        block.rounds(epochs)
    for total in (int(word) for word in said.rpartition("train ")[2].split() if word.isdigit()):
        assert block.errors(RunSize(total)) == []


def test_a_warm_up_longer_than_a_round_is_refused() -> None:
    assert load("demo_lottery", ["epochs=12", "optim.schedule.warmup_epochs=2"]).epochs == 12
    with pytest.raises(RecipeError, match=r"warmup_epochs.*the peak would come at epoch 3, but there are 3 epochs"):
        load("demo_lottery", ["epochs=12", "optim.schedule.warmup_epochs=3"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"pattern": "2:4", "target": 0.5, "prune": 0.2},
            "pattern: 2:4 has a single sparsity, but prune: 0.2 passes through others; prune all at once "
            "(prune: 0.5), or use another pattern",
        ),
        ({"rewind_to": "100%"}, "rewind_to: 100% of a round leaves nothing to train again; make it smaller"),
        ({"prune": 0.0}, "prune"),
        ({"prune": 1.0}, "prune"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**keys)
    assert said in str(error.value)


def test_a_pattern_of_one_sparsity_is_pruned_once() -> None:
    loop = Loop(config(target=0.5, pattern="2:4"), 2, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    loop.start(0)
    loop.train_to([1.0, 4.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0], bias=9.0, mean=9.0)
    assert loop.start(1) == [0, 2, 3, 0, 5, 6, 0, 0]
    assert [loop.method.cost(epoch, 1).forward.density for epoch in (0, 1)] == [1, 0.5]


def test_blocks_are_pruned_round_by_round() -> None:
    loop = Loop(config(pattern="block4"), 3, [float(n) for n in range(1, 17)])
    loop.start(0)
    loop.train_to([1.0, 0.0, 0.0, 0.0] + [0.5] * 4 + [0.1] * 4 + [0.0, 0.0, 0.0, 1.1], bias=9.0, mean=9.0)
    # means 0.25, 0.5, 0.1, 0.275
    assert loop.start(1) == [0.0] * 4 + [5, 6, 7, 8] + [0.0] * 4 + [13, 14, 15, 16]
    loop.train_to([9.0] * 4 + [0.1] * 4 + [9.0] * 4 + [0.2] * 4, bias=9.0, mean=9.0)
    assert loop.start(2) == [0.0] * 12 + [13, 14, 15, 16]
