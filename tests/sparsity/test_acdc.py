"""AC/DC: which epochs are sparse, and what entering a phase does (P1 3.2)."""

from typing import Any

import pytest
import torch
from by_hand import ByHand, of_two_layers
from torch import nn

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.sparsity.methods.acdc import Config


def config(**keys: Any) -> Config:
    return Config(method="acdc", target=0.5, **keys)


def sparse_epochs(epochs: int, **keys: Any) -> list[int]:
    plan = config(**keys).phases(epochs)
    return [epoch for epoch in range(epochs) if plan.at(epoch).kind == "sparse"]


def test_100_epochs_of_p1_are_sparse_exactly_at_10_to_14_and_so_on_to_74_and_from_85() -> None:
    sparse = [
        *range(10, 15),
        *range(20, 25),
        *range(30, 35),
        *range(40, 45),
        *range(50, 55),
        *range(60, 65),
        *range(70, 75),
        *range(85, 100),
    ]
    assert sparse_epochs(100, warmup_epochs=10) == sparse_epochs(100) == sparse
    assert len(sparse) == 50


def test_a_warm_up_in_percent_grows_with_the_run() -> None:
    plan = config().phases(200)
    assert [(phase.start, phase.end) for phase in plan.phases[:3]] == [(0, 20), (20, 25), (25, 30)]
    assert [(phase.kind, phase.start, phase.end) for phase in plan.phases[-3:]] == [
        ("sparse", 170, 175),
        ("dense", 175, 185),
        ("sparse", 185, 200),
    ]


def test_sparse_and_dense_phases_may_differ_in_length() -> None:
    # 2 dense | 3 sparse, 1 dense, 3 sparse, 1 dense, 3 sparse | 2 dense | 4 sparse
    lengths = {
        "warmup_epochs": 2,
        "sparse_epochs": 3,
        "dense_epochs": 1,
        "last_dense_epochs": 2,
        "last_sparse_epochs": 4,
    }
    assert sparse_epochs(19, **lengths) == [2, 3, 4, 6, 7, 8, 10, 11, 12, 15, 16, 17, 18]


def test_a_run_may_start_sparse() -> None:
    assert sparse_epochs(30, warmup_epochs=0) == [*range(5), *range(15, 30)]


@pytest.mark.parametrize(
    ("epochs", "left", "totals"),
    [(97, 62, "90 or 100"), (35, 0, "40"), (20, 0, "40")],
)
def test_phases_that_do_not_fit_are_a_problem_that_names_runs_that_do(epochs: int, left: int, totals: str) -> None:
    message = (
        f"{epochs} epochs leave {left} between the warm-up (10) and the last phases (10 dense and 15 sparse); "
        "sparse phases of 5 with dense phases of 5 between them take 5, 15, 25, … epochs: "
        f"change a length, or train {totals} epochs"
    )
    assert config(warmup_epochs=10).errors(RunSize(epochs)) == [("sparse_epochs", message)]
    with pytest.raises(ValueError, match="change a length"):
        config(warmup_epochs=10).phases(epochs)


def test_where_no_run_fits_only_the_lengths_can_change() -> None:
    [(_, message)] = config(warmup_epochs="100%").errors(RunSize(100))
    assert message.endswith("change a length")


def test_the_last_phases_must_exist() -> None:
    problems = config(last_dense_epochs=0, last_sparse_epochs="0.1%").errors(RunSize(100))
    assert [key for key, _ in problems] == ["last_dense_epochs", "last_sparse_epochs"]
    assert problems[1][1] == "0.1% of 100 epochs is 0 epochs; each of the last phases needs at least one"


def test_every_run_without_problems_has_a_plan_of_all_its_epochs() -> None:
    fitting = [epochs for epochs in range(1, 301) if not config().errors(RunSize(epochs))]
    assert {33, 100, 200, 300} <= set(fitting)
    assert all(config().phases(epochs).epochs == epochs for epochs in fitting)


def run_of(weights: dict[str, Any], epochs: int = 4, length: int = 1, **keys: Any) -> ByHand:
    """One step an epoch, and phases of this length: dense, sparse, dense, and one last sparse epoch."""
    lengths = dict.fromkeys(("warmup_epochs", "sparse_epochs", "dense_epochs", "last_dense_epochs"), length)
    block = {"target": 0.5, "last_sparse_epochs": 1} | lengths | keys
    return ByHand("acdc", block, weights, epochs=epochs, momentum=0.5)


def two_layers(**keys: Any) -> ByHand:
    """Dense 0, sparse 1, dense 2, sparse 3."""
    return run_of({"a": [4.0, -1.0], "b": [2.0, 3.0]}, **keys)


def test_phases_prune_once_free_as_zeros_and_forget_momentum() -> None:
    run = two_layers()
    run.start(0)
    run.step(0, 1.0)
    assert of_two_layers(run.values) == [[3, -2], [1, 2]]
    run.start(1)
    assert of_two_layers(run.values) == [[3, -2], [0, 0]]  # 2 ties with 2: the first stays
    assert of_two_layers(run.momentum) == [[1, 1], [0, 0]]
    run.step(1, -1.0)
    assert of_two_layers(run.values) == [[3.5, -1.5], [0, 0]]  # momentum 0.5 · 1 - 1
    run.start(2)
    assert of_two_layers(run.values) == [[3.5, -1.5], [0, 0]]
    assert of_two_layers(run.momentum) == [[0, 0], [0, 0]]
    run.step(2, -2.0)
    assert of_two_layers(run.values) == [[5.5, 0.5], [2, 2]]
    run.start(3)
    assert of_two_layers(run.values) == [[5.5, 0], [2, 0]]  # the last sparse phase has masks of its own


def test_entering_a_dense_phase_forgets_the_momentum_of_what_is_never_pruned_too() -> None:
    # P1 4: "We reset SGD momentum at the beginning of every decompression phase"
    run, bias = two_layers(), nn.Parameter(torch.tensor([1.0]))
    run.optimizer.add_param_group({"params": [bias]})
    seen = []
    for epoch, gradient in enumerate([1.0, 2.0, 4.0, 8.0]):
        run.start(epoch)
        bias.grad = torch.tensor([gradient])
        run.step(epoch, 0.0)
        seen.append((run.optimizer.state[bias]["momentum_buffer"].item(), bias.item()))
    # momentum 1 | 0.5 · 1 + 2 | 4, from nothing again | 0.5 · 4 + 8
    assert seen == [(1, 0), (2.5, -2.5), (4, -6.5), (10, -16.5)]


def test_momentum_lives_on_where_the_recipe_says_so() -> None:
    run = two_layers(reset_momentum=False)
    run.start(0)
    run.step(0, 1.0)
    run.start(1)
    run.start(2)
    assert of_two_layers(run.momentum) == [[1, 1], [0, 0]]


def test_only_the_first_epoch_of_a_phase_does_anything() -> None:
    # dense 0-1, sparse 2-3, dense 4-5, sparse 6
    run = run_of({"a": [1.0, 2.0, 3.0, 4.0]}, epochs=7, length=2)
    run.optimizer.param_groups[0]["lr"] = 0.0
    living, momentum = [], []
    for epoch in range(7):
        run.start(epoch)
        living.append("".join(str(int(lives)) for lives in run.masked.masks["a"]))
        momentum.append(sum(run.momentum()) if epoch else 0)
        with torch.no_grad():
            run.weight[2] = 0.0  # a living weight that training made zero
        run.step(epoch, 1.0)
    assert living == ["1111", "1111", "0101", "0101", "1111", "1111", "0101"]
    assert momentum == [0, 4, 3, 3.5, 0, 4, 3]
    assert [run.method.cost(epoch, 1).forward.density for epoch in range(7)] == [1, 1, 0.5, 0.5, 1, 1, 0.5]


def test_two_of_four_is_chosen_anew_in_every_sparse_phase() -> None:
    # P1 4, semi-structured sparsity: dense 0, sparse 1, dense 2, sparse 3
    run = run_of({"a": [[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]}, pattern="2:4")
    seen = []
    for epoch in range(4):
        run.start(epoch)
        seen.append(run.weight.tolist())
        if epoch == 2:
            with torch.no_grad():
                run.weight[:, 3] = 9.0
    assert run.config.errors(RunSize(4)) == []
    assert seen[1] == seen[2] == [[4, 3, 0, 0], [1, 1, 0, 0]]
    assert seen[3] == [[4, 0, 0, 9], [1, 0, 0, 9]]
    assert [run.method.cost(epoch, 1).forward.density for epoch in range(4)] == [1, 0.5, 1, 0.5]
