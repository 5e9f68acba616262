"""`acdc demo`: what a newcomer sees first."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from command import Acdc

from acdc_cli.jobs import demo_run as job

SHORT = (
    "epochs=4",
    "optim.schedule.warmup_epochs=0",
    "sparsity={warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}",
    "data.loader=torch",
    "data.batch_size=50",
    "data.images=100",
    "data.val_images=50",
)


def test_the_demo_goes_from_data_to_figure_and_does_nothing_twice(
    acdc: Acdc, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "train", functools.partial(job.train, overrides=SHORT))
    first = acdc("demo")
    assert first.exit_code == 0, first.output
    table = [line.split() for line in first.stdout.splitlines() if line]
    assert table[0][:2] == ["model", "top-1"]
    assert [row[0] for row in table[1:3]] == ["sparse", "dense"]
    assert table[1][4] == "90.00%"
    assert {path.name for path in Path("runs/demo").iterdir()} >= {"analysis", "summary.json"}
    assert {path.name for path in Path("runs/demo/analysis").iterdir()} == {
        f"curves.{end}" for end in ("csv", "json", "png", "svg")
    }
    before = Path("runs/demo/summary.json").stat().st_mtime_ns
    second = acdc("demo")
    assert second.exit_code == 0
    assert "trained already" in second.stderr
    assert second.stdout == first.stdout
    assert Path("runs/demo/summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sparse_model_of_the_demo_reaches_95_percent(acdc: Acdc, in_tmp: Path) -> None:
    assert acdc("demo").exit_code == 0
    document = json.loads(acdc("eval", "--checkpoint", "runs/demo", "--which", "sparse", "--json").stdout)
    assert document["top1"] >= 0.95
    assert document["sparsity"] == pytest.approx(0.9, abs=1e-4)
