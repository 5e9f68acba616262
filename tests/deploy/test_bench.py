"""What is timed, that it is the same model, and what the ratios are of."""

from __future__ import annotations

import csv
import importlib.util
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Acdc
from torch import nn

from acdc_cli.deploy import contest, engines, parity, random_zeros
from acdc_cli.deploy.contest import Contestant, Measurements, Record, Turn
from acdc_cli.deploy.engines import Engine
from acdc_cli.errors import ModelError, RunError
from acdc_cli.jobs import bench_run
from acdc_cli.jobs.bench_run import Setup, bench_random, bench_runs
from acdc_cli.jobs.entrants import Random, opened
from acdc_cli.jobs.export_run import Exported
from acdc_cli.jobs.training_run import train
from acdc_cli.models import resnet_cifar
from acdc_cli.models.build import build
from acdc_cli.recipe.load import load
from acdc_cli.sparsity.prunable import layers
from acdc_cli.training.checkpoint import save_model

ExportedAs = Callable[[str], Exported]


def test_a_speedup_is_the_median_over_rounds_of_each_rounds_own_ratio() -> None:
    # rounds of 4 / 2, 9 / 3 and 8 / 8 seconds; all passes of all rounds would give 8 / 3
    own = Record(0, [Turn((2.0, 2.0, 5.0), 1.0), Turn((3.0,), 1.0), Turn((8.0,), 2.0)])
    other = Record(0, [Turn((4.0,), 3.0), Turn((9.0, 9.0), 4.0), Turn((8.0,), 2.0)])
    assert own.ratio_to(other) == (2.0, 3.0)


@pytest.mark.parametrize(
    "apart",
    [("ort", "mnn"), pytest.param(("torch", "ort", "mnn", "openvino"), marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_engines_answer_as_the_export_did_and_take_turns(exported_as: ExportedAs, apart: tuple[str, ...]) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 28, 28)).astype(np.float32)
    entries = [Contestant("sparse", name, exported_as(engines.ENGINES[name].format).path) for name in apart]
    assert engines.installed() == ["torch", "ort", "mnn", "openvino"]
    outcome = contest.run(entries, images, (1, 3), 1, range(2), 1e-9)
    # in this process, too: a process of its own that imports torch takes longest
    first = engines.ENGINES["torch"].open(exported_as("pt2").path, 1)(images)
    assert first.shape == (3, 10)
    for other in (*outcome.logits.values(), engines.ENGINES["openvino"].open(exported_as("onnx").path, 1)(images)):
        assert parity.difference(torch.from_numpy(first), torch.from_numpy(other)) <= parity.TOLERANCE
    assert len(outcome.records) == 2 * len(entries)
    for record in outcome.records.values():
        assert [len(turn.walls) for turn in record.turns] == [1, 1]
        # one thread: its CPU time is never more than the time that passes, but for starts and clocks
        assert all(turn.cpu <= 1.2 * turn.walls[0] + 0.005 for turn in record.turns)
    assert all(outcome.records[each, 3].peak_bytes >= outcome.records[each, 1].peak_bytes > 2**24 for each in entries)


def test_a_file_that_an_engine_cannot_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"^ort cannot run model\.onnx: "):
        contest.run(
            [Contestant("sparse", "ort", tmp_path / "model.onnx")], np.zeros((1, 3, 8, 8)), (1,), 1, range(1), 0.1
        )
    assert not multiprocessing.active_children()


def test_a_process_that_ends_is_an_error_and_not_a_wait(exported_as: ExportedAs) -> None:
    entry = Contestant("sparse", "ort", exported_as("onnx").path)
    with contest._process(entry, np.zeros((1, 3, 28, 28), np.float32), 1) as ask:
        ask("logits")
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(ModelError, match="the process of ort ended with code -9"):
            ask("logits")


def test_an_engine_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_START_SECONDS", 0)
    entry = Contestant("sparse", "ort", tmp_path / "model.onnx")
    with (
        contest._process(entry, np.zeros((1, 3, 8, 8)), 1) as ask,
        pytest.raises(ModelError, match=r"ort took more than 0 s over model\.onnx"),
    ):
        ask("logits")


def answers(open: Callable[[Path, int], engines.Runner], *requests: tuple[Any, ...]) -> list[Any]:
    """What the main loop of an engine's process, run in this process, answers over a real pipe about six images."""
    ours, theirs = multiprocessing.Pipe()

    def asked() -> list[Any]:
        got = []
        with ours:
            for request in requests:
                ours.send(request)
                got.append(ours.recv())
        return got

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setitem(engines.ENGINES, "new", Engine("packed", "numpy", "numpy", open))
            got = pool.submit(asked)
            with theirs:
                contest._serve(theirs, "new", Path("model"), 2, np.arange(12.0).reshape(6, 2))
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            return got.result()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_answers_until_its_pipe_is_closed() -> None:
    seen = []

    def open(path: Path, threads: int) -> engines.Runner:
        assert (path, threads) == (Path("model"), 2)

        def run(images: engines.Array) -> engines.Array:
            seen.append(len(images))
            if len(images) == 5:
                raise MemoryError("too large\nby far")
            return 2 * images

        return run

    logits, peak, error, turn = answers(open, ("logits",), ("warm_up", 3), ("warm_up", 5), ("turn", 4, 1e-9))
    assert logits.tolist() == [[4 * at, 4 * at + 2] for at in range(6)]
    assert peak > 2**24
    assert error == "too large"
    assert seen == [1, 1, 1, 1, 1, 1, 3, 3, 5, 4]
    assert len(turn.walls) == 1
    assert turn.walls[0] > 0 <= turn.cpu


def test_a_process_that_cannot_open_its_file_says_why_and_ends() -> None:
    def open(path: Path, threads: int) -> engines.Runner:
        raise ValueError

    assert answers(open, ("logits",)) == ["ValueError"]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 4), nn.Flatten(), nn.Linear(16, 5)
    )


def test_larger_layers_keep_a_smaller_share() -> None:
    model = small_network()
    random_zeros.prune(layers(model, ["first", "last"]), 0.9)
    kept = [
        int(weight.count_nonzero()) for weight in (model[0].weight, model[1].weight, model[3].weight, model[5].weight)
    ]
    # 208 of 32 + 2048 weights in the proportion of 32^0.7 to 2048^0.7, 1 : 18.4
    assert kept == [12, 11, 197, 80]
    assert (
        model[1].weight.abs().flatten().sort().values[-11:].min() == model[1].weight[model[1].weight != 0].abs().min()
    )


def test_filters_are_zero_as_a_whole_and_the_sparsity_stays() -> None:
    model = small_network()
    random_zeros.prune(layers(model, ["first", "last"]), 0.5, zero_filters=0.25)
    assert [bool(row.any()) for row in model[1].weight] == 6 * [True] + 2 * [False]
    assert [bool(row.any()) for row in model[3].weight] == 12 * [True] + 4 * [False]
    assert sum(int(model[at].weight.count_nonzero()) for at in (1, 3)) == 1040


def test_a_refilled_model_has_no_zeros_and_weights_of_the_same_size() -> None:
    model = small_network()
    random_zeros.prune(layers(model, ["first", "last"]), 0.9)
    before = model[3].weight.detach().clone()
    random_zeros.refill(layers(model, ()), torch.Generator().manual_seed(1))
    after = model[3].weight.detach()
    assert torch.equal(after[before != 0], before[before != 0])
    assert after.count_nonzero() == after.numel()
    assert after[before == 0].std() == pytest.approx(before[before != 0].square().mean().sqrt().item(), rel=0.1)


def test_batch_norm_takes_the_statistics_of_the_images_alone() -> None:
    model, images = small_network(), torch.randn(16, 3, 4, 4)
    random_zeros.settle(model, images)
    with torch.no_grad():
        assert not model.training
        assert model[:3](images).mean((0, 2, 3)) == pytest.approx(np.zeros(8), abs=1e-5)
        assert model[:3](images).std((0, 2, 3), correction=0) == pytest.approx(np.ones(8), rel=0.02)


SMALL_IMAGES = True


def tiny(num_classes: int) -> nn.Module:
    """A model that is exported in a fraction of the time of `run`'s; a convolution has nearly all its weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 4), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


@pytest.fixture(scope="module", autouse=True)
def _tiny_is_a_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet_cifar.MODELS, "tiny", tiny)
        yield


@pytest.fixture(scope="module")
def tiny_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny` on the digits of `run`."""
    sets = ("model.name=tiny", "epochs=1", "optim.schedule.warmup_epochs=0", "data.loader=torch")
    data = ("data.name=folder", f"data.path={run.parent / 'images'}", "data.val_batch_size=50", "data.workers=0")
    return train("demo_static", [*sets, *data], tmp_path_factory.mktemp("tiny") / "small").path


@pytest.fixture(scope="module")
def benched(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> bench_run.Benched:
    out = tmp_path_factory.mktemp("bench")
    return bench_runs([tiny_run], Setup(("ort", "mnn"), (16, 1), (1,), rounds=2, turn_seconds=0.001), out)


def test_a_runs_models_are_timed_on_each_engine_and_batch(benched: bench_run.Benched) -> None:
    rows = benched.document["results"]["rows"]
    assert [(row["variant"], row["engine"], row["batch"]) for row in rows] == [
        (variant, engine, batch) for variant in ("dense", "sparse") for engine in ("ort", "mnn") for batch in (1, 16)
    ]
    assert all(row["logit_difference"] < parity.TOLERANCE for row in rows)
    assert {row["model"] for row in rows} == {"demo_static-0"}
    assert all(row["speedup_over_own_dense"] == 1 for row in rows if row["variant"] == "dense")
    assert all(row["speedup_over_base"] == 1 for row in rows[:2])
    for row in rows:
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["latency_ms"])
        assert row["latency_p90_ms"] >= row["latency_ms"] > 0
    by_name = {(row["variant"], row["engine"]): row["file_bytes"] for row in rows}
    assert by_name["sparse", "mnn"] < 0.5 * by_name["dense", "mnn"]
    assert by_name["sparse", "ort"] == pytest.approx(by_name["dense", "ort"], rel=0.01)


def test_a_model_without_a_dense_twin_has_no_accuracy_there(tiny_run: Path, benched: bench_run.Benched) -> None:
    top1 = json.loads((tiny_run / "summary.json").read_text())["sparse"]["top1"]
    assert {row["variant"]: row["accuracy"] for row in benched.document["results"]["rows"]} == {
        "dense": None,
        "sparse": top1,
    }


def test_a_model_without_zeros_is_timed_as_what_it_is(tiny_run: Path, tmp_path: Path) -> None:
    recipe = load(tiny_run / "resolved.yaml")
    save_model(tmp_path / "dense.safetensors", build(recipe.model, 10), {"recipe": recipe.as_dict()})
    assert list(opened(tmp_path / "dense.safetensors", None, None, 1, ()).variants) == ["dense"]


def test_the_files_say_how_they_were_measured(tiny_run: Path, benched: bench_run.Benched) -> None:
    joint, table, png, svg, own = benched.files
    assert [path.name for path in (joint, table, png, svg)] == ["bench.json", "bench.csv", "bench.png", "bench.svg"]
    assert json.loads(joint.read_text()) == benched.document
    about = json.loads(own.read_text())
    assert own == tiny_run / "bench.json"
    assert about["versions"].keys() == {"torch", "onnxruntime", "MNN"}
    assert {"cpu", "cores", "device"} == about["machine"].keys()
    assert about["load_before"] >= 0
    assert about["results"] == benched.document["results"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 8
    assert rows[0]["accuracy"] == ""
    assert "accuracy (%)" in svg.read_text()


def test_the_tables_fit_a_terminal(benched: bench_run.Benched) -> None:
    (title, other), (table, _) = benched.tables.keys(), benched.tables.values()
    assert (title, other) == ("demo_static-0, batch 1, threads 1", "demo_static-0, batch 16, threads 1")
    widths = [max(len(row[at]) for row in (table.columns, *table.rows)) for at in range(len(table.columns))]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80


def test_a_gpu_has_engines_of_its_own_and_one_that_all_are_compared_with() -> None:
    on_gpu, on_cpu = (Setup(device=torch.device(name)).checked() for name in ("cuda", "cpu"))
    assert on_gpu.engines == ("torch", "compiled", "bf16", "bf16-compiled", "2:4")
    assert on_cpu.engines == ("torch", "ort", "mnn", "openvino")
    assert (on_gpu.base, on_cpu.base) == ("torch", "ort")


def test_none_of_the_pareto_front_is_beaten() -> None:
    rows = [
        {"latency_ms": latency, "accuracy": top1}
        for latency, top1 in ((3.0, 0.7), (1.0, 0.5), (2.0, 0.7), (4.0, 0.9), (2.5, 0.6), (1.0, 0.4))
    ]
    assert [(row["latency_ms"], row["accuracy"]) for row in bench_run._pareto(rows)] == [
        (1.0, 0.5),
        (2.0, 0.7),
        (4.0, 0.9),
    ]


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine runs: the dense model takes 8 ms on `ort`, the sparse one 4 and the shrunk one 2, on 100 MB."""
    walls = {"dense": 0.008, "sparse": 0.004, "shrunk": 0.002}

    def run(contestants: list[Contestant], images: np.ndarray, batches: tuple[int, ...], *_: object) -> Measurements:
        classes = 1000 if images.shape[-1] == 16 else 10

        def record(variant: str) -> Record:
            return Record(10**8, [Turn((walls[variant],), walls[variant])])

        records = {(each, batch): record(each.variant) for each in contestants for batch in batches}
        logits = np.zeros((16, classes), np.float32)
        return Measurements(dict.fromkeys(contestants, logits), records)

    monkeypatch.setattr(contest, "run", run)
    monkeypatch.setitem(engines.ENGINES, "ort", replace(engines.ENGINES["ort"], format="packed"))


@pytest.mark.usefixtures("on_paper")
def test_the_times_of_random_weights_are_shown_and_written(acdc: Acdc, in_tmp: Path) -> None:
    words = ["--random", "0.95", "--model", "tiny", "--zero-filters", "0.5", "--input-size", "16", "--engines", "ort"]
    done = acdc("bench", *words, "--out", "times")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line for line in lines if "ort" in line] == [
        ["dense", "ort", "8.00", "8.00", "125", lines[2][5], "100", "1.00", "1.00", "1e+00"],
        ["sparse", "ort", "4.00", "4.00", "250", lines[3][5], "100", "2.00", "2.00", "1e+00"],
        ["shrunk", "ort", "2.00", "2.00", "500", lines[4][5], "100", "4.00", "4.00", "1e+00"],
    ]
    # no figure: its accuracy is unknown
    assert done.stdout.split()[-2:] == ["times/bench.json", "times/bench.csv"]


@pytest.mark.usefixtures("on_paper")
def test_runs_of_one_name_are_told_apart_by_their_folders(tiny_run: Path, tmp_path: Path, acdc: Acdc) -> None:
    """The second has a dense model of its own, whose accuracy it knows."""
    other = shutil.copytree(tiny_run, tmp_path / "other")
    shutil.copy(other / "sparse.safetensors", other / "dense.safetensors")
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "dense": {**summary["sparse"], "top1": 0.625}}))
    done = acdc("bench", tiny_run, other, "--engines", "ort", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["results"]["rows"]
    assert json.loads((other / "bench.json").read_text())["results"]["rows"] == rows[2:]
    top1 = summary["sparse"]["top1"]
    assert [(row["model"], row["variant"], row["accuracy"]) for row in rows] == [
        (str(tiny_run), "dense", None), (str(tiny_run), "sparse", top1),
        (str(other), "dense", 0.625), (str(other), "sparse", top1),
    ]  # fmt: skip
    # the names stand beside the points of the Pareto front
    assert str(tiny_run) in (tmp_path / "out" / "bench.svg").read_text()


@pytest.mark.slow
def test_shapes_alone_are_timed_for_planning(acdc: Acdc, tmp_path: Path) -> None:
    words = ["--random", "0.95", "--model", "tiny", "--zero-filters", "0.5", "--engines", "ort", "--rounds", "1"]
    done = acdc("bench", *words, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "tiny, batch 1, threads 1" in done.stdout
    rows = json.loads((tmp_path / "bench.json").read_text())["results"]["rows"]
    assert [row["variant"] for row in rows] == ["dense", "sparse", "shrunk"]
    assert {row["accuracy"] for row in rows} == {None}
    sizes = {(row["variant"], row["engine"]): row["file_bytes"] for row in rows}
    assert sizes["shrunk", "ort"] < 0.8 * sizes["sparse", "ort"]
    assert "channels of tiny removed" in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.csv", "bench.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the runs to time, or --random SPARSITY --model NAME"),
        (["--random", "0.9"], "--random needs --model, and takes no run"),
        (
            ["runs/x", "--batch", "1,0"],
            "--batch takes whole numbers from 1, separated by commas: --batch 1,16; not '1,0'",
        ),
        (["runs/x", "--threads", ""], "--threads takes whole numbers from 1"),
        (["runs/x", "--device", "cuda"], "--device cuda: torch finds no CUDA device; leave --device out"),
        (["runs/x", "--engines", "onnx"], "there is no engine onnx, only torch, ort, mnn, openvino"),
        (["runs/none"], "runs/none does not exist"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    words: list[str], message: str, acdc: Acdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = acdc("bench", *words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_an_engine_that_is_missing_is_left_out_and_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "MNN" else find_spec(name, *more)
    )
    assert engines.installed() == ["torch", "ort", "openvino"]
    with pytest.raises(
        RunError, match=r'engine mnn needs the package MNN, which is missing: pip install "acdc-cli\[mnn\]"'
    ):
        bench_random(Random("resnet8", 0.9), Setup(("mnn",)))
