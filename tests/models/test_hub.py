from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from acdc_cli.errors import ModelError
from acdc_cli.models import build, hub_weights
from acdc_cli.models.preprocessing import preprocessing
from acdc_cli.recipe.blocks.model import ModelBlock

CONFIG = {
    "architecture": "resnet18",
    "pretrained_cfg": {"input_size": [3, 160, 160], "crop_pct": 0.8, "interpolation": "bicubic", "mean": [0.5] * 3},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the hub has it, with the weights of a small model."""
    model = build.build(ModelBlock(name="resnet8"), 10)
    home = tmp_path / "models--someone--resnet8/snapshots/abc"
    home.mkdir(parents=True)
    save_file(model.state_dict(), home / "model.safetensors")
    (home / "config.json").write_text(json.dumps(CONFIG))
    return home


@pytest.mark.parametrize("above", [False, True])
def test_a_local_folder_of_the_hub_is_a_weight_file(folder: Path, above: bool) -> None:
    named = folder.parents[1] if above else folder
    torch.manual_seed(1)
    model = build.build(ModelBlock(name="resnet8", weights=str(named)), 10)
    file = hub_weights.weight_file(named)
    assert file == folder / "model.safetensors"
    again = build.build(ModelBlock(name="resnet8", weights=str(file)), 10)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert hub_weights.is_hub(named)
    assert not hub_weights.is_hub(file)


def test_the_folders_config_names_the_architecture_and_the_preprocessing(folder: Path) -> None:
    file = folder / "model.safetensors"
    assert hub_weights.architecture_of(file) == "timm:resnet18"
    shown = preprocessing("timm:resnet18", file)
    assert (shown.resize, shown.crop, shown.interpolation, shown.mean) == (200, 160, "bicubic", (0.5, 0.5, 0.5))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        hub_weights.config_of(file)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no weights: expected model\.safetensors"):
        build.build(ModelBlock(name="resnet8", weights=str(tmp_path)), 10)


def test_what_was_downloaded_before_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, revision: str | None, local_files_only: bool) -> str:
        asked.append((repository, file, revision, local_files_only))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub_weights.weight_file("hf-hub:someone/resnet8@v1") == folder / "model.safetensors"
    assert asked == [("someone/resnet8", "model.safetensors", "v1", True)]


def test_without_a_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(ModelError, match=r"cannot be fetched .*\(no route to host\); download it") as refused:
        hub_weights.weight_file("hf-hub:someone/resnet8")
    assert "\n" not in str(refused.value)
    with pytest.raises(ModelError, match="expected hf-hub:OWNER/NAME"):
        hub_weights.weight_file("hf-hub:resnet8")


@pytest.fixture
def online(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has the folder's files under every name; the files that were fetched, in their order."""
    fetched: list[str] = []

    def download(repository: str, file: str, revision: str | None, local_files_only: bool) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        fetched.append(f"{repository}/{file}@{revision}")
        return str(folder / file)

    def listed(self: Any, name: str, revision: str | None) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=each.name) for each in folder.iterdir()])

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", listed)
    return fetched


def test_weights_of_the_hub_are_fetched_with_their_configuration(folder: Path, online: list[str]) -> None:
    (folder / "README.md").touch()
    (folder / "pytorch_model.bin").touch()
    assert hub_weights.weight_file("hf-hub:someone/resnet8@v1") == folder / "model.safetensors"
    assert online == ["someone/resnet8/config.json@v1", "someone/resnet8/model.safetensors@v1"]
    tag = timm.list_pretrained("resnet50.*")[0]
    assert hub_weights.is_hub(Path(f"timm:{tag}"))
    assert hub_weights.weight_file(f"timm:{tag}") == folder / "model.safetensors"
    assert online[-1] == f"timm/{tag}/model.safetensors@None"


def test_a_repository_without_weights_is_refused(folder: Path, online: list[str]) -> None:
    (folder / "model.safetensors").rename(folder / "flax_model.msgpack")
    with pytest.raises(ModelError, match=r"someone/resnet8 has neither model\.safetensors nor pytorch_model\.bin"):
        hub_weights.weight_file("hf-hub:someone/resnet8")
    assert online == []


def test_timms_tags_name_their_repository() -> None:
    tag = timm.list_pretrained("resnet50.*")[0]
    assert hub_weights._repository(tag) == f"timm/{tag}"
    with pytest.raises(ModelError, match=r"timm has no pretrained weights resnet50\.nothing"):
        hub_weights._repository("resnet50.nothing")
