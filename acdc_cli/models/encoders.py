"""Encoders of sentences by the library transformers: `hf:TYPE`, `hf:FOLDER` or `hf:OWNER/NAME`.

A type such as `bert` has the library's own default configuration, for BERT that of bert-base-uncased; a folder or a
repository of the Hugging Face Hub has a config.json. Options of the recipe change it. Parameters have the library's
names, so that it loads what is trained here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from acdc_cli import hub
from acdc_cli.errors import ModelError
from acdc_cli.models.units import Units, heads, neurons

PREFIX = "hf:"
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Tensor names of checkpoints that were converted from TensorFlow, and today's."""
_SPARE = re.compile(r"\.pooler\.|\.position_ids$")
"""What some models leave out of others' checkpoints: a head's input, and numbers that nobody trains."""
_OURS = ("num_labels", "id2label", "label2id", "problem_type", "torchscript", "return_dict", "attn_implementation")


@dataclass(frozen=True)
class _Names:
    """Names of the linear modules within a layer of an encoder."""

    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    first: str = "intermediate.dense"
    second: str = "output.dense"


_NAMES: Mapping[str, _Names] = {
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _Names()),
    "albert": _Names("attention.value", "attention.dense", "ffn", "ffn_output"),
    "deberta-v2": _Names(value="attention.self.value_proj"),
    "distilbert": _Names("attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    "mpnet": _Names("attention.attn.v", "attention.attn.o"),
}
"""By the type of the configuration. Others are left out: some have further projections, gates or convolutions."""


def constructor(name: str) -> Callable[..., nn.Module]:
    """name: without the prefix. Raises ModelError if there is no such configuration, or the library is missing."""
    return partial(_build, _library(), _configured(name), name)


def _library() -> Any:
    try:
        # here because it is an extra, and takes seconds to import
        import transformers
    except ImportError as error:
        raise ModelError("models hf:… need the library transformers: pip install 'acdc-cli[language]'") from error
    return transformers


def _configured(name: str) -> Callable[[], Any]:
    """A function that makes the configuration."""
    library, folder = _library(), Path(name).expanduser()
    if name in library.CONFIG_MAPPING:
        return partial(library.CONFIG_MAPPING[name])
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise ModelError(
                f"hf:{name}: neither a folder, nor OWNER/NAME of the Hugging Face Hub, nor a type of model that "
                "transformers knows, such as bert; name one of them"
            )
        folder = hub.file_of(name, "config.json", ModelError).parent
    if not (folder / "config.json").is_file():
        raise ModelError(f"hf:{name}: the folder has no config.json; name that of a model of transformers")
    try:
        library.AutoConfig.from_pretrained(folder, local_files_only=True)
    # whatever the library raises over a damaged or unknown configuration
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / 'config.json'} is no configuration that transformers can use ({line})") from error
    return partial(library.AutoConfig.from_pretrained, folder, local_files_only=True)


def _build(library: Any, configured: Callable[[], Any], name: str, num_classes: int, **options: Any) -> nn.Module:
    config = configured()
    for option, value in options.items():
        if option in _OURS or not hasattr(config, option):
            raise ModelError(f"the configuration of {config.model_type} has no {option} that could be set here")
        setattr(config, option, value)
    config.num_labels = num_classes
    config.problem_type = None
    if type(config) not in library.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(f"hf:{name}: transformers has no classifier of sentences of type {config.model_type}")
    architecture = library.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    config._attn_implementation = "sdpa" if architecture._supports_sdpa else "eager"
    model: nn.Module = type(architecture.__name__, (_Encoder, architecture), {})(config)
    return model


class _Encoder:
    """What is laid over a class of the library: arguments and result of the forward pass as acdc has them."""

    config: Any
    base_model_prefix: str
    _supports_sdpa: bool

    @property
    def vocabulary_size(self) -> int:
        """Tokens that have an embedding."""
        return int(self.config.vocab_size)

    @property
    def head_tensors(self) -> tuple[str, ...]:
        """The tensors that a pretrained model need not have."""
        own = f"{self.base_model_prefix}."
        assert isinstance(self, nn.Module)
        return tuple(name for name in self.state_dict() if not name.startswith(own))

    def published_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """A published checkpoint's tensors by this model's names, without the heads of its pretraining.

        A checkpoint of another model stays as it is, and so does a layer that this model lacks, for errors to name.
        """
        assert isinstance(self, nn.Module)
        own, expected = f"{self.base_model_prefix}.", set(self.state_dict())
        # some were saved without any head, and then without the prefix
        prefix = "" if any(name.startswith(own) for name in tensors) else own
        named = {prefix + _of_today(name): tensor for name, tensor in tensors.items()}
        if not expected & named.keys():
            return dict(tensors)
        return {
            name: tensor
            for name, tensor in named.items()
            if name in expected or (name.startswith(own) and not _SPARE.search(name))
        }

    def heads_and_neurons(self) -> Iterator[Units]:
        """Yields nothing for an encoder of a type that is not in `_NAMES`."""
        assert isinstance(self, nn.Module)
        linear = {name: each for name, each in self.named_modules() if isinstance(each, nn.Linear)}
        if (names := _NAMES.get(self.config.model_type)) is None:
            return
        for layer in (name.removesuffix(f".{names.value}") for name in linear if name.endswith(f".{names.value}")):
            inner = linear[f"{layer}.{names.first}"].out_features
            yield heads(layer, self.config.num_attention_heads, f"{names.value}.weight", f"{names.output}.weight")
            yield neurons(layer, inner, f"{names.first}.weight", f"{names.second}.weight")

    def forward(self, tokens: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Each (batch, length), int64, mask 0 where there is no token; gives logits (batch, classes)."""
        if tokens.shape[1] > getattr(self.config, "max_position_embeddings", tokens.shape[1]):
            raise ValueError(f"its longest is {self.config.max_position_embeddings}: max_position_embeddings")
        # of four dimensions, the library uses it as it is; others it reads, for which the host would wait
        attention = mask[:, None, None, :].bool() if self._supports_sdpa else mask
        arguments = {"input_ids": tokens, "attention_mask": attention, "token_type_ids": types}
        known = inspect.signature(super().forward).parameters  # type: ignore[misc]
        result = super().forward(**{key: value for key, value in arguments.items() if key in known})  # type: ignore[misc]
        logits: Tensor = result.logits
        return logits


def _of_today(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name
