"""The empirical Fisher's inverse against an explicit one, and optimal brain surgery against brute force."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acdc_cli.sparsity.fisher import Fisher, InverseFisher, Stretch, groups


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inverse_of(gradients: Tensor, weights: Tensor, block: int, damping: float) -> InverseFisher:
    inverse = InverseFisher(weights, block, damping, len(gradients))
    for gradient in gradients:
        inverse.add(gradient)
    return inverse


def explicit(gradients: Tensor, block: int, damping: float) -> Tensor:
    """(weights, weights): the mean outer product, cut to its blocks, damped and inverted as a whole."""
    samples, weights = gradients.shape
    blocks = torch.arange(weights) // block
    fisher = (gradients.T @ gradients / samples) * (blocks[:, None] == blocks)
    return torch.linalg.inv(fisher + damping * torch.eye(weights, dtype=gradients.dtype))


def whole(inverse: InverseFisher, weights: int) -> Tensor:
    """Column by column: alone, and with w_q = 1, a pruned weight changes the others by -F^-1 e_q / [F^-1]_qq."""
    diagonal = inverse.diagonal()
    columns = [-inverse.compensation(row) * diagonal[q] for q, row in enumerate(torch.eye(weights).bool())]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("samples", [1, 2, 7, 40])
def test_the_recurrence_gives_the_inverse(samples: int) -> None:
    # blocks of 4, 4 and 3
    gradients = normal(samples, 11)
    inverse = inverse_of(gradients, torch.ones(11, dtype=torch.float64), 4, 0.1)
    expected = explicit(gradients, 4, 0.1)
    torch.testing.assert_close(whole(inverse, 11), expected)
    torch.testing.assert_close(inverse.diagonal(), expected.diagonal())


def test_a_gradient_by_hand() -> None:
    # N = 1, λ = 1, g = (1, 2): F = [[2, 2], [2, 5]], F^-1 = [[5, -2], [-2, 2]] / 6
    weights = torch.tensor([3.0, 4.0])
    inverse = inverse_of(torch.tensor([[1.0, 2.0]]), weights, 2, 1.0)
    assert inverse.diagonal().tolist() == pytest.approx([5 / 6, 2 / 6])
    assert inverse.scores().tolist() == pytest.approx([9 / (2 * 5 / 6), 16 / (2 * 2 / 6)])
    # w_0 goes: w_1 moves by -3 · (-2 / 6) / (5 / 6)
    assert inverse.compensation(torch.tensor([True, False])).tolist() == pytest.approx([-3, 6 / 5])
    assert inverse.compensation(torch.tensor([False, False])).tolist() == [0, 0]


@given(
    weights=st.integers(1, 13),
    block=st.integers(1, 15),
    samples=st.integers(1, 6),
    damping=st.sampled_from([1e-3, 0.1, 2.0]),
    seed=st.integers(0, 99),
)
def test_scores_and_compensation_follow_from_the_inverse(
    weights: int, block: int, samples: int, damping: float, seed: int
) -> None:
    gradients, values = normal(samples, weights, seed=seed), normal(weights, seed=seed + 100)
    pruned = normal(weights, seed=seed + 200) > 0
    inverse = inverse_of(gradients, values, block, damping)
    expected = explicit(gradients, block, damping)
    torch.testing.assert_close(inverse.scores(), values**2 / (2 * expected.diagonal()))
    change = torch.zeros(weights, dtype=torch.float64)
    for q in pruned.nonzero().flatten().tolist():
        change -= values[q] * expected[:, q] / expected[q, q]
    torch.testing.assert_close(inverse.compensation(pruned)[~pruned], change[~pruned])
    assert not (values + inverse.compensation(pruned))[pruned].any()


def gradients_of(hessian: Tensor) -> Tensor:
    """Whose mean outer product is `hessian`."""
    return torch.linalg.cholesky(hessian).T * len(hessian) ** 0.5


def surgery(hessian: Tensor, optimum: Tensor, q: int) -> tuple[float, Tensor]:
    """Brute force: without w_q, the least of ½ (w - w*)ᵀ H (w - w*), and where it is."""
    rest = torch.tensor([index for index in range(len(optimum)) if index != q])
    weights = torch.zeros_like(optimum)
    weights[rest] = torch.linalg.solve(hessian[rest][:, rest], (hessian @ optimum)[rest])
    away = weights - optimum
    return (away @ hessian @ away / 2).item(), weights


@pytest.mark.parametrize("seed", range(5))
def test_one_pruned_weight_is_optimal_brain_surgery(seed: int) -> None:
    root = normal(6, 6, seed=seed)
    hessian = root @ root.T + 0.1 * torch.eye(6)
    optimum = normal(6, seed=seed + 50)
    inverse = inverse_of(gradients_of(hessian), optimum, 6, 1e-6)
    by_force = [surgery(hessian, optimum, q) for q in range(6)]
    losses = torch.tensor([loss for loss, _ in by_force], dtype=torch.float64)
    torch.testing.assert_close(inverse.scores(), losses, rtol=1e-4, atol=1e-6)
    best = int(losses.argmin())
    assert int(inverse.scores().argmin()) == best
    change = inverse.compensation(torch.arange(6) == best)
    torch.testing.assert_close(optimum + change, by_force[best][1], rtol=1e-4, atol=1e-4)


def test_the_surgeon_picks_another_weight_than_magnitude() -> None:
    # the second weight is the smaller, but the loss is a hundred times as steep there; the third does nothing
    hessian = torch.diag(torch.tensor([1.0, 100.0, 50.0], dtype=torch.float64))
    optimum = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    inverse = inverse_of(gradients_of(hessian), optimum, 3, 1e-8)
    assert inverse.scores().tolist() == pytest.approx([2, 50, 225])
    assert int(optimum.abs().argmin()) == 1
    assert int(inverse.scores().argmin()) == 0


def test_what_the_gradients_leave_out_stays_out() -> None:
    gradients = normal(5, 8)
    gradients[:, [2, 5]] = 0
    inverse = inverse_of(gradients, normal(8, seed=1), 8, 1e-3)
    expected = explicit(gradients, 8, 1e-3)
    assert inverse.diagonal()[[2, 5]].tolist() == [1e3, 1e3]
    change = inverse.compensation(torch.arange(8) == 0)
    assert change[[2, 5]].tolist() == [0, 0]
    assert expected[2, 0] == expected[5, 0] == 0


def test_rounding_leaves_the_diagonal_its_lower_bound() -> None:
    # 1e5 - 1e5 (1 - 1e-11): in single precision nothing is left of 1 / (1e6 + 1e-5)
    inverse = inverse_of(torch.tensor([[1e3]]), torch.tensor([2.0]), 1, 1e-5)
    assert inverse.diagonal().tolist() == pytest.approx([1e-6])
    assert inverse.scores().tolist() == pytest.approx([2e6])


def test_single_precision_is_exact_enough_for_small_damping() -> None:
    gradients = 0.03 * normal(200, 40)
    rounded = inverse_of(gradients.float(), torch.ones(40), 40, 1e-5).diagonal()
    torch.testing.assert_close(rounded.double(), explicit(gradients, 40, 1e-5).diagonal(), rtol=1e-3, atol=0)


WEIGHTS = {"a": normal(5, 3, 2, 2, seed=1), "b": normal(7, 4, seed=2), "c": normal(1, 1, seed=3)}


class Stream:
    """Gradients of `WEIGHTS`, one at a time, that know how many are alive."""

    def __init__(self, samples: int) -> None:
        self.samples, self.passes, self.most_alive = samples, 0, 0
        self._alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __call__(self) -> Iterator[dict[str, Tensor]]:
        self.passes += 1
        for sample in range(self.samples):
            yield self._made(sample)

    def _made(self, sample: int) -> dict[str, Tensor]:
        made = {name: normal(*weight.shape, seed=10 * sample + len(name)) for name, weight in WEIGHTS.items()}
        # a layout of its own, as channels_last gives convolutions
        made["a"] = made["a"].to(memory_format=torch.channels_last)
        self._alive.add(made["a"])
        self.most_alive = max(self.most_alive, len(self._alive))
        return made


def fisher(stream: Stream, budget: int) -> Fisher:
    return Fisher(WEIGHTS, stream, samples=stream.samples, block=8, damping=0.1, budget=budget)


def numbers_held(made: Fisher) -> int:
    return sum(inverse._inverse.numel() for inverse in made._held.values())


def pruned_of(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: score < 0.1 for name, score in scores.items()}


# a: 8 blocks of 64 (60 weights), b: 4 blocks of 64 (28 weights), c: one of 1
@pytest.mark.parametrize(("numbers", "parts"), [(769, 1), (768, 2), (512, 2), (320, 3), (64, 13)], ids=str)
def test_groups_that_fit_the_budget_give_the_same_as_one(numbers: int, parts: int) -> None:
    one, many = Stream(6), Stream(6)
    whole, parted = fisher(one, 10**6), fisher(many, 8 * numbers)
    scores = whole.scores()
    torch.testing.assert_close(parted.scores(), scores)
    assert numbers_held(parted) <= numbers
    assert (one.passes, many.passes) == (1, parts)
    pruned = pruned_of(scores)
    assert 10 < sum(int(mask.sum()) for mask in pruned.values()) < 80
    torch.testing.assert_close(parted.compensation(pruned), whole.compensation(pruned))
    # F^-1 of the last group is still there
    assert (one.passes, many.passes) == (1, 2 * parts - 1)


def test_memory_is_a_row_of_the_block_for_each_weight_and_one_gradient_at_a_time() -> None:
    for samples in (1, 30):
        stream = Stream(samples)
        made = fisher(stream, 10**6)
        made.compensation(pruned_of(made.scores()))
        assert numbers_held(made) == 8 * 64 + 4 * 64 + 1
        assert stream.most_alive == 1


def test_no_group_is_held_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[InverseFisher] = weakref.WeakSet()
    held = []
    original = InverseFisher.__init__

    def watched(inverse: InverseFisher, *facts: Any) -> None:
        original(inverse, *facts)
        alive.add(inverse)
        held.append(sum(each._inverse.numel() for each in alive))

    monkeypatch.setattr(InverseFisher, "__init__", watched)
    made = fisher(Stream(2), 8 * 320)
    made.compensation(pruned_of(made.scores()))
    assert max(held) == 320


def test_layers_are_flattened_row_by_row_whatever_their_layout() -> None:
    made = fisher(Stream(6), 10**6)
    gradients = torch.stack([gradient["a"].flatten() for gradient in Stream(6)()])
    expected = WEIGHTS["a"].flatten() ** 2 / (2 * explicit(gradients, 8, 0.1).diagonal())
    torch.testing.assert_close(made.scores()["a"], expected.view(5, 3, 2, 2))


def test_groups_by_hand() -> None:
    # 4 numbers a block of 2, 1 for the layer of one weight: 8 of 9, then 4 + 1 + 4
    assert groups({"a": 5, "b": 1, "c": 2}, 2, 9) == [
        [Stretch("a", 0, 4)],
        [Stretch("a", 4, 5), Stretch("b", 0, 1), Stretch("c", 0, 2)],
    ]


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), block=st.integers(1, 12), room=st.integers(0, 300))
def test_groups_hold_every_weight_once_in_whole_blocks(sizes: list[int], block: int, room: int) -> None:
    layers = {str(number): size for number, size in enumerate(sizes)}
    limit = block**2 + room
    parts = groups(layers, block, limit)
    flat = [(part.layer, index) for group in parts for part in group for index in range(part.start, part.end)]
    assert flat == [(layer, index) for layer, size in layers.items() for index in range(size)]
    for group in parts:
        sides = {part: min(block, layers[part.layer]) for part in group}
        assert all(part.start % sides[part] == 0 for part in group)
        assert 0 < sum(-(-(part.end - part.start) // sides[part]) * sides[part] ** 2 for part in group) <= limit


def test_a_budget_too_small_for_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="a block of 8 weights takes 64 numbers, but there is room for only 63"):
        fisher(Stream(1), 8 * 63 + 7)
