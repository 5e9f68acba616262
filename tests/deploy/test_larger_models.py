"""Every kind of model of this package and of timm, through every engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acdc_cli.jobs.export_run import Asked, export
from acdc_cli.models.build import build
from acdc_cli.models.packed_file import pack, unpack
from acdc_cli.recipe.load import load
from acdc_cli.training.checkpoint import save_model

MODELS = {
    "resnet18": ("model.name=resnet18",),
    "resnet50": ("model.name=resnet50",),
    "blurred": ("model.name=resnet18", "model.blurpool=true"),
    "shifted": ("model.name=resnet18", "model.blurpool=true", "model.blur=shifts"),
    "mobilenet": ("model.name=mobilenet_v1",),
    "wideresnet": ("model.name=wideresnet16_4",),
    "vit": ("model.name=timm:vit_tiny_patch16_224", "model.options={img_size: 28, patch_size: 4}"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["mnn", "onnx", "pt2"])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_an_engine_runs_the_model(run: Path, tmp_path: Path, kind: str, changes: tuple[str, ...]) -> None:
    recipe = load(run / "resolved.yaml", changes)
    torch.manual_seed(0)
    save_model(tmp_path / "model.safetensors", build(recipe.model, 10), {"recipe": recipe.as_dict()})
    assert export(tmp_path / "model.safetensors", kind, Asked()).parity.batches == (1, 16)


@pytest.mark.slow
def test_a_resnet50_of_95_percent_packs_into_12_and_a_half_megabytes() -> None:
    """Layer densities fall with the layers' sizes as AC/DC's do: ∝ n^-0.3; stem and classifier stay dense."""
    torch.manual_seed(0)
    from torchvision.models import resnet50

    state = resnet50().state_dict()
    layers = [name for name, weight in state.items() if weight.ndim == 4 and name != "conv1.weight"]
    sizes = {name: state[name].numel() for name in layers}
    factor = 0.05 * sum(sizes.values()) / sum(size**0.7 for size in sizes.values())
    for name, size in sizes.items():
        weight = state[name]
        kept = weight.flatten().abs().topk(round(min(1, factor * size**-0.3) * size)).indices
        sparse = torch.zeros(size)
        sparse[kept] = weight.flatten()[kept]
        state[name] = sparse.view_as(weight)
    zeros = sum(int((state[name] == 0).sum()) for name in layers) / sum(sizes.values())
    assert zeros == pytest.approx(0.95, abs=1e-3)
    content = pack(state, {})
    assert len(content) <= 12.5e6
    assert all(torch.equal(tensor, state[name]) for name, tensor in unpack(content)[0].items())
