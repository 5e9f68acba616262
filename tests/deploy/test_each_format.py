"""What each format is for: who else reads its files, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from command import Acdc
from safetensors.torch import load_file

from acdc_cli.deploy.formats import mnn
from acdc_cli.deploy.formats import timm as timm_format
from acdc_cli.errors import ModelError, RunError
from acdc_cli.jobs.export_run import Asked, export
from acdc_cli.models.build import build
from acdc_cli.recipe.load import load
from acdc_cli.training.checkpoint import save_model


def digit(run: Path) -> np.ndarray:
    """A validation image, uint8 (28, 28, 3), as an image library reads it."""
    from PIL import Image

    return np.asarray(Image.open(next(run.parent.glob("images/val/*/*.png"))))


def logits_of(run: Path, image: np.ndarray) -> torch.Tensor:
    """What the run's sparse model says of an image, by timm and this test alone."""
    block = yaml.safe_load((run / "resolved.yaml").read_text())["data"]
    model = timm.create_model("test_resnet", num_classes=10).eval()
    model.load_state_dict(load_file(run / "sparse.safetensors"))
    pixels = (image / 255.0 - block["mean"]) / block["std"]
    with torch.inference_mode():
        return model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])


def test_an_onnx_file_says_what_it_is(exported_as, run: Path) -> None:
    content = onnx.load(exported_as("onnx").path)
    onnx.checker.check_model(content, full_check=True)
    about = {entry.key: entry.value for entry in content.metadata_props}
    assert json.loads(about["class_names"]) == list("0123456789")
    assert json.loads(about["acdc"])["recipe"]["model"]["name"] == "timm:test_resnet"
    assert "sparsity_all" in json.loads(about["acdc"])["metrics"]
    (images,), (logits,) = content.graph.input, content.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [each.dim_param or each.dim_value for each in images.type.tensor_type.shape.dim][1:] == [3, 28, 28]
    assert images.type.tensor_type.shape.dim[0].dim_param


def test_with_preprocessing_an_onnx_file_takes_images_as_they_are_read(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    exported = export(run, "onnx", Asked(out=out), ["with_preprocessing=true", "batch=1", "opset=18"])
    assert exported.parity.batches == (1,)
    assert onnx.load(out).opset_import[0].version == 18
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    image = digit(run)
    assert session.get_inputs()[0].shape == [1, 28, 28, 3]
    (logits,) = session.run(None, {"images": image[None]})
    assert logits == pytest.approx(logits_of(run, image).numpy(), abs=1e-5)


@pytest.mark.slow
def test_a_program_of_another_size_takes_images_of_that_size(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    assert export(run, "pt2", Asked(out=out), ["input_size=32", "batch=40"]).parity.images == 40
    program = torch.export.load(out).module()
    assert program(torch.zeros(40, 3, 32, 32)).shape == (40, 10)
    with pytest.raises(Exception, match="32"):
        program(torch.zeros(40, 3, 28, 28))


def test_an_mnn_file_stores_no_zeros(exported_as) -> None:
    assert exported_as("mnn").bytes < 0.5 * exported_as("onnx").bytes


def test_what_mnn_cannot_convert_is_refused_on_a_clean_stdout(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mnn.onnx, "write", lambda model, facts, options, out: out.write_bytes(b"no ONNX"))
    with pytest.raises(ModelError, match="MNN cannot convert timm:test_resnet"):
        export(run, "mnn", Asked(out=tmp_path / "model.mnn"))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_timm_creates_the_model_from_its_folder(exported_as, run: Path) -> None:
    folder = exported_as("timm").path
    local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 10}
    overlaid = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10).eval()
    config = timm.data.resolve_model_data_config(local)
    from PIL import Image

    image = digit(run)
    seen = timm.data.create_transform(**config)(Image.fromarray(image))[None]
    expected = logits_of(run, image)
    with torch.inference_mode():
        assert torch.allclose(local(seen), expected, atol=1e-5)
        assert torch.allclose(overlaid(seen), expected, atol=1e-5)
    assert local.pretrained_cfg["label_names"] == list("0123456789")


def test_the_model_card_has_metrics_cost_recipe_and_citation(exported_as, run: Path) -> None:
    card = (exported_as("timm").path / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    summary = json.loads((run / "summary.json").read_text())
    assert f"| top-1 | {summary['sparse']['top1']:.2%} |" in body
    assert "| sparsity of the pruned layers | 90.00% |" in body
    assert f"| sparsity of all conv and linear layers | {summary['sparse']['sparsity_all']:.2%} |" in body
    assert "| FLOPs of the training | " in body
    recipe = body.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(recipe)["model"]["name"] == "timm:test_resnet"
    assert "arXiv:2106.12379" in body


def test_the_folder_is_a_checkpoint_of_acdc_too(exported_as, run: Path, acdc: Acdc) -> None:
    file = exported_as("timm").path / "model.safetensors"
    numbers = [acdc("eval", "--checkpoint", source, "--json") for source in (run, file)]
    assert numbers[1].exit_code == 0, numbers[1].output
    assert numbers[0].stdout == numbers[1].stdout


def test_a_folder_is_replaced_as_a_whole_if_it_holds_nothing_else(exported_as, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    shutil.copytree(exported_as("timm").path, out)
    (out / "notes").touch()
    for name in ("timm", "packed"):
        with pytest.raises(RunError, match="not replaced, because it also holds"):
            export(run, name, Asked(out=out, overwrite=True))
    (out / "notes").unlink()
    (out / "README.md").write_text("old")
    export(run, "timm", Asked(out=out, overwrite=True))
    assert (out / "README.md").read_text() != "old"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def save_other_model(run: Path, folder: Path, *changes: str) -> Path:
    """A model of random weights that was made by the run's recipe with other keys."""
    recipe = load(run / "resolved.yaml", changes)
    save_model(folder / "other.safetensors", build(recipe.model, 10), {"recipe": recipe.as_dict()})
    return folder / "other.safetensors"


def test_our_resnets_are_timms(run: Path, tmp_path: Path) -> None:
    source = save_other_model(run, tmp_path, "model.name=resnet18")
    assert export(source, "timm").path == tmp_path / "other-timm"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (("model.name=resnet8", "model.weights=null"), "timm has no model resnet8; export another format"),
        (("model.blurpool=true",), "cannot have the blurs of model.blurpool"),
    ],
)
def test_what_timm_does_not_know_is_refused(
    run: Path, tmp_path: Path, acdc: Acdc, model: tuple[str, ...], said: str
) -> None:

    save_other_model(run, tmp_path, *model)
    done = acdc("export", tmp_path / "other.safetensors", "--format", "timm")
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


class Hub:
    """Stands in for huggingface_hub.HfApi."""

    uploads: list[tuple[str, list[str]]] = []

    def create_repo(self, name: str, exist_ok: bool) -> Hub:
        self.repo_id = f"someone/{name}"
        return self

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.uploads.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_a_folder_is_uploaded_with_a_token_only(
    run: Path, tmp_path: Path, acdc: Acdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_format.huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(timm_format.huggingface_hub, "get_token", lambda: None)
    command = ("export", run, "--format", "timm", "--push", "digits", "--out", tmp_path / "model")
    refused = acdc(*command)
    assert refused.exit_code == 2
    assert "--push needs a token" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(timm_format.huggingface_hub, "get_token", lambda: "hf_x")
    assert acdc(*command).exit_code == 0
    assert Hub.uploads == [("someone/digits", ["README.md", "config.json", "model.safetensors"])]


OWN = """from torch import nn


class test_resnet(nn.Linear):
    def __init__(self, num_classes, width=3):
        super().__init__(width, num_classes)

    def forward(self, images):
        return super().forward(images.mean((2, 3)))


class undecided(test_resnet):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)

"""


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("test_resnet", "timm", "timm's test_resnet has other weights than own.py:test_resnet; export another"),
        ("test_resnet,width: 3", "timm", "timm's test_resnet refuses model.options {'width': 3}: "),
        ("undecided", "pt2", "torch cannot trace own.py:undecided: Could not guard on data-dependent expression"),
    ],
)
def test_ones_own_model_may_not_fit_a_format(
    run: Path, in_tmp: Path, acdc: Acdc, name: str, form: str, said: str
) -> None:
    (in_tmp / "own.py").write_text(OWN)
    name, _, options = name.partition(",")
    changes = (f"model.name=own.py:{name}", f"model.options={{{options}}}", "sparsity.keep_dense=[]")
    source = save_other_model(run, in_tmp, *changes)
    done = acdc("export", source, "--format", form)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert sorted(path.name for path in in_tmp.iterdir()) == ["other.safetensors", "own.py"]


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (LookupError("No ONNX function for aten.special_bessel_j0\nmore"), "special_bessel_j0"),
        (AssertionError(), "This is step 3/3"),
    ],
    ids=["with a text", "without"],
)
def test_what_onnx_cannot_hold_is_named_by_the_first_cause_that_has_words(
    run: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Exception, named: str
) -> None:
    """torch's own last error only says which step of the export failed."""

    def fails(*arguments: object, **options: object) -> None:
        try:
            raise first
        except Exception as cause:
            raise RuntimeError("Failed to convert the program. This is step 3/3") from cause

    monkeypatch.setattr(torch.onnx, "export", fails)
    done = acdc("export", run, "--format", "onnx", "--batch", "1", "--out", tmp_path / "model.onnx")
    assert done.exit_code == 2
    assert "torch cannot write timm:test_resnet as ONNX: " in done.stderr
    assert named in done.stderr
    assert ("step 3/3" in done.stderr) == ("step 3/3" in named)
