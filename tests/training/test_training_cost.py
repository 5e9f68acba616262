"""What a run charges for the gradients that its method asks for: as many as there are, and once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mini_trainer import MiniRun, small_network
from torch import Tensor

from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Measured, nominal
from acdc_cli.errors import Stopped
from acdc_cli.schedule.time import Moment
from acdc_cli.training import checkpoint

WOODFISHER = {
    "method": "woodfisher",
    "target": 0.75,
    "distribution": "uniform",
    "begin": 1,
    "end": 3,
    "every_epochs": 1,
    "samples": 3,
    "fisher_batch_size": 4,
    "fisher_block": 100,
}
"""Prunes at epochs 2 and 3."""

GROUPS = {"memory_gib": 2.5 * 4e4 / 2**30}
"""Room for two blocks of 100 weights, of the two and seven that there are: five groups, nine passes."""


class Charged(MiniRun):
    """With a measured cost, and a note of every image whose gradient the method gets."""

    def __init__(self, folder: Path, *, stops_after: int | None = None, **keys: float) -> None:
        self.asked = 0
        self._steps = 0
        model = small_network()
        self.operations = {8: operations(model, 8)}
        self.cost = Measured(self.operations, "A")
        super().__init__(
            folder, 4, WOODFISHER | keys, model=model, cost=self.cost, stop_asked=lambda: self._stops(stops_after)
        )
        services = self.sparsifier.training
        self._gradients = services.gradients
        services.gradients = self._noted  # type: ignore[method-assign]

    def _stops(self, after: int | None) -> bool:
        self._steps += 1
        return self._steps == after

    def _noted(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        for gradient in self._gradients(moment, batches, batch_size):
            self.asked += batch_size
            yield gradient


@pytest.mark.parametrize(("keys", "passes"), [({}, 1), (GROUPS, 9)])
def test_every_gradient_that_the_method_gets_is_foretold_and_charged(
    tmp_path: Path, keys: dict[str, float], passes: int
) -> None:
    run = Charged(tmp_path / "run", **keys)
    run.fit()
    foretold = [run.sparsifier.cost(epoch, 3).probed_images for epoch in range(4)]
    assert foretold == [0, 0, passes * 12, passes * 12]
    assert run.asked == sum(foretold)
    # no weight but the pruned ones is zero, and these are as many as the schedule says
    planned = nominal(run.sparsifier, run.operations, [8] * 4, 3, 4, "A")
    assert run.cost.total == 12 * sum(cost.train for cost in planned)
    assert run.directory.records()[-1]["train_flops"] == run.cost.total


# every epoch asks after three steps and three validation batches: within epoch 2, just after its first step, or later
@pytest.mark.parametrize("stops_after", [12, 13, 14, 17, 19])
def test_a_run_that_goes_on_charges_them_once(tmp_path: Path, stops_after: int) -> None:
    whole = Charged(tmp_path / "whole")
    whole.fit()
    stopped = Charged(tmp_path / "cut", stops_after=stops_after)
    with pytest.raises(Stopped):
        stopped.fit()
    state = checkpoint.load_state(stopped.directory.checkpoints)
    assert state is not None
    resumed = Charged(tmp_path / "cut")
    resumed.trainer.load_state_dict(state)
    resumed.fit()
    assert resumed.cost.total == whole.cost.total
    assert [record["train_flops"] for record in resumed.directory.records()] == [
        record["train_flops"] for record in whole.directory.records()
    ]
