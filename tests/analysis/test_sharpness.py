"""Curvature against matrices that are known, and against the explicit Hessian of a small network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
import torch
from command import Acdc
from fixed_images import FixedImages, small_bench
from hypothesis import given
from torch import Tensor, nn
from torch.func import functional_call

from acdc_cli.analysis.base.evenly import Evenly
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.analysis.sharpness import (
    Eigenvalue,
    Options,
    Sharpness,
    _along,
    _summary,
    hessian_times,
    hutchinson,
    largest_eigenvalue,
    measured_entries,
    sharpness_of,
)
from acdc_cli.errors import RunError
from acdc_cli.jobs.setup import ReadyModel


def diagonal(*values: float) -> Callable[[Tensor], Tensor]:
    return torch.tensor(values, dtype=torch.float64).mul


def ones(entries: int) -> Tensor:
    return torch.ones(entries, dtype=torch.float64)


def test_the_largest_eigenvalue_of_a_quadratic() -> None:
    largest, dominant = largest_eigenvalue(diagonal(1, 8, 3), ones(3), iterations=50, tolerance=1e-9)
    assert largest.value == pytest.approx(8, rel=1e-9)
    assert largest.converged
    assert dominant is largest
    assert largest.history[0] == pytest.approx(4)  # the mean of all three, from a start that has equal parts of each


def test_a_negative_eigenvalue_of_larger_modulus_is_not_the_sharpness() -> None:
    largest, dominant = largest_eigenvalue(diagonal(-5, 3, 1), ones(3), iterations=200, tolerance=1e-9)
    assert dominant.value == pytest.approx(-5, rel=1e-8)
    assert largest.value == pytest.approx(3, rel=1e-8)


def test_where_all_curve_downwards_the_largest_is_the_least_negative() -> None:
    largest, _ = largest_eigenvalue(diagonal(-5, -2), ones(2), iterations=200, tolerance=1e-9)
    assert largest.value == pytest.approx(-2, rel=1e-8)


def test_a_quotient_that_stands_still_between_two_eigenvalues_has_not_converged() -> None:
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    largest, _ = largest_eigenvalue(diagonal(10, -10), start, iterations=20, tolerance=1e-3)
    assert largest.history == pytest.approx([6] * 20)
    assert not largest.converged
    assert largest.residual == pytest.approx(8 / 6)


def test_iterations_end_early_where_they_converge_and_say_so_where_they_do_not() -> None:
    quick, _ = largest_eigenvalue(diagonal(1, 100), ones(2), iterations=20, tolerance=1e-3)
    assert quick.converged
    assert len(quick.history) < 6
    slow, _ = largest_eigenvalue(diagonal(0.99, 1), ones(2), iterations=3, tolerance=1e-9)
    assert not slow.converged
    assert len(slow.history) == 3


def test_no_curvature_at_all_is_zero() -> None:
    largest, _ = largest_eigenvalue(diagonal(0, 0), ones(2))
    assert (largest.value, largest.residual, largest.converged) == (0.0, 0.0, True)


def test_curvature_that_is_not_finite_is_refused() -> None:
    with pytest.raises(RunError, match="NaN or infinite"):
        largest_eigenvalue(diagonal(1, math.nan), ones(2))


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_both_ends_of_the_spectrum_agree_with_the_explicit_ones(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, size, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(half).Q
    # apart, so that the iteration converges
    values = torch.tensor([(-1) ** (seed % 2 + each) * 2.0**each for each in range(size)], dtype=torch.float64)
    matrix = basis * values @ basis.T
    start = torch.randn(size, dtype=torch.float64, generator=generator)
    largest, dominant = largest_eigenvalue(matrix.mv, start, iterations=2000, tolerance=1e-13)
    assert largest.value == pytest.approx(float(values.max()), rel=1e-5)
    assert dominant.value == pytest.approx(float(values[-1]), rel=1e-5)


def test_the_trace_of_a_diagonal_is_exact_from_a_single_vector() -> None:
    mask = torch.tensor([True, True, True])
    assert hutchinson(diagonal(1, 8, -3), mask, samples=1)[0] == 6
    assert hutchinson(diagonal(1, 8, -3), mask, samples=5) == (6, 0)
    masked = torch.tensor([True, False, True])
    assert hutchinson(diagonal(1, 8, -3), masked, samples=5) == (-2, 0)


def test_a_trace_without_vectors_is_unknown_and_with_one_has_no_error() -> None:
    mask = torch.tensor([True, True])
    assert all(map(math.isnan, hutchinson(diagonal(1, 2), mask, samples=0)))
    assert math.isnan(hutchinson(diagonal(1, 2), mask, samples=1)[1])


def test_the_trace_s_error_is_that_of_the_mean() -> None:
    # z·Hz is 2 ± 2 with equal chances: the standard deviation is 2, and that of a mean of 400 is 0.1
    matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    mean, error = hutchinson(matrix.mv, torch.tensor([True, True]), samples=400)
    assert error == pytest.approx(0.1, rel=0.02)
    assert abs(mean - 2) < 4 * error


def test_a_dominant_eigenvalue_below_zero_has_a_row_of_its_own() -> None:
    up, down = Eigenvalue([2.0, 3.0], 0.01, True), Eigenvalue([-4.0, -5.0], 0.5, False)
    sharpness = {"a": Sharpness(up, up, math.nan, math.nan, 1234), "b": Sharpness(up, down, 7.0, 0.123, 9)}
    assert _summary(sharpness).rows == [
        ("a", "1,234", "3", "1.0%", "after 2", "-"),
        ("b", "9", "3", "1.0%", "after 2", "7 ± 0.12"),
        ("b: largest in modulus", "", "-5", "50.0%", "no", ""),
    ]


def test_several_runs_are_drawn_without_the_phases_of_one() -> None:
    subjects: list[Any] = [SimpleNamespace(name=name) for name in "ab"]
    rows = [
        {"subject": name, "epoch": epoch, "phase": "sparse", "largest": {"value": epoch + shift}}
        for name, shift in (("a", 0.5), ("b", 2.5))
        for epoch in (1, 3)
    ]
    (panel,) = _along(subjects, rows).axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()] == [
        ([2, 4], [1.5, 3.5]),
        ([2, 4], [3.5, 5.5]),
    ]
    assert not panel.patches


def test_the_mask_leaves_out_zero_weights_and_no_other_zeros() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 3.0]))
    layers = small_layers(model)
    assert measured_entries(model, layers).tolist() == [True, False, True, False, *[True] * 6]
    assert measured_entries(model, layers, "weights").tolist() == [True, False, True, False, *[False] * 6]


def small_layers(model: nn.Module) -> list:  # type: ignore[type-arg]
    from acdc_cli.sparsity.prunable import layers

    return layers(model, ())


def explicit_hessian(bench: ReadyModel, loader: FixedImages, sizes: list[int], batch_norm: str) -> Tensor:
    """By torch, of the mean loss over all images as one function of all parameters in a row."""
    shapes = {name: each.shape for name, each in bench.model.named_parameters()}
    normalised = loader.images.double() / 128 - 1
    bench.model.eval()
    if batch_norm == "train":
        bench.model[1].train()
    before = {name: each.clone() for name, each in bench.model.state_dict().items()}

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        state = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        images, labels = normalised.split(sizes), loader.labels.split(sizes)
        losses = [
            bench.task.loss(functional_call(bench.model, state, (each,)), truth) * len(truth)
            for each, truth in zip(images, labels, strict=True)
        ]
        return torch.stack(losses).sum() / loader.samples

    flat = torch.cat([each.detach().flatten() for each in bench.model.parameters()])
    hessian: Tensor = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    bench.model.load_state_dict(before)
    bench.model.eval()
    return hessian


@pytest.mark.parametrize(
    ("parameters", "batch_norm", "smoothing"),
    [
        ("all", "train", 0.1),
        pytest.param("all", "eval", 0.0, marks=pytest.mark.slow),
        pytest.param("weights", "eval", 0.1, marks=pytest.mark.slow),
        pytest.param("weights", "train", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_network_s_sharpness_and_trace_are_those_of_its_explicit_hessian(
    parameters: Literal["all", "weights"], batch_norm: Literal["eval", "train"], smoothing: float
) -> None:
    bench, loader = small_bench(smoothing=smoothing), FixedImages(11, batch_size=3)
    data = Evenly(loader, 4)
    mask = measured_entries(bench.model, bench.layers, parameters)
    hessian = explicit_hessian(bench, loader, [3, 4, 4], batch_norm)[mask][:, mask]
    options = Options(parameters=parameters, batch_norm=batch_norm, iterations=500, tolerance=1e-5, trace_samples=20)
    measured = sharpness_of(bench, data, options)
    values = torch.linalg.eigvalsh(hessian)
    assert measured.entries == int(mask.sum()) < mask.numel()
    assert measured.largest.value == pytest.approx(float(values[-1]), rel=1e-4)
    assert measured.dominant.value == pytest.approx(float(values[values.abs().argmax()]), rel=1e-4)
    assert abs(measured.trace - float(hessian.trace())) < 4 * measured.trace_error


@pytest.mark.parametrize("largest", [1, 2, 4, 50])
def test_a_product_does_not_depend_on_the_batches(largest: int) -> None:
    bench, loader = small_bench(), FixedImages(11, batch_size=3)
    bench.model.eval()
    mask = measured_entries(bench.model, bench.layers)
    vector = torch.linspace(-1, 1, len(mask), dtype=torch.float64)
    expected = mask * (explicit_hessian(bench, loader, [11], "eval") @ (mask * vector))
    product = hessian_times(
        vector,
        lambda images, labels: bench.task.loss(bench.forward(images), labels),
        list(bench.model.parameters()),
        mask,
        Evenly(loader, largest),
    )
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-12)


def test_attention_can_be_differentiated_twice() -> None:
    weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        tokens = images.float().flatten(2)[:, None, :, :8] / 256 @ weight
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).square().mean()

    mask = torch.ones(64, dtype=torch.bool)
    product = hessian_times(ones(64), loss, [weight], mask, Evenly(FixedImages(4, 4), 4))
    assert product.isfinite().all()
    assert product.abs().sum() > 0


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_the_model_stays_as_it_was(batch_norm: Literal["eval", "train"]) -> None:
    bench = small_bench()
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    sharpness_of(bench, Evenly(FixedImages(6, 6), 3), Options(batch_norm=batch_norm))
    assert all(torch.equal(before[name], value) for name, value in bench.model.state_dict().items())
    assert all(parameter.grad is None for parameter in bench.model.parameters())
    assert bench.model[1].track_running_stats
    assert not any(module.training for module in bench.model.modules())


def test_batches_are_even_and_hold_each_image_once_though_the_loader_reuses_its_memory() -> None:
    loader = FixedImages(11, batch_size=3)
    with Evenly(loader, 5).batches() as batches:
        drawn = list(batches)
    assert [len(labels) for _, labels in drawn] == [3, 4, 4]
    assert torch.equal(torch.cat([images for images, _ in drawn]), loader.images)
    assert torch.equal(torch.cat([labels for _, labels in drawn]), loader.labels)


@given(st.integers(2, 200), st.integers(3, 50))
def test_no_even_batch_has_a_single_image(samples: int, largest: int) -> None:
    sizes = Evenly(FixedImages(samples, 7, side=1), largest).sizes
    assert sum(sizes) == samples
    assert min(sizes) >= 2
    assert max(sizes) <= min(largest, min(sizes) + 1)


def test_a_model_without_weights_and_batches_without_statistics_are_refused() -> None:
    bench = small_bench()
    with pytest.raises(RunError, match="raise batch_size"):
        sharpness_of(bench, Evenly(FixedImages(6, 6), 1), Options(batch_norm="train"))
    with torch.no_grad():
        for layer in bench.layers:
            layer.parameter.zero_()
    with pytest.raises(RunError, match="all its weights are zero"):
        sharpness_of(bench, Evenly(FixedImages(6, 6), 3), Options(parameters="weights"))


class Killed(Exception):  # noqa: N818
    """As by Ctrl-C, which would end the tests themselves."""


def dying_at(call: int, bench: ReadyModel) -> ReadyModel:
    calls = iter(range(call))

    def forward(images: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise Killed
        return bench.forward(images)

    return ReadyModel(bench.model, forward, bench.layers, bench.task, bench.precision, bench.device)


def numbers(measured: Sharpness) -> str:
    return json.dumps(measured.numbers())


def test_what_was_broken_off_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    bench, data = small_bench(), Evenly(FixedImages(9, 9), 5)
    options = Options(iterations=6, tolerance=1e-12, trace_samples=4)
    whole = sharpness_of(bench, data, options)
    calls = 2 * (6 + 4)
    for call in range(1, calls, 3):
        workspace = Workspace(tmp_path / str(call), "the same")
        with pytest.raises(Killed):
            sharpness_of(dying_at(call, bench), data, options, workspace)
        left = calls - call + call % 2
        assert numbers(sharpness_of(dying_at(left, bench), data, options, workspace)) == numbers(whole)


def settings(*more: str) -> list[str]:
    few = ("images=20", "batch_size=10", "iterations=2", "trace_samples=0", "data.workers=0", "device=cpu")
    return [part for setting in (*few, *more) for part in ("--set", setting)]


def test_models_that_were_kept_along_a_run(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    result = acdc("analyze", "sharpness", trained, "--out", tmp_path, "--json", *settings("along=true"))
    assert result.exit_code == 0, result.output
    models = json.loads(result.stdout)["results"]["models"]
    assert [(model["epoch"], model["phase"]) for model in models] == list(enumerate(["dense", "sparse"] * 3))
    assert all(len(model["largest"]["history"]) == 2 for model in models)
    assert [model["trace"] for model in models] == [None] * 6
    assert all(sparse["entries"] < dense["entries"] for dense, sparse in pairwise(models[:2]))
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".csv", ".png", ".svg"}


def test_a_trace_that_was_left_out_is_no_number_in_the_table(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    result = acdc("analyze", "sharpness", trained, "--out", tmp_path, *settings())
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout


def test_the_recipe_s_label_smoothing_is_part_of_the_loss(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    def value(smoothing: float) -> float:
        smoothed = settings(f"task.label_smoothing={smoothing}")
        result = acdc("analyze", "sharpness", trained, "--out", tmp_path, "--json", *smoothed)
        (model,) = json.loads(result.stdout)["results"]["models"]
        return float(model["largest"]["value"])

    assert value(0.0) != pytest.approx(value(0.3), rel=1e-3)


def test_a_run_that_kept_no_models_is_told_how_to(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("epoch-*"))
    result = acdc("analyze", "sharpness", bare, "--set", "along=true", "--out", tmp_path)
    assert result.exit_code == 2
    assert "checkpoint.keep_phases=true" in " ".join(result.stderr.split())
