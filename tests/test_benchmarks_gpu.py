"""The GPU's benchmarks run, on a CPU in tiny sizes; a part that fails, hangs or finds no time costs no other part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks
from acdc_cli.models.blurpool import apply_blurpool
from acdc_cli.models.resnet import MODELS
from acdc_cli.recipe.load import load
from benchmarks.gpu import command, grid, kernels, loops, suite
from benchmarks.gpu.parts import PARTS, Part, limit_of
from benchmarks.gpu.runner import Runner

ROOT = Path(benchmarks.__file__).parents[1]
FACTS, SLOW, LAST = Part("facts", "a", 1, 5), Part("slow", "b", 3, 10), Part("last", "c", 4, 20)

# the smoke run starts a dozen processes that each import torch
pytestmark = pytest.mark.timeout(900)


def benchmark(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "benchmarks", *(str(argument) for argument in arguments)]
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)


def environment(*paths: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The file of results, and what was printed."""
    folder = tmp_path_factory.mktemp("gpu")
    done = benchmark("gpu", "--smoke", "--minutes", "14", "--out", "results", folder=folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "results" / "gpu-cpu.json").read_text())
    return result, done.stdout


FIELDS = {
    "facts": ("torch", "memory", "packages"),
    "tests": ("counts", "failing", "workers"),
    "resident": ("batch 4", "batch 2"),
    "stalls": ("mask_update_ms", "checkpoint_ms", "checkpoint_bytes", "validation_images_per_second"),
    "kernels": ("compiled", "eager"),
    "fed": ("step_ms", "loader_alone_images_per_second", "photos"),
    "train": ("epochs", "seconds_until_the_first_epoch", "command"),
    "resume": ("exact", "kills", "deterministic"),
}


@pytest.mark.parametrize("part", FIELDS)
def test_a_part_gives_its_fields(smoke: tuple[dict[str, Any], str], part: str) -> None:
    found = smoke[0]["parts"][part]
    if part == "fed" and found["state"].startswith("skipped: FFCV"):
        pytest.skip(found["state"])
    assert found["state"] == "done", found
    assert not set(FIELDS[part]) - found.keys()
    assert 0 < found["seconds"] <= found["limit_seconds"] + 6


def test_the_result_says_where_it_comes_from(smoke: tuple[dict[str, Any], str]) -> None:
    result = smoke[0]
    assert list(result["parts"]) == [part.name for part in PARTS] == list(FIELDS)
    assert result["smoke"] is True
    assert result["machine"]["gpu"] is None
    assert "torch" in result["versions"]


def test_every_contestant_has_its_speed(smoke: tuple[dict[str, Any], str]) -> None:
    found = smoke[0]["parts"]["resident"]
    assert len(found["batch 4"]) == 10
    for contestant in (*found["batch 4"].values(), found["batch 2"]["ours, dense"]):
        assert contestant["images_per_second"] > 0
        assert contestant["first_step_seconds"] > 0


def test_the_gpu_tests_really_ran(smoke: tuple[dict[str, Any], str]) -> None:
    found = smoke[0]["parts"]["tests"]
    assert found["failing"] == {}
    assert found["counts"] == {"passed": 2, "failed": 0, "skipped": 0}


def test_goals_stand_in_the_table_which_fits_a_terminal(smoke: tuple[dict[str, Any], str]) -> None:
    result, printed = smoke
    lines = {line["what"]: line for part in result["parts"].values() for line in part.get("lines", ())}
    goals = {what: line["target"] for what, line in lines.items() if line["target"]}
    goals.pop("share of time waiting for data", None)
    assert goals == {
        "batch 4: ours / as FFCV's script": "≥ 1.3",
        "batch 4: ours / as timm's train.py": "≥ 1.05",
        "batch 4: ours / bare loop": "≥ 0.97",
        "batch 2: ours / bare loop": "≥ 0.97",
        "batch 4: AC/DC step / dense step": "≤ 1.01",
        "global mask update": "≤ 30.0",
        "compiled: share of masks": "≤ 0.01",
    }
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert all(what in printed for what in goals)


def test_the_killed_run_ended_as_the_other(smoke: tuple[dict[str, Any], str]) -> None:
    found = smoke[0]["parts"]["resume"]
    assert found["exact"] is True
    assert found["differences"] == {}


def test_without_a_gpu_there_is_nothing_to_measure(tmp_path: Path) -> None:
    done = benchmark("gpu", "--out", tmp_path / "results", folder=tmp_path)
    assert done.returncode == 0
    assert "it needs a CUDA device" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("part", "later", "left", "expected"),
    [
        # 1 of 8 shares
        (FACTS, (SLOW, LAST), 80, 10),
        # 3 of 7 of what the first left: it took 3 s
        (SLOW, (LAST,), 77, 33),
        (LAST, (), 50, 50),
        # its share of 24 s is 3 s, and it needs 5
        (FACTS, (SLOW, LAST), 24, 5),
        # the share of 14 s is 6 s, it needs 10, and nothing is kept for the last
        (SLOW, (LAST,), 14, 10),
        (LAST, (), 19.9, None),
        (FACTS, (), -1, None),
    ],
)
def test_a_part_gets_its_share_of_the_time_that_is_left(
    part: Part, later: tuple[Part, ...], left: float, expected: float | None
) -> None:
    assert limit_of(part, later, left) == expected


STAND_INS = {
    "good": "trial.record(number=1)\n    trial.line('speed', 2.0, 'images/s')",
    "raising": "trial.record(number=2)\n    raise ValueError('no such\\nkernel')",
    "hanging": "trial.record(number=3)\n    import time; time.sleep(600)",
    "crashing": "trial.record(number=4)\n    import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "skipping": "from benchmarks.skipped import SkippedError; raise SkippedError('no loader')",
    "late": "trial.record(number=6)",
}


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    modules = tmp_path / "modules"
    modules.mkdir()
    for name, body in STAND_INS.items():
        (modules / f"stand_in_{name}.py").write_text(f"def run(trial):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", environment(modules)["PYTHONPATH"])
    return {name: Part(name, f"stand_in_{name}", 1, 60) for name in STAND_INS}


def test_a_part_that_fails_costs_no_other_part(stand_ins: dict[str, Part], tmp_path: Path) -> None:
    written: list[str] = []
    runner = Runner(tmp_path / "out", ["1", "--smoke"], lambda results: written.append(json.dumps(results)))
    hanging = Part("hanging", "stand_in_hanging", 0.001, 30)
    late = Part("late", "stand_in_late", 0.001, 100_000)
    parts = [stand_ins["raising"], stand_ins["crashing"], stand_ins["skipping"], hanging, stand_ins["good"], late]
    runner.run(parts, 700)
    states = {name: result["state"] for name, result in runner.results.items()}
    assert states == {
        "raising": "failed: ValueError: no such kernel",
        "crashing": states["crashing"],
        "skipping": "skipped: no loader",
        "hanging": "stopped at its limit of 30 s",
        "good": "done",
        "late": "not run: no time left",
    }
    assert states["crashing"].startswith("failed: killed by SIGSEGV")
    numbers = {name: result.get("number") for name, result in runner.results.items()}
    assert numbers == {"raising": 2, "crashing": 4, "skipping": None, "hanging": 3, "good": 1, "late": None}
    assert json.loads(written[-1]) == runner.results
    table = command.table(runner.results)
    assert table[-1].split() == ["speed", "2", "images/s"]
    # what it had found was on the disk while it hung
    assert any(json.loads(text).get("hanging", {}).get("number") == 3 for text in written[:-1])


def test_a_signal_ends_the_part_and_keeps_what_was_found(stand_ins: dict[str, Part], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.gpu.parts import Part;"
        "from benchmarks.gpu.runner import Runner;"
        f"write = lambda results: Path({str(out)!r}).write_text(json.dumps(results));"
        f"parts = [Part(name, 'stand_in_' + name, 1, 60) for name in ('hanging', 'good')];"
        f"Runner(Path({str(tmp_path / 'out')!r}), ['1', '--smoke'], write).run(parts, 700)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while '"number": 3' not in (out.read_text() if out.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    found = json.loads(out.read_text())
    assert found["hanging"]["state"] == "stopped by a signal"
    assert found["hanging"]["number"] == 3
    assert found["good"] == {"state": "not run: stopped by a signal"}


@pytest.mark.parametrize("blur", [loops.blur_at_stride_1, loops.blur_at_the_stride, loops.blur_by_shifts])
def test_every_formulation_of_the_blur_is_the_recipe_s(blur: loops.Blur) -> None:
    torch.manual_seed(0)
    ours, theirs = (MODELS["resnet18"](num_classes=3).double().eval() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    apply_blurpool(ours)
    loops.blurred(theirs, blur).double()
    # odd sizes too: 75 -> 38, 19, 10, 5, 3
    images = torch.randn(2, 3, 75, 64, dtype=torch.float64)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
            "TensorListMetadata<2>, at::native::(anonymous namespace)::BinaryOpListAlphaFunctor<float, 2, 2, 0>, "
            "std::multiplies<float>, float>",
            "masks",
        ),
        ("multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<3>, FusedSgdMathFunctor<float, 3>>", "optimiser"),
        ("triton_red_fused_native_batch_norm_backward_threshold_backward_7", "batch norm"),
        ("void cudnn::bn_bw_1C11_kernel_new<float, float, float2, 512, true, 1>", "batch norm"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("nvjet_tst_128x64_64x9_2x1_v_bz_coopA_TNT", "convolution"),
        ("void conv_depthwise2d_forward_kernel<3, c10::BFloat16, int>", "blur"),
        ("triton_per_fused__log_softmax_nll_loss_forward_3", "loss"),
        ("Memcpy HtoD (Pinned -> Device)", "copy"),
        ("triton_poi_fused_add_relu_12", "other"),
    ],
)
def test_a_kernel_is_filed_by_its_name(name: str, kind: str) -> None:
    assert kernels.kind_of(name) == kind


def test_shares_add_up_and_the_blur_is_counted_once() -> None:
    rows = [{"kind": kind, "ms": ms} for kind, ms in (("convolution", 5.0), ("blur", 1.0), ("masks", 2.0))]
    # of 6 ms of convolutions 2 are the blur's, by their shapes
    assert kernels.shares_of(rows, 2.0) == {"convolution": 0.5, "masks": 0.25, "blur": 0.25}


def test_a_test_report_is_read() -> None:
    junit = """<testsuites><testsuite><testcase classname="a" name="good"/>
        <testcase classname="a" name="bad"><failure message="assert 1 == 2&#10;more">text</failure></testcase>
        <testcase classname="b" name="broken"><error message="no device"/></testcase>
        <testcase classname="b" name="not_here"><skipped/></testcase></testsuite></testsuites>"""
    counts, failing = suite.read(junit)
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert failing == {"a::bad": "assert 1 == 2", "b::broken": "no device"}


def test_the_grid_is_whole_with_one_seed_before_the_next_and_the_largest_model_first() -> None:
    runs = grid.all_runs(grid.MODELS, grid.METHODS, grid.TARGETS, seeds=2, epochs=20)
    # of each model and seed one dense, and three methods at three targets
    assert len(runs) == 2 * 2 * 10
    assert [run.seed for run in runs] == 20 * [0] + 20 * [1]
    assert [run.model for run in runs[:20]] == 10 * ["wideresnet16_4"] + 10 * ["resnet20"]
    assert len({run.name for run in runs}) == len(runs)


def test_phases_are_the_paper_s_in_proportion() -> None:
    of_100 = {"warmup_epochs": 10, "sparse_epochs": 5, "dense_epochs": 5, "last_dense_epochs": 10}
    assert grid.phases(100) == of_100 | {"last_sparse_epochs": 15}
    assert grid.phases(200) == {key: 2 * value for key, value in (of_100 | {"last_sparse_epochs": 15}).items()}
    assert set(grid.phases(grid.LEAST_EPOCHS).values()) == {1}


@pytest.mark.parametrize("epochs", [*range(grid.LEAST_EPOCHS, 24), 30, 50, 77, 200])
def test_every_run_of_the_grid_is_a_recipe(epochs: int) -> None:
    for run in grid.all_runs(grid.MODELS, grid.METHODS, (0.95,), seeds=1, epochs=epochs):
        recipe, *words = run.words()
        loaded = load(recipe, words[1::2])
        assert loaded.sparsity.method == run.method
        assert loaded.model.name == run.model


def test_a_run_is_begun_only_if_the_longest_of_its_model_would_fit() -> None:
    run = grid.Run("resnet20", "acdc", 0.9, 0, 20)
    walls = {"resnet20": [40.0, 50.0], "wideresnet16_4": [90.0]}
    assert grid.fits(run, walls, 50.1)
    assert not grid.fits(run, walls, 50.0)
    assert grid.fits(run, {}, 0.1)
    assert not grid.fits(run, {}, 0.0)


def test_a_row_is_the_mean_and_sample_deviation_over_seeds() -> None:
    common = {"model": "resnet20", "method": "acdc", "target": 0.9}
    records = [{**common, "sparse": {"top1": top1}, "dense": {"top1": 0.5}} for top1 in (0.8, 0.9)]
    dense = {"model": "resnet20", "method": "dense", "target": None, "dense": {"top1": 0.95}}
    rows = grid.rows([*records, dense])
    assert rows[0]["runs"] == 2
    # deviations of 0.05 from 0.85: √(2 · 0.05² / 1)
    assert rows[0]["sparse_top1"] == pytest.approx({"mean": 0.85, "std": 0.05 * 2**0.5})
    table = grid.markdown(rows)
    assert table[2] == "| resnet20       | acdc   |   90 % |    2 |    85.00 ± 7.07 |    50.00 ± 0.00 |"
    assert table[3] == "| resnet20       | dense  |        |    1 |                 |           95.00 |"
    assert {len(line) for line in table} == {79}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of noise in two classes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for label in ("cat", "dog"):
            (folder / "set" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "set" / split / label / f"{index}.jpg")
    subprocess.run(["tar", "cJf", "set.tar.xz", "set"], cwd=folder, check=True)
    return folder / "set.tar.xz"


def test_a_second_call_trains_what_the_first_did_not_reach(images: Path, tmp_path: Path) -> None:
    words = ["gpu_cifar", "--smoke", "--source", images, "--models", "resnet20", "--seeds", "1", "--targets", "0.9"]
    words += ["--work", "work", "--out", "out"]

    def result() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / "out" / "gpu_cifar-cpu.json").read_text())
        return found

    first = benchmark(*words, "--methods", "acdc", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    (run,) = result()["runs"]
    assert run["sparse"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert run["dense"]["sparsity"] < 0.9
    summary = tmp_path / "work" / "runs-4" / "resnet20-acdc-90-0" / "summary.json"
    written = summary.stat().st_mtime_ns
    # no minute is left once data and device are known: nothing starts
    assert benchmark(*words, "--methods", "acdc", "dense", "--minutes", "0", folder=tmp_path).returncode == 0
    assert result()["missing"] == ["resnet20-dense-0"]
    second = benchmark(*words, "--methods", "acdc", "dense", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    found = result()
    assert found["missing"] == []
    assert found["failed"] == {}
    assert {row["method"]: row["runs"] for row in found["table"]} == {"acdc": 1, "dense": 1}
    assert found["data"] == {"source": "set.tar.xz", "train": 80, "val": 20}
    assert summary.stat().st_mtime_ns == written
    assert "| resnet20       | acdc   |   90 % |" in (tmp_path / "out" / "gpu_cifar-cpu.md").read_text()
