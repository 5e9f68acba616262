"""Every model by its name: the files of this package, torchvision's classifiers and timm's."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from acdc_cli import models
from acdc_cli.errors import ModelError
from acdc_cli.models.blurpool import apply_blurpool
from acdc_cli.models.weights import load_weights
from acdc_cli.recipe.schema import ModelBlock

Constructor = Callable[..., nn.Module]
"""Called with `num_classes` and the recipe's `options`; gives a model that is initialised at random."""

_OURS = {
    "num_classes": "it follows from the data",
    "pretrained": "nothing is downloaded; `model.weights` takes a file",
    "weights": "nothing is downloaded; `model.weights` takes a file",
    "checkpoint_path": "`model.weights` takes a file",
}


def build(block: ModelBlock, classes: int) -> nn.Module:
    """The model of a recipe with its random initialisation, or with the weights of `block.weights`.

    Raises ModelError for an unknown name, options that do not fit, and weights that do not fit.
    """
    model = _construct(block, classes)
    if getattr(model, "aux_logits", False):
        raise ModelError(
            f"{block.name} also returns the logits of its auxiliary classifiers, which no task here can use; "
            "set model.options.aux_logits: false"
        )
    if block.blurpool:
        apply_blurpool(model, block.blur)
    if block.weights is not None:
        load_weights(model, block.weights)
    return model


def names() -> list[str]:
    """The local models."""
    return sorted(_local())


def find(name: str) -> Constructor:
    """The constructor of a local model, else torchvision's, else timm's; a prefix such as `timm:` insists.

    torchvision comes before timm because it imports faster, and because P2's recipe, FFCV's, trains its ResNet, which
    is the local one, too; timm's starts with the last BN scale of every residual block at zero. The ResNets of all
    three have the same parameter names.
    Raises ModelError for a name that none of them has.
    """
    source, _, model = name.rpartition(":")
    for each, offers in _SOURCES.items():
        if source in ("", each) and model in (offered := offers()):
            return offered[model]
    raise ModelError(_unknown(name, model))


def _construct(block: ModelBlock, classes: int) -> nn.Module:
    constructor = find(block.name)
    for option in block.options:
        if option in _OURS:
            raise ModelError(f"model.options.{option} cannot be set: {_OURS[option]}")
    try:
        return constructor(num_classes=classes, **block.options)
    # whatever a foreign constructor raises over foreign options; without options it is no error of the user's
    except Exception as error:
        if not block.options:
            raise
        given = ", ".join(f"{key}: {value!r}" for key, value in block.options.items())
        raise ModelError(f"{block.name} rejects model.options {{{given}}}: {error}") from error


def _local() -> Mapping[str, Constructor]:
    """A new model is one new file in this folder that names its constructors in a dictionary `MODELS`."""
    constructors: dict[str, Constructor] = {}
    for file in pkgutil.iter_modules(models.__path__):
        offered = getattr(importlib.import_module(f"{models.__name__}.{file.name}"), "MODELS", {})
        again = constructors.keys() & offered.keys()
        assert not again, f"{file.name} redefines models of another file: {again}"
        constructors |= offered
    return constructors


def _torchvision() -> Mapping[str, Constructor]:
    # here, like timm below, because it takes seconds to import
    from torchvision import models as zoo

    # of this module only: its submodules hold the detection, segmentation, video and quantised models
    return {name: partial(zoo.get_model, name, weights=None) for name in zoo.list_models(module=zoo)}


def _timm() -> Mapping[str, Constructor]:
    import timm

    return {name: partial(timm.create_model, name, pretrained=False) for name in timm.list_models()}


_SOURCES: dict[str, Callable[[], Mapping[str, Constructor]]] = {
    "local": _local,
    "torchvision": _torchvision,
    "timm": _timm,
}


def _unknown(name: str, model: str) -> str:
    sources: dict[str, list[str]] = {}
    for source, offers in _SOURCES.items():
        for each in offers():
            sources.setdefault(each, []).append(source)
    # timm's tags after the dot (resnet50.a1_in1k) name weights, not models
    near = difflib.get_close_matches(model.lower().partition(".")[0], sources, n=3)
    suggested = ", ".join(f"{each} ({', '.join(sources[each])})" for each in near)
    hint = f"did you mean {suggested}? " if near else ""
    return (
        f"there is no model '{name}'; {hint}Local models: {', '.join(names())}. For the others, use "
        "python -c \"import timm; print(*timm.list_models('*resnet*'))\" or "
        'python -c "from torchvision import models; print(*models.list_models(models))", '
        "and timm:NAME or torchvision:NAME to insist on one"
    )
