"""`acdc sweep` with real runs of a tiny recipe: killed, stopped, started again, twice at once, with runs that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Acdc
from epoch import recorded
from fake_runs import cells

from acdc_cli.errors import RunError, Stopped
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import run_study
from acdc_cli.studies.run_queue import Row, RunQueue
from acdc_cli.studies.study import Study, load_study

STUDY = """name: tiny
base: {base}
axes:
  epochs: [1, 40]
  seed: [0, 1]
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images of nothing to train on, and 40 to validate."""
    import numpy as np
    from PIL import Image

    from acdc_cli.data.inventory import WriteOptions, write_set

    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 200), ("val", 40)):
        for number in range(count):
            place = folder / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(place / f"{number:03d}.png")
    write_set("folder", WriteOptions(source=folder, out=folder / "set", workers=0))
    return folder / "set"


@pytest.fixture
def study(in_tmp: Path, images: Path) -> Path:
    """Four runs, of which two take many seconds."""
    (in_tmp / "set").symlink_to(images)
    (in_tmp / "tiny.yaml").write_text(
        f"""extends: demo_dense
name: tiny
model: {{name: resnet8}}
data: {{name: folder, path: {in_tmp / "set"}, batch_size: 50, val_batch_size: 40, loader: torch, workers: 0}}
optim: {{schedule: {{warmup_epochs: 0}}}}
"""
    )
    path = in_tmp / "study.yaml"
    path.write_text(STUDY.format(base="tiny.yaml"))
    return path


Sweeping = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def sweeping() -> Iterator[Sweeping]:
    """Starts `acdc sweep` in a process of its own, which says what it does in `said`."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "acdc_cli", "sweep", *map(str, arguments)]
        with Path("said").open("a") as said:
            started.append(subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def rows(study: str = "tiny") -> dict[str, Row]:
    ledger = Path("studies") / study / "ledger.sqlite"
    return {row.key: row for row in RunQueue(ledger).rows()} if ledger.exists() else {}


def until_half_done(key: str, process: subprocess.Popen[str], records: int) -> None:
    """Until the run that the process has made go on has so many records."""
    while process.poll() is None:
        row = rows().get(key)
        if row is not None and row.pid == process.pid and len(RunDir(row.directory).records()) >= records:
            return
        time.sleep(0.02)
    pytest.fail(f"it has ended: {Path('said').read_text()}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_only_what_is_missing_is_run_after_a_sweep_was_killed_and_stopped_and_by_two_at_once(
    study: Path, sweeping: Sweeping
) -> None:
    long = "epochs=40,seed=0"
    killed = sweeping(study, "--workers", "1")
    until_half_done(long, killed, records=2)
    killed.kill()
    killed.wait()
    summaries = [RunDir(rows()[f"epochs=1,seed={seed}"].directory).summary for seed in range(2)]
    written = [summary.stat().st_mtime_ns for summary in summaries]

    stopped = sweeping(study, "--workers", "1")
    until_half_done(long, stopped, records=4)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(100) == 75, Path("said").read_text()
    assert "stopped; 2 of 4 runs are done; resume with: acdc sweep" in Path("said").read_text()
    assert (rows()[long].state, rows()[long].failures) == ("waiting", 0)

    sweeps = [sweeping(study, "--workers", "1") for _ in range(2)]
    assert [process.wait(200) for process in sweeps] == [0, 0], Path("said").read_text()
    done = rows()
    assert {row.state for row in done.values()} == {"done"}
    assert [row.attempts for row in done.values()] == [1, 1, 3, 1]
    assert {done[f"epochs=40,seed={seed}"].pid for seed in range(2)} == {process.pid for process in sweeps}
    assert [summary.stat().st_mtime_ns for summary in summaries] == written
    resumed = RunDir(done[long].directory)
    assert len(resumed.provenance()) == 3
    assert [record["epoch"] for record in resumed.records()] == list(range(40))


def test_failed_runs_are_tabled_the_others_made_and_one_made_again_has_the_settings_of_now(
    study: Path, acdc: Acdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_study._command

    def command(study: Study) -> Callable[[Row], list[str]]:
        """`acdc train`, in this process, where the images are; where they are not, a stand-in."""

        def of_run(row: Row) -> list[str]:
            if row.cell.axes["data.path"] == "set":
                program, words = real(study)(row)[:3], real(study)(row)[3:]
                assert program == [sys.executable, "-m", "acdc_cli"]
                done = acdc(*words)
                return ["sh", "-c", f"exit {done.exit_code}"]
            if Path("nowhere").exists():
                return ["sh", "-c", f"mkdir -p {row.directory}; echo {{}} > {row.directory}/summary.json"]
            return ["sh", "-c", "echo error: there are no images >&2; exit 2"]

        return of_run

    monkeypatch.setattr(run_study, "_command", command)
    study.write_text(study.read_text().replace("[1, 40]", "[1]").replace("seed: [0, 1]", "data.path: [nowhere, set]"))
    result = acdc("sweep", study)
    assert result.exit_code == 2
    nowhere, there = rows().values()
    assert [(row.state, row.attempts) for row in (nowhere, there)] == [("failed", 2), ("done", 1)]
    assert nowhere.key in result.stdout
    assert "there are no images" in " ".join(result.stdout.split())
    assert "1 of 2 runs failed" in result.stderr
    os.symlink("set", "nowhere")
    assert acdc("sweep", study).exit_code == 2
    assert acdc("sweep", study, "--retry-failed").exit_code == 0
    study.write_text(study.read_text() + "set: {optim.lr: 0.01}\n")
    result = acdc("sweep", study)
    assert result.exit_code == 2
    assert "was trained with another recipe (optim.lr: 0.1 there, 0.01 here)" in " ".join(result.stderr.split())
    assert "0.01" not in Path("studies/tiny/study.yaml").read_text()
    # as the error says
    for row in (nowhere, there):
        row.directory.rename(f"moved-{row.state}")
    study.write_text(study.read_text().replace("[nowhere, set]", "[set]"))
    assert acdc("sweep", study).exit_code == 0
    assert "lr: 0.01\n" in RunDir(there.directory).resolved.read_text()


def test_lengths_are_added_until_the_budget_is_spent(study: Path, acdc: Acdc, monkeypatch: pytest.MonkeyPatch) -> None:
    text = study.read_text().replace("[1, 40]", "{values: [1, 2], until_converged: true}")
    study.write_text(text + "budget: {epochs: 14, train_flops: 1.0e+18}\n")
    made = "import pathlib, sys; (p := pathlib.Path(sys.argv[1])).mkdir(parents=True); (p / 'summary.json').touch()"
    monkeypatch.setattr(
        run_study, "_command", lambda study: lambda row: [sys.executable, "-c", made, str(row.directory)]
    )
    monkeypatch.setattr(run_study, "_accuracy", lambda row: row.cell.axes["epochs"] + row.cell.axes["seed"] / 10)
    result = acdc("sweep", study)
    assert result.exit_code == 0, result.output
    assert [(row.cell.axes["epochs"], row.state) for row in rows().values()] == [
        (length, "done") for length in (1, 2, 4) for _ in range(2)
    ]
    assert "would exceed the budget of epochs" in " ".join(result.stderr.split())
    assert acdc("sweep", study).exit_code == 0
    study.write_text(text.replace("until_converged: true", "until_converged: false"))
    assert acdc("sweep", study).exit_code == 0
    assert len(rows()) == 4


def test_a_length_that_the_recipe_does_not_allow_is_said_when_the_sweep_ends(in_tmp: Path, acdc: Acdc) -> None:
    # 3 and 8 epochs are the first and the last phases; between them an odd number of phases of 2 must fit
    (in_tmp / "study.yaml").write_text(
        "name: odd\nbase: demo\nset: {sparsity.warmup_epochs: 3, device: cpu}\nbudget: {runs: 9}\n"
        "axes: {epochs: {values: [17, 21], until_converged: true}, seed: [0, 1]}\n"
    )
    for key, recipe in load_study("study.yaml").recipes().items():
        run = RunDir(Path("studies/odd/runs") / key)
        run.start("", resolved_yaml(recipe), {})
        # more accurate after more epochs, the seeds alike
        run.metrics.write_text(json.dumps(recorded(recipe.epochs - 1, top1=recipe.epochs / 100)) + "\n")
        run.finish({})
    result = acdc("sweep", "study.yaml")
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "epochs=42,seed=0 and its other seeds were not added although accuracy still rises" in said
    assert "42 epochs leave 31 between" in said
    assert "all 4 runs are done" in said
    row = rows("odd")["epochs=21,seed=0"]
    RunDir(row.directory).metrics.write_text(json.dumps(recorded(20, top1=None)) + "\n")
    with pytest.raises(
        RunError, match=r"is done, but its last epoch has no accuracy; restore a copy of metrics\.jsonl"
    ):
        run_study._accuracy(row)


def test_a_sweep_that_was_stopped_says_how_to_resume_it(in_tmp: Path) -> None:
    study: Any = None
    queue = RunQueue(in_tmp / "ledger.sqlite")
    queue.add(cells(2))
    with pytest.raises(Stopped, match="stopped; 0 of 2 runs are done; resume with: acdc sweep demo"):
        run_study._conclude(queue.rows(), study, "demo", in_tmp, stopped=True)


def test_runs_are_dealt_to_the_gpus_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    anywhere = load("demo")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_study._gpus(anywhere) == ["0", "1"]
    assert run_study._gpus(anywhere.model_copy(update={"device": "cpu"})) == []
    # the last of them is not there
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a,7")
    assert run_study._gpus(anywhere) == ["3", "GPU-a"]
