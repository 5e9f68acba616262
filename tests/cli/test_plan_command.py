"""`acdc plan`, beside the runs that it foretells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import Acdc

from acdc_cli import console
from acdc_cli.runs.run_dir import RunDir

ADAMW = "optim={name: adamw, lr: 0.01, schedule: {name: cosine}}"


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_plan_foretells_the_run(acdc: Acdc, recipe: Path) -> None:
    plan = json.loads(acdc("plan", recipe, "--json").stdout)
    assert acdc("train", recipe).exit_code == 0
    records = RunDir(Path("runs/small-0")).records()
    for planned, record in zip(plan["epochs"], records, strict=True):
        assert [planned["epoch"], planned["phase"]] == [record["epoch"], record["phase"]]
        assert planned["lr_end"] == record["lr"]
        assert planned["resolution"] == record["resolution"]
        assert planned["sparsity"] == pytest.approx(record["mask_sparsity"])
        # weights that on so small images meet nothing but padding stay zero
        assert planned["sparsity_all"] == pytest.approx(record["sparsity_all"], abs=1e-3)
    assert plan["totals"]["steps"] == records[-1]["step"]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="acdc"),
        pytest.param((ADAMW, "sparsity={method: dense}"), id="adamw", marks=pytest.mark.slow),
        pytest.param(
            ("sparsity.dense_sparsity=0.5", "sparsity.last_phase=dense_last"),
            id="sparse-decompression",
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(
                (f"sparsity={{method: {keys}}}", f"epochs={epochs}"), id=keys.split(",")[0], marks=pytest.mark.slow
            )
            for keys, epochs in (
                ("topkast, target: 0.9, backward_sparsity: 0.5, every: 2", 1),
                ("dpf, target: 0.9, end: 1", 2),
                ("lottery, target: 0.9, prune: 0.9", 2),
                ("snfs, target: 0.9, distribution: erk, every: 3", 2),
                ("deepr, target: 0.9, distribution: erk, every: 1", 1),
                ("str, s_init: -5", 1),
            )
        ),
    ],
)
def test_a_checkpoint_is_as_large_as_foretold(acdc: Acdc, recipe: Path, overrides: tuple[str, ...]) -> None:
    foretold = json.loads(acdc("plan", recipe, *sets(*overrides), "--json").stdout)["checkpoint"]
    done = acdc("train", recipe, *sets(*overrides))
    assert done.exit_code == 0, done.output
    # snfs needs no momentum any more after its last update
    largest = max(file.stat().st_size for file in Path("runs/small-0/checkpoints").glob("*.pt"))
    assert foretold == pytest.approx(largest, rel=0.03)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50_95",
        "demo",
        *(pytest.param(f"{each}_resnet50_95", marks=pytest.mark.slow) for each in ("dpf", "lottery")),
    ],
)
def test_the_tables_fit_a_terminal_of_80_columns(
    acdc: Acdc, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(console._out, "width", 80)
    lines = acdc("plan", name).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    # no row of epochs is broken
    epochs = next(number for number, line in enumerate(lines) if line.split()[:1] == ["epochs"])
    assert all(len(line.split()) == 10 for line in lines[epochs : lines.index("")])


def test_the_tables_tell_course_layers_and_price(acdc: Acdc, in_tmp: Path) -> None:
    done = acdc("plan", "demo", "--set", "epochs=12", "--set", "sparsity.last_sparse_epochs=1")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["11", "sparse", "90.00", "88.71"] in [row[:4] for row in rows]
    assert ["conv1", "16x3x3x3", "432", "100.00%", "keep_dense:", "first"] in rows
    said = flat(done.stdout)
    assert "convention A (weights)" in said
    assert "parameters 75,290 not zero at the end 8,935 (11.9%)" in said
    assert "checkpoint 0.7 MB, and as much for the previous one" in said
    assert "FLOPs assume the same density" in flat(done.stderr)


def test_every_convention_names_itself_and_gives_its_own_price(acdc: Acdc, in_tmp: Path) -> None:
    flops = {}
    for convention in "ABC":
        totals = json.loads(acdc("plan", "demo", "--convention", convention, "--json").stdout)["totals"]
        assert totals["convention"] == convention
        flops[convention] = totals["train_flops"]
        assert f"convention {convention} (" in acdc("plan", "demo", "--convention", convention).stdout
    assert len(set(flops.values())) == 3
    assert acdc("plan", "demo", "--convention", "D").exit_code == 2


def test_every_nth_epoch_is_printed_and_json_has_them_all(acdc: Acdc, in_tmp: Path) -> None:
    lines = acdc("plan", "demo_gmp", "--every", "5").stdout.splitlines()
    numbers = [line.split()[0] for line in lines[4 : lines.index("")]]
    epochs = len(json.loads(acdc("plan", "demo_gmp", "--every", "5", "--json").stdout)["epochs"])
    assert numbers == [str(epoch) for epoch in range(epochs) if epoch % 5 == 0 or epoch == epochs - 1]


def test_a_figure_is_drawn_where_it_is_asked_for(acdc: Acdc, in_tmp: Path) -> None:
    assert acdc("plan", "demo", "--plot", "plan.png").exit_code == 0
    assert Path("plan.png").read_bytes().startswith(b"\x89PNG")


def test_plan_and_train_say_the_same_of_a_doubtful_run(acdc: Acdc, recipe: Path) -> None:
    doubtful = sets("epochs=1", "sparsity={method: static, target: 0, distribution: erk}", "optim.lr_batch=100")
    doubts = json.loads(acdc("plan", recipe, *doubtful, "--json").stdout)["warnings"]
    assert [doubt.partition(":")[0] for doubt in doubts] == ["sparsity.target", "optim.lr"]
    for command in ("plan", "train"):
        done = acdc(command, recipe, *doubtful)
        assert done.exit_code == 0, done.output
        for doubt in doubts:
            assert flat(done.stderr).count(f"warning: {doubt}") == 1


def test_plan_and_train_refuse_a_run_that_would_stop_on_its_way(acdc: Acdc, recipe: Path) -> None:
    hopeless = sets("sparsity={method: snip, target: 0.9, batches: 4}")
    for command in ("plan", "train"):
        done = acdc(command, recipe, *hopeless)
        assert done.exit_code == 2
        assert "sparsity.batches: expected fewer than the 4 batches of the first epoch" in flat(done.stderr)
    assert not Path("runs").exists()


def test_help_needs_no_torch() -> None:
    code = "import sys; import acdc_cli.cli.app; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
