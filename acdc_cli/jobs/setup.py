"""Builds model, device and precision from a recipe, for training and evaluation."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from acdc_cli import console, memory
from acdc_cli.data.data_set import kind_of
from acdc_cli.data.labels import Labels
from acdc_cli.errors import ModelError, RecipeError, RunError
from acdc_cli.models import build as models
from acdc_cli.models import hub_weights
from acdc_cli.models.initialisation import Undrawn
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.sparsity import PrunedBlock, TargetBlock
from acdc_cli.recipe.kinds import method_class
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import open_run
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.prunable import Layer, layers, pruned
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.where import Selector
from acdc_cli.tasks.base import registry as tasks
from acdc_cli.tasks.base.abstract_task import Task
from acdc_cli.training.compiling import Compiled, Mode
from acdc_cli.training.device_errors import mendable
from acdc_cli.training.distributed import ALONE, Ranks, own_device
from acdc_cli.training.evaluate import Forward, forward_of
from acdc_cli.training.precision import Precision, choose_device

_IMAGES = ImagesBlock(name="images", batch_size=1)


@dataclass(frozen=True)
class ReadyModel:
    """A model on its device, ready for training or evaluation."""

    model: nn.Module
    forward: Forward
    layers: list[Layer]
    task: Task
    precision: Precision
    device: torch.device
    ranks: Ranks = ALONE
    classes: int | None = None
    """Logits that the model has to give; None: not checked."""
    block: DataBlock = _IMAGES
    """The data, which says what the inputs are."""


def build(recipe: Recipe, labels: Labels | int, ranks: Ranks = ALONE) -> ReadyModel:
    """labels: those of the data set, or any of the recipe's task, so many.
    ranks: the processes that train together; each builds the same model.

    Raises RecipeError if the recipe's task takes other labels.
    """
    classes = labels if isinstance(labels, int) else len(labels.names)
    task = tasks.build(recipe.task, *(() if isinstance(labels, int) else (labels.names, labels.kind)))
    device = own_device(ranks, choose_device(recipe.device))
    if (mode := _compile_mode(recipe, device)) not in (None, "default"):
        # the graphs of other modes would overwrite what a model remembers
        recipe.require_images(f"compile: {mode}")
    _choose_algorithms(recipe.deterministic, compiled=mode is not None)
    _share_cores(recipe.threads, ranks)
    _seed(recipe.seed)
    model = models.build(_started(recipe), classes)
    if recipe.sync_bn and ranks.store is not None:
        model = _synchronised(model, device)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    with mendable(f"the weights of {recipe.model.name} alone", "take a smaller model, or a device with more memory"):
        model.to(device).to(memory_format=layout)
    forward = forward_of(model, kind_of(recipe.data).preparation(recipe.data, device, layout))
    if not ranks.first:
        # dropout differs between ranks; a plain sum would make rank 1 of seed 0 equal rank 0 of seed 1
        _seed(int(np.random.SeedSequence([recipe.seed, ranks.rank]).generate_state(1)[0]))
    return ReadyModel(
        model=model,
        forward=Compiled(forward, model, mode) if mode else forward,
        layers=layers(model, keep_dense(recipe)),
        task=task,
        precision=Precision(recipe.precision, device),
        device=device,
        ranks=ranks,
        classes=classes,
        block=recipe.data,
    )


def _compile_mode(recipe: Recipe, device: torch.device) -> Mode | None:
    """None: not compiled."""
    match recipe.compile:
        case "auto":
            return "default" if device.type == "cuda" else None
        case True:
            return "default"
        case False | "off":
            return None
        case mode:
            return mode


def split(recipe: Recipe, ranks: Ranks) -> str:
    """The global batch in words: `batch 512 = 4 processes × 2 parts × 64 images`.

    Raises RecipeError if it does not divide.
    """
    batch, parts = recipe.data.batch_size, recipe.optim.accumulate
    divisor = ranks.size * parts
    if batch % divisor:
        nearest = [size for size in (batch // divisor * divisor, -(-batch // divisor) * divisor) if size]
        fitting = [size for size in range(1, batch // parts + 1) if batch % (size * parts) == 0]
        raise RecipeError(
            f"data.batch_size: {batch} images do not divide over {ranks.size} processes × {parts} parts "
            f"(optim.accumulate); use {' or '.join(map(str, nearest))}"
            + (f", or {', '.join(map(str, fitting))} processes" if fitting else "")
        )
    shares = [f"{ranks.size} processes", *([f"{parts} parts"] if parts > 1 else []), f"{batch // divisor} images"]
    return f"batch {batch} = {' × '.join(shares)}"


def _seed(seed: int) -> None:
    """Seeds every global generator; acdc does not use NumPy's and Python's, but other people's models may."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def without_weights(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's model on the meta device: names and shapes, without memory and without reading a file."""
    # cost counts this form of the blur, so that the choice between equivalent forms does not change the cost
    block = recipe.model.starting_from(None).model_copy(update={"blur": "convolution"})
    try:
        return on_meta(block, classes)
    # some compute their widths with tensors, which have no values there; with options that is a ModelError
    except (RuntimeError, ModelError):
        with torch.random.fork_rng(devices=[]):
            return models.build(block, classes).to("meta")


def on_meta(block: ModelBlock, classes: int) -> nn.Module:
    """The model with shapes alone. Raises what its constructor raises if it computes with tensors."""
    with torch.device("meta"), Undrawn():
        return models.build(block, classes)


def require_sizes(ready: ReadyModel, sizes: Iterable[int]) -> None:
    """Runs the model on a blank sample of each size, so that a misfit is reported before a run starts.

    Raises ModelError.
    """
    ready.model.eval()
    block, kind = ready.block, kind_of(ready.block)
    _require_known_tokens(ready.model, kind.vocabulary(block))
    prepared = kind.preparation(block, ready.device, torch.contiguous_format)
    for size in sorted(set(sizes)):
        sample = f"{block.noun} of {size} {block.size_unit}"
        try:
            # not inference_mode: training must be able to use what a model builds and keeps at its first call
            with torch.no_grad(), ready.precision.autocast(), memory.set_aside(ready.model):
                logits = ready.model(*prepared(kind.blank(size, ready.device), False))
        except Exception as e:
            line = code.blame(e)
            # a model of images does not take a text's three arguments
            other = TypeError if not isinstance(block, ImagesBlock) else ValueError
            expected_errors = AssertionError | IndexError | RuntimeError | ValueError | other
            if line is None and not isinstance(e, expected_errors):
                raise
            raise ModelError(f"the model takes no {sample} ({line or e}); {block.size_keys}") from e
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if ready.classes is not None and shape != (expected := list(kind.output_shape(size, ready.classes))):
            raise ModelError(
                f"the model returns {shape} for {block.one} of {size} {block.size_unit}; expected logits of shape "
                f"{expected}, one for each of the {ready.classes} classes"
            )


def _require_known_tokens(model: nn.Module, tokens: int | None) -> None:
    """tokens: of the data's tokenizer. Raises ModelError if the model does not know them all."""
    known = getattr(model, "vocabulary_size", None)
    if tokens is None or known is None or tokens == known:
        return
    text = f"the tokenizer has {tokens:,} tokens, and the model {known:,}"
    if tokens > known:
        raise ModelError(f"{text}; name the tokenizer that the model was trained with: data.tokenizer")
    console.warn(f"{text}: some models have spare ones, but make sure that data.tokenizer is the model's own")


def without_start(recipe: Recipe) -> Recipe:
    """The recipe with a randomly initialised model, for callers that load weights themselves."""
    model = recipe.model.starting_from(None)
    if not isinstance(recipe.sparsity, PrunedBlock):
        return recipe.model_copy(update={"model": model})
    sparsity = recipe.sparsity.model_copy(update={"from_checkpoint": None})
    return recipe.model_copy(update={"model": model, "sparsity": sparsity})


def sparsifier(recipe: Recipe, layers: Sequence[Layer], ranks: Ranks = ALONE) -> Sparsifier[Any]:
    """The recipe's method over the weights of the layers that it may prune."""
    masked = MaskedParameters(pruned(layers), ranks)
    if isinstance(recipe.sparsity, TargetBlock):
        Selector.of(recipe.sparsity).check(masked.shapes)
    built: Sparsifier[Any] = method_class(recipe.sparsity.method)(recipe.sparsity, masked, recipe.epochs, recipe.seed)
    return built


_WORKSPACES = (":4096:8", ":16:8")
"""Settings with which cuBLAS is deterministic."""


def _choose_algorithms(deterministic: bool, compiled: bool = False) -> None:
    """Chooses the fastest algorithms that cuDNN and torch's compiler find by benchmarking, or deterministic ones.

    Raises RunError if the environment rules out deterministic ones.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    # it imports the compiler, which takes two seconds
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        # cuBLAS reads it when the process creates its first handle
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACES[0])
        if workspace not in _WORKSPACES:
            raise RunError(
                f"deterministic: CUBLAS_WORKSPACE_CONFIG is {workspace}, which makes cuBLAS nondeterministic; "
                f"unset it, or set it to {' or '.join(_WORKSPACES)}"
            )
    if compiled:
        # imported here because it imports the compiler
        from torch._inductor import config

        config.deterministic = deterministic


def _share_cores(threads: int | None, ranks: Ranks) -> None:
    """Sets the threads: the recipe's number, else OMP_NUM_THREADS, else an equal share for each process of the
    machine."""
    if threads is None and ranks.local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // ranks.local_size)
    if threads is not None:
        torch.set_num_threads(threads)


def _synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise RunError("sync_bn: torch synchronises batch norm only on GPUs; use --set sync_bn=false on CPUs")
    # imported here because it takes a second; timm's, because some of its batch norms include their activation, which
    # torch's own would drop
    from timm.layers import convert_sync_batchnorm

    synchronised: nn.Module = convert_sync_batchnorm(model)
    return synchronised


def _started(recipe: Recipe) -> ModelBlock:
    """The recipe's model with the weights from which its run starts."""
    source = recipe.sparsity.from_checkpoint if isinstance(recipe.sparsity, PrunedBlock) else None
    if source is None:
        return recipe.model
    return recipe.model.model_copy(update={"weights": str(_dense_model(Path(source).expanduser()))})


def _dense_model(source: Path) -> Path:
    """The file itself, or the dense model of a run directory. Raises RunError if the run has none."""
    if not source.is_dir() or hub_weights.is_hub(source):
        return source
    file = open_run(source).model_file("dense")
    if not file.exists():
        raise RunError(
            f"sparsity.from_checkpoint: {source} has no dense model: no dense phase has ended, or its method "
            "has none; name another run or a file"
        )
    return file


def keep_dense(recipe: Recipe) -> Sequence[str]:
    return recipe.sparsity.keep_dense if isinstance(recipe.sparsity, PrunedBlock) else ()
