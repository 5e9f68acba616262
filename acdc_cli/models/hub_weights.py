"""Weights of the Hugging Face Hub and of timm's pretrained tags: fetched where the network allows it, else local."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub

from acdc_cli import hub, reading
from acdc_cli.errors import ModelError

HUB, TIMM = "hf-hub:", "timm:"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CONFIG = "config.json"
_BESIDE = (_CONFIG, "tokenizer.json")


class _Pretrained(reading.Form):
    input_size: list[int] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


class _Config(reading.Form):
    architecture: str | None = None
    """timm's name of the model."""
    model_type: str | None = None
    """The type that the library transformers knows."""
    pretrained_cfg: _Pretrained | None = None


def weight_file(weights: str | Path) -> Path:
    """The file with these weights: `hf-hub:OWNER/NAME`, a pretrained tag such as `timm:resnet50.a1_in1k`, a folder as
    the hub has it or as its client keeps it, or the file itself.

    Raises ModelError for a folder without weights, and for what cannot be fetched.
    """
    text = str(weights)
    if text.startswith(HUB):
        return _fetched(text.removeprefix(HUB))
    if text.startswith(TIMM):
        return _fetched(_repository(text.removeprefix(TIMM)))
    path = Path(weights).expanduser()
    return _in_folder(path) if path.is_dir() else path


def is_hub(source: Path) -> bool:
    """Whether `weight_file` finds weights for this, other than the path itself."""
    if str(source).startswith((HUB, TIMM)):
        return True
    return source.is_dir() and any((folder / name).is_file() for folder in _snapshots(source) for name in _WEIGHTS)


def config_of(file: Path) -> dict[str, Any] | None:
    """The hub's config.json beside a weight file; None if there is none. Raises ModelError if it is damaged."""
    beside = file.parent / _CONFIG
    if not beside.is_file():
        return None
    config: dict[str, Any] = reading.read_json(beside, _Config, ModelError, "fetch it again")
    return config


def architecture_of(file: Path) -> str | None:
    """The model of a weight file, as a recipe names it, by the config.json beside it; None if there is none."""
    config = config_of(file) or {}
    if name := config.get("architecture"):
        return f"timm:{name}"
    return f"hf:{file.parent}" if config.get("model_type") else None


def _in_folder(folder: Path) -> Path:
    files = [folder / name for folder in _snapshots(folder) for name in _WEIGHTS]
    if not (there := [file for file in files if file.is_file()]):
        raise ModelError(f"{folder} holds no weights: expected {' or '.join(_WEIGHTS)} there; name a file")
    return there[0]


def _snapshots(folder: Path) -> list[Path]:
    """The folder, or the revisions in a folder of the hub's cache, that of `main` first."""
    if not (folder / "snapshots").is_dir():
        return [folder]
    main = folder / "refs" / "main"
    first = main.read_text().strip() if main.is_file() else ""
    return sorted((folder / "snapshots").iterdir(), key=lambda each: (each.name != first, each.name))


def _repository(tag: str) -> str:
    # here, because it takes a second to import
    import timm

    model = tag.partition(".")[0]
    tags = timm.list_pretrained(f"{model}.*")
    config = timm.get_pretrained_cfg(tag) if tag in (model, *tags) else None
    if config is None or not config.hf_hub_id:
        known = f"those of {model} are {', '.join(tags)}" if tags else f"see: acdc models {model}"
        raise ModelError(f"timm has no pretrained weights {tag}; {known}")
    hub_id: str = config.hf_hub_id
    # an id that ends in a slash stands for a repository of the tag's name
    return f"{hub_id}{tag}" if hub_id.endswith("/") else hub_id


def _fetched(repository: str) -> Path:
    """The weights of OWNER/NAME or OWNER/NAME@REVISION: those that an earlier download left, else from the network."""
    name, _, revision = repository.partition("@")
    if name.count("/") != 1:
        raise ModelError(f"hf-hub:{repository}: expected hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION")
    if cached := next((file for each in _WEIGHTS if (file := hub.kept(name, each, revision or None))), None):
        return cached
    try:
        hub.require_network()
        there = {
            each.rfilename
            for each in huggingface_hub.HfApi().model_info(name, revision=revision or None).siblings or ()
        }
        if not (files := [file for file in _WEIGHTS if file in there]):
            raise ModelError(f"{name} has neither {' nor '.join(_WEIGHTS)}; download its weights, and name the file")
        for each in there.intersection(_BESIDE):
            hub.download(name, each, revision or None)
        return hub.download(name, files[0], revision or None)
    except hub.FAILURES as error:
        raise ModelError(hub.unreachable(name, error)) from error
