from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Acdc
from torch import nn

from acdc_cli.errors import ModelError
from acdc_cli.recipe.blocks.data import DataBlock

MACS = (16 * 27 + 2 * 16 * 16 * 9) * 5**2 + (16 * 32 + 32 * 32) * 9 * 3**2 + (32 * 64 + 64 * 64) * 9 * 2**2 + 640
"""Of resnet8 on digits of 5 x 5 pixels, in ten classes."""


def train(acdc: Acdc, recipe: Path, sparsity: str, epochs: int = 2) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the summary says of the cost, and the epochs' records."""
    result = acdc("train", recipe, "--set", f"sparsity={sparsity}", "--set", f"epochs={epochs}")
    assert result.exit_code == 0, result.output
    run = Path("runs/small-0")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "summary.json").read_text()).get("cost"), records


def test_dense_training_costs_three_forward_passes_of_every_image(acdc: Acdc, recipe: Path) -> None:
    cost, records = train(acdc, recipe, "{method: dense}")
    # 200 images an epoch
    assert [record["train_flops"] for record in records] == [3 * 2 * MACS * 200, 3 * 2 * MACS * 400]
    whole = {"inference_flops": 2 * MACS, "train_flops": 3 * 2 * MACS * 400}
    ledgers = {"dense": whole, "nominal": whole, "measured": whole}
    assert cost == {"convention": "A", "inference_resolution": 5, **ledgers}


def test_of_random_masks_that_stay_both_ledgers_say_the_same(acdc: Acdc, recipe: Path) -> None:
    cost, records = train(acdc, recipe, "{method: static, target: 0.75, distribution: uniform, keep_dense: []}")
    assert cost["nominal"] == cost["measured"]
    # 432, 640 and all others are multiples of 4
    assert cost["measured"]["inference_flops"] == 2 * MACS // 4
    assert records[-1]["train_flops"] == cost["measured"]["train_flops"] == cost["dense"]["train_flops"] // 4


def test_of_a_global_ranking_the_ledgers_differ_by_where_the_weights_are(acdc: Acdc, recipe: Path) -> None:
    cost, records = train(acdc, recipe, "{method: oneshot, target: 0.75, at: 1, keep_dense: []}")
    assert cost["nominal"]["inference_flops"] == 2 * MACS // 4
    assert cost["measured"]["inference_flops"] != cost["nominal"]["inference_flops"]
    dense = 3 * 2 * MACS * 200
    assert records[0]["train_flops"] == dense
    assert records[1]["train_flops"] == dense + 3 * cost["measured"]["inference_flops"] * 200


def test_gradients_that_a_method_asks_for_are_in_both_ledgers_and_in_the_plan(acdc: Acdc, recipe: Path) -> None:
    once = "{method: woodfisher, target: 0.75, distribution: uniform, begin: 1, end: 1, samples: 20, fisher_block: 64, "
    once += "fisher_batch_size: 1, keep_dense: []}"
    sets = ("--set", f"sparsity={once}", "--set", "epochs=2")
    foretold = json.loads(acdc("plan", recipe, *sets, "--json").stdout)
    cost, records = train(acdc, recipe, once)
    dense = 3 * 2 * MACS
    assert cost["nominal"] == cost["measured"]
    assert [record["train_flops"] for record in records] == [dense * 200, dense * 200 + dense * 20 + dense * 50]
    assert records[-1]["train_flops"] == cost["measured"]["train_flops"] == foretold["totals"]["train_flops"]
    assert [200 * epoch["train_flops"] for epoch in foretold["epochs"]] == [dense * 200, dense * 70]


def test_a_model_that_needs_its_weights_to_run_is_trained_without_a_price(
    acdc: Acdc, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: nn.Module, size: int, block: DataBlock) -> None:
        raise ModelError("it looks at its weights")

    monkeypatch.setattr("acdc_cli.jobs.costs.operations", refuse)
    cost, records = train(acdc, recipe, "{method: dense}", epochs=1)
    assert cost is None
    assert "train_flops" not in records[0]
