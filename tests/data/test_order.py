import numpy as np
import pytest

from acdc_cli.data.order import epoch_order


@pytest.mark.parametrize("samples", [1, 2, 1000])
def test_an_order_holds_every_sample_once(samples: int) -> None:
    assert sorted(epoch_order(samples, 3, 5)) == list(range(samples))


def test_the_order_of_a_seed_and_epoch_never_changes() -> None:
    # literal, because a run that is resumed by another version of NumPy or of acdc must go on in the same order
    assert epoch_order(8, 0, 0).tolist() == [5, 0, 6, 1, 7, 2, 4, 3]
    assert np.array_equal(epoch_order(1000, 7, 2), epoch_order(1000, 7, 2))


def test_no_two_of_many_seeds_and_epochs_share_an_order() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(12) for epoch in range(12)}
    assert len(orders) == 12 * 12


def test_neighbouring_seeds_are_uncorrelated_at_every_lag_of_epochs() -> None:
    for epoch in range(1, 5):
        correlation = np.corrcoef(epoch_order(10_000, 0, epoch), epoch_order(10_000, 1, 0))[0, 1]
        assert abs(correlation) < 0.05
