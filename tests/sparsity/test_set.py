"""SET: the smallest weights drop, others grow at random, the same on every rank."""

import torch
from by_hand import ByHand


def started(seed: int) -> ByHand:
    """Weights that SGD leaves as they are."""
    weights = {"a.weight": torch.randn(40, 50, generator=torch.Generator().manual_seed(1))}
    keys = {"target": 0.9, "every_epochs": 1, "distribution": "uniform"}
    run = ByHand("set", keys, weights, epochs=4, steps=5, seed=seed, lr=0.0)
    run.start(0)
    return run


def update(run: ByHand, step: int, gradient: float = 1.0) -> None:
    assert run.step(step, gradient), "the optimiser takes its step"


def test_the_weights_are_ranked_after_the_optimisers_step() -> None:
    # 1 of 4 drops: 0.3/2 (1 + cos 0) · 4 would be 1.2 at step 0; at step 1 of 20, (1 + cos(pi/15)) · 0.15 · 4 = 1.19
    keys = {"target": 0.5, "every": 1, "distribution": "uniform"}
    run = ByHand("set", keys, {"a.weight": [[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]}, epochs=4, steps=5)
    weight, made, moment = run.weight, run.method, run.at(1)
    made.masked.set({"a.weight": torch.arange(8).view(1, 8) < 4})
    # the smallest after the step is the first, which was the largest before it
    run.set_gradients([3.5, 0.0, 0.0, -1.0, 5.0, 5.0, 5.0, 5.0])
    assert made.on_gradients(moment)
    run.optimizer.step()
    assert weight.tolist() == [[0.5, 3, 2, 2, 0, 0, 0, 0]]
    made.after_step(moment)
    assert weight[0, 1:4].tolist() == [3, 2, 2]
    assert made.masked.masks["a.weight"][0, 1:4].all()
    assert int(made.masked.masks["a.weight"].sum()) == 4
    assert weight[0, 0] in (0.0, 0.5), "dropped, or drawn again at once"
    assert made.updates == 1


def test_the_smallest_weights_drop_and_others_grow_as_zeros() -> None:
    run = started(seed=0)
    weight, mask = run.weight, run.masked.masks["a.weight"]
    before, old = weight.detach().clone(), mask.clone()
    update(run, step=5)
    # 200 live; t/T = 5/15, 0.15 (1 + cos(pi/3)) = 0.225
    cut = before[old].abs().sort().values[45]
    assert int(mask.sum()) == 200
    assert torch.equal(mask & (before.abs() >= cut), old & (before.abs() >= cut)), "the 155 largest stay"
    assert not weight[mask & ~old].any()
    assert 30 < int((mask & ~old).sum()) <= 45, "but for the few just dropped that are drawn again"
    assert torch.equal(weight[mask & old], before[mask & old])


def test_what_grows_follows_from_the_seed_not_from_the_gradients() -> None:
    first, other_data, other_seed = started(seed=0), started(seed=0), started(seed=1)
    other_seed.masked.set(first.masked.masks)
    with torch.no_grad():
        other_seed.weight.copy_(first.weight)
    update(first, step=5)
    torch.rand(3)
    update(other_data, step=5, gradient=-2.0)
    update(other_seed, step=5)
    assert torch.equal(first.masked.masks["a.weight"], other_data.masked.masks["a.weight"])
    assert not torch.equal(first.masked.masks["a.weight"], other_seed.masked.masks["a.weight"])


def test_every_update_draws_anew() -> None:
    at_five, at_ten = started(seed=0), started(seed=0)
    start = at_five.masked.masks["a.weight"].clone()
    update(at_five, step=5)
    update(at_ten, step=10)
    born_at_five, born_at_ten = (made.masked.masks["a.weight"] & ~start for made in (at_five, at_ten))
    # the same draw would give birth at step 10 to weights of those born at step 5
    assert int(born_at_ten.sum()) >= 10
    assert int((born_at_five & born_at_ten).sum()) <= 3
