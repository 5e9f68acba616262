"""WoodFisher: what it prunes, what it changes, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from by_hand import ByHand
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from acdc_cli.errors import RecipeError, RunError
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.recipe.load import load
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.methods.woodfisher import Config

ONCE = {"begin": 0, "end": 0, "damping": 1e-4}


class Given:
    """A run that has these gradients, the same at every update."""

    def __init__(self, gradients: list[dict[str, Tensor]]) -> None:
        self._gradients = gradients
        self.asked: list[tuple[int, int, int]] = []

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        self.asked.append((moment.epoch, batches, batch_size))
        yield from ({name: part.clone() for name, part in gradient.items()} for gradient in self._gradients[:batches])

    def snapshot(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        raise NotImplementedError


def run_of(
    weights: dict[str, Tensor], gradients: list[dict[str, Tensor]], target: float, epochs: int = 4, **keys: Any
) -> tuple[ByHand, Given]:
    block, run = {"target": target, "samples": len(gradients)} | keys, Given(gradients)
    made = ByHand("woodfisher", block, weights, epochs=epochs, training=run, momentum=0.9)
    assert made.config.errors(RunSize(epochs)) == []
    return made, run


def noise(weights: dict[str, Tensor], samples: int, seed: int = 0, scale: float = 0.1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: scale * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
        for _ in range(samples)
    ]


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("a", (6, 4)), ("b", (9, 2)))}


def test_the_weight_of_least_consequence_goes_and_the_others_make_up_for_it() -> None:
    # F = H = [[2, 2], [2, 5]], F^-1 = [[5, -2], [-2, 2]] / 6: scores 9 · 6/10 = 5.4 and 2.25 · 6/4 = 3.375
    weights = {"a": torch.tensor([[3.0, 1.5]])}
    gradients = [{"a": torch.tensor([[2.0, 2.0]])}, {"a": torch.tensor([[0.0, 6.0**0.5]])}]
    made, run = run_of(weights, gradients, 0.5, **ONCE, fisher_batch_size=7)
    made.start(0)
    assert made.masked.masks["a"].tolist() == [[True, False]]
    # without the second, the first is best at 3 + 1.5: 2 (w - 3) = 2 · 1.5
    assert made.weights["a"][0].tolist() == [pytest.approx(4.5, rel=1e-3), 0]
    assert run.asked == [(0, 2, 7)]


def test_it_prunes_another_weight_than_magnitude() -> None:
    weights = {"a": torch.tensor([[2.0, 1.0]])}
    gradients = [{"a": torch.tensor([[1.0, 0.0]])}, {"a": torch.tensor([[0.0, 10.0]])}]
    made, _ = run_of(weights, gradients, 0.5, **ONCE)
    made.start(0)
    assert made.masked.masks["a"].tolist() == [[False, True]]
    assert made.weights["a"].tolist() == [[0, 1]]


def test_weights_of_other_blocks_and_layers_stay_as_they_are() -> None:
    weights = {"a": torch.tensor([[0.01, 1.0, 1.0, 1.0]]), "b": torch.tensor([[1.0]])}
    made, _ = run_of(weights, noise(weights, 8), 0.2, **ONCE, fisher_block=2)
    made.start(0)
    [[first, second, *others]] = made.weights["a"].tolist()
    assert (first, others) == (0, [1, 1])
    assert second != 1
    assert made.weights["b"].tolist() == [[1]]


def test_pruned_weights_never_return_and_stay_zero() -> None:
    weights = random_weights()
    made, run = run_of(weights, noise(weights, 6), 0.8, epochs=12, every_epochs=2, fisher_block=5)
    before, living = {name: torch.ones_like(weight).bool() for name, weight in weights.items()}, []
    for epoch in range(12):
        made.start(epoch)
        for name, mask in made.masked.masks.items():
            weight = made.weights[name].detach()
            assert not (mask & ~before[name]).any()
            assert not weight[~mask].any()
            # what lives becomes smaller than anything: by its score it would go before what has gone
            weight.mul_(1e-9)
        before = {name: mask.clone() for name, mask in made.masked.masks.items()}
        living.append(sum(int(mask.sum()) for mask in before.values()))
    # 42 weights, T = 9: the cubic at 2, 4, 6 and 8 ninths, then 8.4 of them
    shares = [1 - 0.8 * (1 - (1 - t / 9) ** 3) for t in (0, 2, 4, 6, 8, 9)]
    counts = [round(42 * share) for share in shares]
    assert living == [count for count in counts[:4] for _ in range(2)] + [counts[4]] + [counts[5]] * 3
    assert [epoch for epoch, _, _ in run.asked] == [2, 4, 6, 8, 9]
    assert [epoch for epoch in range(12) if made.method.cost(epoch, 1).probed_images] == [2, 4, 6, 8, 9]


def test_gradients_of_pruned_weights_do_not_count() -> None:
    weights = random_weights()
    gone = {name: weight > 0 for name, weight in weights.items()}

    def pruned(factor: float) -> list[Tensor]:
        gradients = noise(weights, 6)
        for gradient in gradients:
            for name, part in gradient.items():
                part[gone[name]] *= factor
        made, _ = run_of(weights, gradients, 0.8, **ONCE, fisher_block=50)
        made.masked.set({name: ~mask for name, mask in gone.items()})
        made.start(0)
        return [weight.detach() for weight in made.weights.values()]

    assert all(torch.equal(left, right) for left, right in zip(pruned(1.0), pruned(1e3), strict=True))


def test_living_zeros_outlive_the_pruned() -> None:
    weights = {"a": torch.tensor([[0.0, 0.0, 0.0, 5.0]])}
    made, _ = run_of(weights, noise(weights, 3), 0.5, epochs=4, **ONCE)
    made.masked.set({"a": torch.tensor([[False, True, False, True]])})
    made.start(0)
    assert made.masked.masks["a"].tolist() == [[False, True, False, True]]


@pytest.mark.parametrize(("memory", "passes"), [(1e-6, 1), (5e-7, 3), (1e-7, 17)])
def test_groups_give_the_same_masks_and_weights(memory: float, passes: int) -> None:
    # blocks of 25 numbers, 4 bytes each: 5 of the first layer and 4 of the second, in groups of 10, 5 and 1
    weights = random_weights()
    whole, _ = run_of(weights, noise(weights, 6), 0.6, **ONCE, fisher_block=5)
    parted, run = run_of(weights, noise(weights, 6), 0.6, **ONCE, fisher_block=5, memory_gib=memory)
    whole.start(0)
    parted.start(0)
    assert len(run.asked) == passes
    assert parted.method.cost(0, 1).probed_images == 6 * parted.config.fisher_batch_size * passes
    for name, mask in whole.masked.masks.items():
        assert torch.equal(mask, parted.masked.masks[name])
        torch.testing.assert_close(whole.weights[name], parted.weights[name])


@pytest.mark.parametrize(
    ("keys", "kept"), [({"pattern": "2:4", "distribution": "uniform"}, 2), ({"pattern": "block4"}, 4)]
)
def test_patterns_hold(keys: dict[str, Any], kept: int) -> None:
    weights = {"a.weight": torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(0))}
    made, _ = run_of(weights, noise(weights, 4), 0.5, **ONCE, fisher_block=60, **keys)
    made.start(0)
    alive = made.masked.masks["a.weight"].unflatten(1, (2, 4)).sum(2).flatten().tolist()
    assert set(alive) == ({2} if kept == 2 else {0, 4})


def test_the_momentum_of_weights_that_stay_is_kept() -> None:
    weights = random_weights()
    made, _ = run_of(weights, noise(weights, 4), 0.5, **ONCE)
    for weight in made.weights.values():
        made.optimizer.state[weight]["momentum_buffer"] = torch.full_like(weight, 7)
    made.start(0)
    for name, weight in made.weights.items():
        assert torch.equal(made.optimizer.state[weight]["momentum_buffer"], 7.0 * made.masked.masks[name])


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    target=st.sampled_from([0.0, 0.5, 0.999]),
    block=st.integers(1, 7),
    kind=st.sampled_from(["random", "zero", "tied"]),
)
def test_the_count_is_exact_whatever_the_weights(shape: tuple[int, int], target: float, block: int, kind: str) -> None:
    made_of = {"random": torch.randn, "zero": torch.zeros, "tied": torch.ones}[kind]
    weights = {"a": made_of(shape), "b": torch.zeros(1, 1)}
    gradients = [{name: torch.zeros_like(weight) for name, weight in weights.items()}, *noise(weights, 2)]
    made, _ = run_of(weights, gradients, target, **ONCE, fisher_block=block)
    made.start(0)
    living = sum(int(mask.sum()) for mask in made.masked.masks.values())
    assert made.method.cost(0, 1).backward.density == living / made.masked.total
    assert abs(living - (1 - target) * made.masked.total) <= 0.5
    for name, mask in made.masked.masks.items():
        weight = made.weights[name].detach()
        assert weight.isfinite().all()
        assert not weight[~mask].any()


def test_a_set_too_small_for_the_samples_is_a_recipe_error_and_changes_nothing() -> None:
    weights = random_weights()
    made, _ = run_of(weights, noise(weights, 3), 0.5, **ONCE, samples=5, fisher_batch_size=16)
    with pytest.raises(RecipeError) as error:
        made.start(0)
    assert str(error.value) == (
        "sparsity.samples: an epoch gives 3 gradients, not 5: 3 from each of its 1 batches, each of 16 images "
        "(fisher_batch_size); the rest of a batch is left out. Lower samples or fisher_batch_size"
    )
    assert all(torch.equal(weight, made.weights[name]) for name, weight in weights.items())
    assert made.masked.sparsity() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_counts_as_zero(value: float, caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights()
    gradients = noise(weights, 4)
    clean, _ = run_of(weights, [*gradients, {name: 0 * weight for name, weight in weights.items()}], 0.5, **ONCE)
    broken = noise(weights, 1, seed=1)[0]
    broken["b"][0, 0] = value
    made, _ = run_of(weights, [*gradients, broken], 0.5, **ONCE)
    clean.start(0)
    with caplog.at_level(logging.WARNING):
        made.start(0)
    assert caplog.messages == ["epoch 0: 1 of 5 gradients are NaN or infinite and are left out"]
    for name, weight in clean.weights.items():
        assert torch.equal(weight, made.weights[name])


def test_no_gradient_that_is_a_number_stops_the_run() -> None:
    weights = random_weights()
    made, _ = run_of(weights, [{name: weight / 0 for name, weight in weights.items()}] * 3, 0.5, **ONCE)
    with pytest.raises(RunError, match="at the start of epoch 0 all 3 gradients are NaN or infinite"):
        made.start(0)


def test_gradients_too_large_for_the_damping_stop_the_run() -> None:
    weights = random_weights()
    made, _ = run_of(weights, noise(weights, 20, scale=1e6), 0.5, **ONCE)
    with pytest.raises(RunError, match=r"sparsity.damping: 0.0001 is too small for gradients this large"):
        made.start(0)


def test_a_damping_that_is_far_too_small_is_refused_after_the_first_gradients() -> None:
    weights, given = random_weights(), []

    class Counting(Given):
        def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
            for gradient in super().gradients(moment, batches, batch_size):
                given.append(gradient)
                yield gradient

    gradients = noise(weights, 64, scale=1e6)
    made, _ = run_of(weights, gradients, 0.5, **ONCE)
    made.method.training = Counting(gradients)
    with pytest.raises(RunError, match=r"sparsity.damping: 0.0001 is too small"):
        made.start(0)
    assert len(given) == 1


def test_gradients_of_a_few_images_that_the_model_does_not_fit_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights()
    fitted, others = noise(weights, 18, scale=1e-6), noise(weights, 2, seed=1, scale=1.0)
    with caplog.at_level(logging.WARNING):
        run_of(weights, [*fitted, *others], 0.5, **ONCE | {"damping": 0.1})[0].start(0)
    [message] = caplog.messages
    assert "epoch 0: the Fisher matrix rests on about 2 of its 20 gradients" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run_of(weights, noise(weights, 20), 0.5, **ONCE)[0].start(0)
    assert not caplog.messages


def test_an_epoch_with_too_few_gradients_is_refused_before_the_run_starts() -> None:
    # 64 batches of 100 images hold 6,400, but each gives only 6 gradients of 16
    config = Config(method="woodfisher", target=0.5, samples=400, fisher_batch_size=16)
    [(key, text)] = config.errors(RunSize(10, steps_per_epoch=64, batch_size=100))
    assert key == "samples"
    assert text.startswith("an epoch gives 384 gradients, not 400: 6 from each of its 64 batches, each of 16 images")
    assert config.errors(RunSize(10, steps_per_epoch=64, batch_size=112)) == []


def test_a_block_larger_than_the_memory_is_a_recipe_error() -> None:
    with pytest.raises(ValidationError, match="memory_gib: the inverse of a single block of 20000 weights takes"):
        Config(method="woodfisher", target=0.9, fisher_block=20_000, memory_gib=1.0)


def test_a_pattern_of_one_sparsity_is_reached_at_once_only() -> None:
    once = Config(method="woodfisher", target=0.5, pattern="2:4", begin=3, end=3)
    assert once.errors(RunSize(10)) == []
    [(key, message)] = Config(method="woodfisher", target=0.5, pattern="2:4").errors(RunSize(10))
    assert key == "pattern"
    assert "woodfisher reaches its target in steps" in message


def test_gradients_of_more_images_than_a_batch_has_are_a_problem_of_the_recipe() -> None:
    config = Config(method="woodfisher", target=0.5, fisher_batch_size=64)
    assert config.errors(RunSize(10, batch_size=64)) == []
    assert config.errors(RunSize(10, batch_size=63)) == [
        ("fisher_batch_size", "64 images must come from one batch, but data.batch_size is 63; make it smaller")
    ]
    with pytest.raises(RecipeError, match=r"sparsity\.fisher_batch_size: 65 images must come from one batch"):
        load("demo_woodfisher", ["sparsity.fisher_batch_size=65"])


@pytest.mark.parametrize(
    ("steps", "batch", "proposed"), [(None, None, (400, 10)), (0, 64, (400, 10)), (10, 64, (60, 10)), (10, 4, (10, 4))]
)
def test_no_more_samples_are_proposed_than_an_epoch_has(
    steps: int | None, batch: int | None, proposed: tuple[int, int]
) -> None:
    proposal = Config.proposed(RunSize(30, steps, batch), 0.9)
    assert (proposal["samples"], proposal["fisher_batch_size"]) == proposed
