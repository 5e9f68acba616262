"""A folder for timm and the Hugging Face Hub: model.safetensors, config.json, and README.md, the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from torch import nn

from acdc_cli.deploy.contract import Logits, ModelDescription
from acdc_cli.deploy.model_card import model_card
from acdc_cli.errors import ModelError, RunError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.training.checkpoint import save_model

SUFFIX = "-timm"


class Options(Block):
    push: str | None = None
    """Repository of the Hugging Face Hub, such as USER/NAME, that the folder is uploaded to; null: none."""


def write(model: nn.Module, facts: ModelDescription, options: Options, out: Path) -> None:
    if options.push is not None and huggingface_hub.get_token() is None:
        raise RunError("--push needs a token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN")
    timm_model = _timm_model(facts)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in timm_model.state_dict().items()} != shapes:
        raise ModelError(
            f"timm's {_name(facts)} has other weights than {facts.recipe.model.name}; export another format"
        )
    out.mkdir()
    save_model(out / "model.safetensors", model, facts.header)
    (out / "config.json").write_text(json.dumps(_config(facts, timm_model), indent=2) + "\n")
    (out / "README.md").write_text(model_card(facts))


def read(path: Path, facts: ModelDescription) -> Logits:
    model: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True)
    return model.eval()


def publish(path: Path, facts: ModelDescription, options: Options) -> None:
    if options.push is not None:
        api = huggingface_hub.HfApi()
        repository = api.create_repo(options.push, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=path, commit_message=f"{facts.name}, exported by acdc")


def _name(facts: ModelDescription) -> str:
    return facts.recipe.model.name.rpartition(":")[2]


def _timm_model(facts: ModelDescription) -> nn.Module:
    """timm's model of the same name. Raises ModelError if there is none, or its architecture differs."""
    block, name = facts.recipe.model, _name(facts)
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name}; export another format, such as packed or onnx")
    if block.blurpool:
        raise ModelError(f"timm's {name} cannot have the blurs of model.blurpool; export another format")
    try:
        model: nn.Module = timm.create_model(name, num_classes=len(facts.classes), **block.options)
    # whatever timm's constructor raises over options of another model
    except Exception as error:
        raise ModelError(f"timm's {name} refuses model.options {block.options}: {error}") from error
    return model


def _config(facts: ModelDescription, timm_model: Any) -> dict[str, object]:
    data = facts.recipe.images
    known = {key: value for key, value in timm_model.pretrained_cfg.items() if key in ("first_conv", "classifier")}
    seen = {
        "input_size": [3, data.val_crop, data.val_crop],
        "crop_pct": data.val_crop / data.val_resize,
        "crop_mode": "center",
        "interpolation": data.val_interpolation,
        "mean": data.mean,
        "std": data.std,
    }
    return {
        "architecture": _name(facts),
        "num_classes": len(facts.classes),
        "num_features": timm_model.num_features,
        "label_names": facts.classes,
        "model_args": facts.recipe.model.options,
        "pretrained_cfg": {**known, **seen},
    }
