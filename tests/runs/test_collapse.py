from typing import Any

import pytest

from acdc_cli.runs.collapse import sign_of_collapse


def record(epoch: int, phase: str, largest: float | None = 1.0, **layers: float) -> dict[str, Any]:
    extent = {} if largest is None else {"largest_weight": largest}
    return {"epoch": epoch, "phase": phase, **extent, "layers": {"conv1": 0.0, **layers}}


def test_a_run_whose_weights_stay_small_shows_none() -> None:
    records = [record(0, "dense", 0.5), record(1, "sparse", 20.0), record(2, "dense", 49.0), record(3, "dense", 50.0)]
    assert sign_of_collapse(records) is None
    assert sign_of_collapse([]) is None


def test_growth_counts_from_the_end_of_the_phase_before() -> None:
    records = [record(0, "sparse", 0.5), record(1, "dense", 5.0), record(2, "dense", 49.9)]
    assert sign_of_collapse(records) is None
    records.append(record(3, "dense", 50.0))
    assert sign_of_collapse(records) == "the largest weight grew from 0.5 to 50 in the dense phase of epoch 3"


def test_growth_over_several_phases_is_none() -> None:
    assert sign_of_collapse([record(each, ("dense", "sparse")[each % 2], 10.0**each) for each in range(5)]) is None


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"layer1": 1.0}, "layer1 has no weight left after epoch 1"),
        ({"layer1": 1.0, "layer2": 0.9, "layer3": 1.0}, "layer1 and 1 more have no weight left after epoch 1"),
    ],
)
def test_a_layer_without_a_weight_is_named(layers: dict[str, float], said: str) -> None:
    assert sign_of_collapse([record(0, "dense"), record(1, "sparse", **layers)]) == said


def test_records_of_before_the_largest_weight_was_recorded_show_no_growth() -> None:
    assert sign_of_collapse([record(0, "dense", None), record(1, "sparse", None)]) is None
