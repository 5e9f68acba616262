"""The GPU's benchmarks run, on a CPU in tiny sizes; a part that fails, hangs or finds no time costs no other part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import benchmarks
from acdc_cli.models.blurpool import apply_blurpool
from acdc_cli.models.resnet import MODELS
from acdc_cli.recipe.load import load
from benchmarks.gpu import command, grid, kernels, loops, suite
from benchmarks.gpu.parts import Part, limit_of
from benchmarks.gpu.runner import Runner

ROOT = Path(benchmarks.__file__).parents[1]
FACTS, SLOW, LAST = Part("facts", "a", 1, 5), Part("slow", "b", 3, 10), Part("last", "c", 4, 20)


def environment(*paths: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "gpu_name", lambda: None)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_there_is_nothing_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path / "results")]) == 0
    assert "it needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_a_part_that_is_asked_for_is_measured_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--smoke", "--parts", "stalls", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(result["parts"]) == ["stalls"]
    assert result["parts"]["stalls"]["state"] == "done"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "global mask update" in line)
    assert line.endswith("≤ 30.0")


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


@pytest.mark.slow
def test_the_command_runs_the_parts_that_are_asked_for(
    stand_ins: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "gpu_name", lambda: None)
    monkeypatch.setattr(command, "PARTS", [stand_ins["raising"], stand_ins["good"]])
    assert command.main(["--smoke", "--parts", "good", "--out", str(tmp_path / "out")]) == 0
    parts = json.loads((tmp_path / "out/gpu-cpu.json").read_text())["parts"]
    assert {name: (part["state"], part["number"]) for name, part in parts.items()} == {"good": ("done", 1)}
    assert "speed" in capsys.readouterr().out


@pytest.mark.slow
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


@pytest.mark.slow
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
    document = json.loads(out.read_text())
    assert document["hanging"]["state"] == "stopped by a signal"
    assert document["hanging"]["number"] == 3
    assert document["good"] == {"state": "not run: stopped by a signal"}


@pytest.mark.parametrize(
    "blur",
    [pytest.param(loops.blur_at_stride_1, marks=pytest.mark.slow), loops.blur_at_the_stride, loops.blur_by_shifts],
)
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
