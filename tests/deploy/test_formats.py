"""What every export format keeps, and what is refused whatever the format."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Acdc
from safetensors.torch import load_file
from torch import Tensor

from acdc_cli.deploy import contract, parity
from acdc_cli.deploy.formats import packed
from acdc_cli.errors import ModelError, RunError
from acdc_cli.jobs.export_run import Exported
from acdc_cli.recipe.discovery import FORMATS

ExportedAs = Callable[[str], Exported]


@pytest.mark.parametrize("name", FORMATS.names())
def test_an_export_agrees_with_its_model_and_leaves_nothing_else(name: str, exported_as: ExportedAs) -> None:
    exported = exported_as(name)
    assert exported.parity.images == 32
    assert exported.parity.batches == (1, 16)
    assert exported.parity.difference <= parity.TOLERANCE
    assert exported.parity.agreement == 1
    assert [path.name for path in exported.path.parent.iterdir()] == ["model"]
    assert exported.bytes > 1000


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_format_has_a_suffix_and_describes_itself_and_its_options(name: str) -> None:
    kind, options = contract.find(name)
    assert kind.SUFFIX
    assert len(FORMATS.described()[name]) > 20
    assert options() == options.model_validate({})
    for key, field in options.model_fields.items():
        assert field.description, key


def test_a_run_is_exported_beside_its_models(run: Path, acdc: Acdc) -> None:
    done = acdc("export", run, "--format", "packed", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["path"] == str(run / "export/sparse.packed")
    assert document["bytes"] == (run / "export/sparse.packed").stat().st_size
    again = acdc("export", run, "--format", "packed")
    assert again.exit_code == 2
    assert "exists; replace it with --overwrite" in again.stderr
    assert acdc("export", run, "--format", "packed", "--overwrite").exit_code == 0


def test_a_packed_file_is_a_checkpoint(run: Path, acdc: Acdc, tmp_path: Path) -> None:
    assert acdc("export", run, "--format", "packed", "--out", tmp_path / "small.packed").exit_code == 0
    numbers = [acdc("eval", "--checkpoint", source, "--json") for source in (run, tmp_path / "small.packed")]
    assert numbers[0].exit_code == 0, numbers[0].output
    assert numbers[0].stdout == numbers[1].stdout


def test_another_model_is_not_kept(run: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(path: Path, facts: contract.ModelDescription) -> contract.Logits:
        model = facts.rebuilt(path)
        return lambda inputs: model(inputs) * 1.01

    monkeypatch.setattr(packed, "read", spoilt)
    done = acdc("export", run, "--format", "packed", "--out", tmp_path / "new/small.packed")
    assert done.exit_code == 2
    assert "is not the same model and is not kept" in done.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_the_formats_are_listed(acdc: Acdc) -> None:
    listed = acdc("export").stdout
    assert all(name in listed for name in FORMATS.names())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "onxx"), "there is no format onxx, only"),
        (("--format", "packed", "--opset", "18"), "format packed takes no --opset"),
        (("--format", "timm", "--with-preprocessing"), "format timm takes no --with-preprocessing"),
        (("--format", "timm", "--shrink"), "format timm takes no --shrink"),
        (("--format", "packed", "--shrink"), "format packed takes no --shrink"),
        (("--format", "packed", "--set", "opset=18"), "opset: unknown key"),
        (("--format", "packed", "--which", "dense-ema"), "has no dense-ema model"),
        (("--format", "onnx", "--batch", "many"), "batch: expected"),
        (("--format", "onnx", "--opset", "7"), "opset: expected"),
        ((), "name what to export and --format: mnn, onnx, packed"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    run: Path, acdc: Acdc, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = acdc("export", run, *options, "--out", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    assert done.exit_code == 2, done.output
    assert said in done.stderr


def test_anybodys_checkpoint_becomes_one_of_ours(run: Path, acdc: Acdc, tmp_path: Path) -> None:
    torch.save(load_file(run / "sparse.safetensors"), tmp_path / "weights.pt")
    said = ("--model", "timm:test_resnet", "--data", run.parent / "images", "--set", "data.val_crop=28")
    done = acdc("export", tmp_path / "weights.pt", "--format", "packed", *said, "--set", "data.val_resize=28")
    assert done.exit_code == 0, done.output
    result = acdc("eval", "--checkpoint", tmp_path / "weights.packed", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 100


def test_a_missing_package_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "acdc_cli.deploy.formats.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RunError, match=r'needs the package onnxruntime.*: pip install "acdc-cli\[deploy\]"'):
        contract.find("onnx")


def test_a_module_of_acdc_that_is_missing_is_no_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "acdc_cli.deploy.formats.pt2", raising=False)
    monkeypatch.setitem(sys.modules, "acdc_cli.deploy.tracing", None)
    with pytest.raises(ModuleNotFoundError, match=r"acdc_cli\.deploy\.tracing"):
        contract.find("pt2")


IMAGES = torch.arange(48.0).reshape(16, 3)


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda x: x * 1.002, r"logits differ by 2.0e-03 of the largest"),
        (lambda x: torch.where(x == 47, torch.nan, x), "differ by nan"),
        (lambda x: x.flip(1), "answers agree on 0.00%"),
        (lambda x: x[:, :2], r"gives \[16, 2\] logits, not \[16, 3\]"),
        (lambda x: x.reshape(5, 5), "cannot be run in batches of 1, and is not kept: shape"),
    ],
)
def test_the_check_finds_every_difference(spoilt: contract.Logits, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        parity.check(lambda x: x, spoilt, IMAGES, (1, 16), "it")


def test_classes_count_even_where_logits_hardly_differ() -> None:
    with pytest.raises(ModelError, match=r"differ by 2.0e-05 of the largest, answers agree on 0.00%"):
        parity.check(lambda x: 1e5 + x % 3, lambda x: 1e5 + (x % 3).flip(1), IMAGES, (4,), "it")


def test_the_check_tries_every_image_in_every_batch_size() -> None:
    seen: list[int] = []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    parities = parity.check(lambda x: x, counted, IMAGES, (1, 7), "it")
    assert seen == [1] * 16 + [7, 7]
    assert (parities.difference, parities.agreement) == (0, 1)
