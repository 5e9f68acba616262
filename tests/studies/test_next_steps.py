from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from epoch import recorded

from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import next_steps as steps_of
from acdc_cli.studies.next_steps import next_steps

LAYERS = {"conv1": 0.0, "fc": 0.9}


def ended(path: Path, *overrides: str, sparse: float = 0.9, dense: float = 0.9, **last: Any) -> RunDir:
    """A finished run of the demo; `last`: values of its records' last one."""
    recipe = load("demo", overrides)
    run = RunDir(path)
    run.start("extends: demo\n", resolved_yaml(recipe), {})
    values = {"layers": LAYERS, "train_cross_entropy": 0.5, "entropy": 0.5}
    records = [recorded(epoch, **values) for epoch in range(recipe.epochs)]
    records[-1] |= last
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    ends = {"dense": {"top1": dense, "layers": LAYERS}}
    if recipe.sparsity.method != "dense":
        ends["sparse"] = {"top1": sparse, "sparsity": 0.9, "layers": LAYERS}
    run.finish(ends)
    return run


def commands(run: RunDir) -> list[str]:
    """Without the run's path, each checked to be a command of acdc."""
    from acdc_cli.cli.app import app

    known = {each.name for each in app.registered_commands} | {each.name for each in app.registered_groups}
    shown = [step.command for step in next_steps(run)]
    assert len(shown) == len(set(shown)) == 3
    for command in shown:
        program, name, *words = shlex.split(command)
        assert (program, name in known) == ("acdc", True)
        if name == "train":
            load(words[0], words[2::2])
    return [command.replace(str(run.path), "RUN") for command in shown]


def test_a_sparse_run_without_a_dense_one_beside_it_is_to_get_one(tmp_path: Path) -> None:
    steps = commands(ended(tmp_path / "a b/run", sparse=0.8))
    assert "name=demo_dense" in steps[0]
    assert "'sparsity={method: dense}'" in steps[0]
    assert steps[1].startswith("acdc analyze agreement ")
    assert steps[2].startswith("acdc bench ")


def test_a_collapse_comes_first_with_its_remedy(tmp_path: Path) -> None:
    collapsed = {"layers": {"conv1": 0.0, "fc": 1.0}, "phase": "sparse"}
    steps = commands(ended(tmp_path / "acdc", **collapsed))
    assert "--set sparsity.revive=clipped" in steps[0]
    assert steps[1] == "acdc analyze channels RUN"
    steps = commands(ended(tmp_path / "gmp", "sparsity={method: gmp, target: 0.9}", **collapsed))
    assert "--set optim.clip_norm=1" in steps[0]


def test_a_run_that_is_under_trained_beside_dense_ones_is_to_be_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ("epochs=17", "sparsity.warmup_epochs=3")
    for seed in (0, 1, 2):
        spread = seed / 1000
        low = {"train_cross_entropy": 0.1 + spread, "entropy": 0.1 + spread}
        ended(tmp_path / f"dense-{seed}", "sparsity={method: dense}", f"seed={seed}", phase="dense", **low)
        high = {"train_cross_entropy": 0.9 + spread, "entropy": 0.9 + spread, "top1": 0.8}
        run = ended(tmp_path / f"sparse-{seed}", f"seed={seed}", *odd, **high)
    # in twice 17 epochs, 3 and 8 of which are the first and the last phases, an odd number of phases of 2 does not fit
    assert commands(run)[0] == "acdc train RUN/resolved.yaml --set name=demo_37 --set epochs=37"
    monkeypatch.setattr(steps_of, "_SEARCHED_EPOCHS", 1)
    assert commands(run)[0].startswith("acdc bench ")


@pytest.mark.parametrize(("empty", "shrinks"), [(0, False), (7, True)])
def test_empty_channels_are_to_be_removed(tmp_path: Path, empty: int, shrinks: bool) -> None:
    run = ended(tmp_path / "run", empty_channels=empty)
    assert any("--shrink" in command for command in commands(run)) == shrinks


def test_a_dense_run_is_to_be_pruned(tmp_path: Path) -> None:
    steps = commands(ended(tmp_path / "run", "sparsity={method: dense}", phase="dense"))
    assert steps[0] == "acdc prune RUN --method obc --target 0.8,0.9,0.95 --out RUN_pruned"
    assert steps[1] == "acdc export RUN --format onnx"


def test_a_damaged_run_beside_it_does_not_matter(tmp_path: Path) -> None:
    run = ended(tmp_path / "run")
    ended(tmp_path / "other").metrics.write_text("no JSON\n")
    assert len(commands(run)) == 3


def test_a_run_among_very_many_is_compared_with_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended(tmp_path / "run")
    for number in range(2):
        RunDir(tmp_path / str(number)).start("", "", {})
    monkeypatch.setattr(steps_of, "_MOST_RUNS", 1)
    assert commands(run)[0].startswith("acdc bench ")
