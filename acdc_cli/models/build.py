"""Every model by its name: the files of this package, torchvision's classifiers, timm's, and transformers' encoders."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from acdc_cli.errors import ModelError
from acdc_cli.models import encoders, foreign, own_code
from acdc_cli.models.blurpool import apply_blurpool
from acdc_cli.models.hub_weights import weight_file
from acdc_cli.models.initialisation import Undrawn
from acdc_cli.models.weights import load_weights, plain_state_dict, read, state_dicts
from acdc_cli.recipe import code, discovery
from acdc_cli.recipe.blocks.model import ModelBlock

Options = Mapping[str, bool | int | float | str]
Constructor = Callable[..., nn.Module]
"""Called with `num_classes` and the recipe's `options`; gives a model that is initialised at random."""

_MOST_MODULES = 20_000
"""The largest models of torchvision and timm have a few thousand."""
_OURS = {
    "num_classes": "it follows from the data; leave it out",
    "pretrained": "`model.weights` takes a file, hf-hub:OWNER/NAME or timm:TAG",
    "weights": "`model.weights` takes a file, hf-hub:OWNER/NAME or timm:TAG",
    "checkpoint_path": "`model.weights` takes a file",
}


class _TooManyError(ModelError):
    """The model never ends."""


def build(block: ModelBlock, classes: int) -> nn.Module:
    """The model of a recipe with its random initialisation, or with the weights of `block.weights`.

    Raises ModelError for an unknown name, options that do not fit, and weights that do not fit: before it takes memory
    for the model, which a recipe from a file may make as large as it likes.
    """
    if block.weights is not None:
        block = block.model_copy(update={"weights": str(weight_file(block.weights))})
    content = None if block.weights is None else read(Path(block.weights))
    head = _head(block, classes) if block.new_head else ()
    if (content is not None or block.options) and torch.get_default_device().type != "meta":
        _check_size(block, classes, content, head)
    model = _assembled(block, classes)
    if block.weights is not None:
        load_weights(model, block.weights, content, block.rename, head)
    return model


def _head(block: ModelBlock, classes: int) -> list[str]:
    """The model's own `head_tensors`, else the tensors whose shape depends on the number of classes.

    Raises ModelError if there are none.
    """
    models = [_shaped(block, number) for number in (classes, classes + 1)]
    if head := getattr(models[0], "head_tensors", None):
        return list(head)
    ours, others = map(plain_state_dict, models)
    if not (names := [name for name, tensor in ours.items() if tensor.shape != others[name].shape]):
        raise ModelError(f"model.new_head: no tensor of {block.name} depends on the number of classes; leave it out")
    return names


def _shaped(block: ModelBlock, classes: int) -> nn.Module:
    """The model without values, as far as it can be built so."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), Undrawn():
                return _assembled(block, classes)
        # some compute their widths with tensors, which have no values there
        except (RuntimeError, ModelError):
            return _assembled(block, classes)


def _check_size(block: ModelBlock, classes: int, content: Any, head: Collection[str]) -> None:
    """Raises ModelError for a model that the weights do not fit, or that does not fit into memory."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), Undrawn():
            model = _assembled(block, classes)
    except (RuntimeError, ModelError) as error:
        if isinstance(error.__cause__ or error, _TooManyError):
            raise
        # some compute their widths with tensors, which have no values there
        return
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ModelError(
            f"the weights of {block.name} with these options take {size >> 30} GiB, and this machine has "
            f"{memory >> 30}; lower model.options"
        )
    if content is not None:
        load_weights(model, str(block.weights), content, block.rename, head)


def _assembled(block: ModelBlock, classes: int) -> nn.Module:
    model = _construct(block, classes)
    if getattr(model, "aux_logits", False):
        raise ModelError(
            f"{block.name} also returns the logits of its auxiliary classifiers, which no task here can use; "
            "set model.options.aux_logits: false"
        )
    if block.blurpool:
        apply_blurpool(model, block.blur)
    return model


def names() -> list[str]:
    """The local models."""
    return sorted(_local())


def names_by_source() -> dict[str, list[str]]:
    """The names that each source offers; those that several have stand with each."""
    return {source: sorted(offers()) for source, offers in _SOURCES.items()}


def find(name: str) -> Constructor:
    """The constructor of a local model, else torchvision's, else timm's; a prefix such as `timm:` picks a library, and
    only with `hf:` is it transformers'.

    torchvision comes before timm because it imports faster, and because P2's recipe, FFCV's, trains its ResNet, which
    is the local one, too; timm's starts with the last BN scale of every residual block at zero. The ResNets of all
    three have the same parameter names.
    Raises ModelError for a name that none of them has.
    """
    if name.startswith(encoders.PREFIX):
        return encoders.constructor(name.removeprefix(encoders.PREFIX))
    return _SOURCES[source(name)]()[name.rpartition(":")[2]]


def source(name: str) -> str:
    """Which of `local`, `torchvision`, `timm` and `hf` the model is taken from; `file` for FILE.py:FUNCTION.

    Raises ModelError as `find` does, and RecipeError for a file that is not there.
    """
    if "code" in code.named(name):
        return "file"
    if name.startswith(encoders.PREFIX):
        return "hf"
    wanted, _, model = name.rpartition(":")
    for each, offers in _SOURCES.items():
        if wanted in ("", each) and model in offers():
            return each
    raise ModelError(_unknown(name, model))


def takes_images_as_they_are(model: str) -> bool:
    """Whether this local model, or this file's, is made for small images, which are neither resized nor cropped."""
    if digest := code.named(model).get("code"):
        module: Any = own_code.module_of(model, code.known(digest))
    else:
        module = _module_of(_local()[model])
    return bool(getattr(module, "SMALL_IMAGES", False))


def options_for(name: str, file: Path, rename: Sequence[str] = ()) -> Options:
    """The options with which this model has the file's names; a model's file lists the candidates in VARIANTS.

    Raises ModelError if the file cannot be read.
    """
    if source(name) != "local":
        return {}
    variants: tuple[Options, ...] = getattr(_module_of(find(name)), "VARIANTS", ())
    if not variants:
        return {}
    content = read(file)

    def differences(options: Options) -> int:
        # any number of classes: names are compared
        with torch.device("meta"), Undrawn():
            tensors = plain_state_dict(_construct(ModelBlock(name=name, options=dict(options)), 10))
        expected = {name: tensor.shape for name, tensor in tensors.items()}
        if not (states := state_dicts(content, expected, file, rename)):
            return 0
        foreign.rename(states[0], expected)
        return len(states[0].tensors.keys() ^ expected.keys())

    return min(({}, *variants), key=differences)


def _module_of(constructor: Constructor) -> Any:
    while isinstance(constructor, partial):
        constructor = constructor.func
    return sys.modules[constructor.__module__]


def _construct(block: ModelBlock, classes: int) -> nn.Module:
    constructor = own_code.constructor(block.name, block.code) if code.is_own(block.name) else find(block.name)
    for option in block.options:
        if option in _OURS:
            raise ModelError(f"model.options.{option} cannot be set: {_OURS[option]}")
    try:
        with _bounded():
            return constructor(num_classes=classes, **block.options)
    # whatever a library's constructor raises over these options; without options, it is not the user's error
    except Exception as error:
        if not block.options or code.is_own(block.name):
            raise
        given = ", ".join(f"{key}: {value!r}" for key, value in block.options.items())
        raise ModelError(f"{block.name} rejects model.options {{{given}}}: {error}; correct or remove them") from error


@contextmanager
def _bounded() -> Iterator[None]:
    """Ends the construction of a model of more modules than any real one, such as one of a billion layers."""
    count = 0

    def count_one(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise _TooManyError(f"it has more than {_MOST_MODULES:,} modules")

    hook = register_module_module_registration_hook(count_one)
    try:
        yield
    finally:
        hook.remove()


def _local() -> Mapping[str, Constructor]:
    """A new model is one new file in this folder that names its constructors in a dictionary `MODELS`."""
    return discovery.MODELS.table("MODELS")


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
        "and timm:NAME or torchvision:NAME to pick a library"
    )
