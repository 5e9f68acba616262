"""`acdc eval`: exact numbers of a run's model, or of somebody else's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch

from acdc_cli import console
from acdc_cli.cost.conventions import CONVENTION, forward_flops
from acdc_cli.cost.count import Operation, operations
from acdc_cli.data import loaders
from acdc_cli.errors import CheckpointError, ModelError, RunError
from acdc_cli.jobs import setup
from acdc_cli.models import weights
from acdc_cli.recipe.load import from_dict, load
from acdc_cli.recipe.schema import DataBlock, Recipe
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.sparsity.masks import count_zeros
from acdc_cli.sparsity.prunable import zero_counts
from acdc_cli.training.checkpoint import read_metadata
from acdc_cli.training.evaluate import evaluate
from acdc_cli.training.trainer import sparsities

Which = Literal["sparse", "dense"]
LAYERS = ("layer", "shape", "weights", "nonzero", "density", "MFLOPs")
KEYS = ("top1", "top5", "loss", "entropy", "sparsity", "sparsity_all", "params", "nonzero", "flops", "samples")


@dataclass(frozen=True)
class Options:
    """What the command line may change of a recipe; None keeps the recipe's."""

    which: Which | None = None
    """Which of a run's two models; None is the sparse one where there is one."""
    model: str | None = None
    data: str | None = None
    """A folder, or the name of a data set."""
    split: Literal["train", "val"] = "val"
    batch_size: int | None = None
    loader: Literal["auto", "ffcv", "torch"] | None = None
    overrides: tuple[str, ...] = ()
    """Further keys, as `key=value`."""


def evaluate_checkpoint(source: Path, options: Options) -> dict[str, Any]:
    """`KEYS`: accuracies and sparsities as fractions, loss and entropy in nats (P2 eq. 4, unsmoothed logits).

    A run's `sparsity` is over the layers that its recipe prunes; a foreign checkpoint has no recipe, so that there
    both sparsities are over all conv and linear weights. FLOPs are those of one validation image under `CONVENTION`.
    `layers` has the weights, nonzero weights and FLOPs of each convolution and linear layer.
    """
    recipe, file = _locate(source, options)
    recipe = _changed(recipe, file, options)
    data = loaders.open_set(recipe.data)
    bench = setup.build(recipe, data.classes)
    setup.require_sizes(bench, [recipe.data.val_crop])
    loader = loaders.val_loader(recipe.data, bench.device, options.split)
    try:
        loader.warm_up()
        metrics = evaluate(bench.model, bench.forward, loader, bench.task, bench.precision, options.split)
    finally:
        loader.close()
    found = metrics | sparsities(bench.layers) | _cost(recipe, bench, data.classes)
    return {key: found[key] for key in (*KEYS, "layers")}


def _cost(recipe: Recipe, bench: setup.Bench, classes: int) -> dict[str, Any]:
    """What the model has, and what a validation image takes: None, and said, where the model cannot be counted."""
    parameters = list(bench.model.parameters())
    params = sum(weight.numel() for weight in parameters)
    zeros = zero_counts(bench.layers)
    nonzero = {layer.parameter_name: layer.shape.numel() - zeros[layer.name][0] for layer in bench.layers}
    work = _operations(recipe, classes)

    def flops(layer: str | None = None) -> int | Fraction | None:
        if work is None:
            return None
        uses = [use for use in work if layer in (None, use.parameter_name)]
        return forward_flops(uses, nonzero, CONVENTION)

    return {
        "params": params,
        "nonzero": params - sum(count_zeros(parameters)),
        "flops": flops(),
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "weights": layer.shape.numel(),
                "nonzero": nonzero[layer.parameter_name],
                "flops": flops(layer.parameter_name),
            }
            for layer in bench.layers
        ],
    }


def _operations(recipe: Recipe, classes: int) -> list[Operation] | None:
    try:
        return operations(setup.without_weights(recipe, classes), recipe.data.val_crop)
    except ModelError as e:
        console.warn(f"FLOPs are not counted: {e}")
        return None


def layer_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, shape, weights, nonzero weights, their share, MFLOPs."""
    return [
        (
            layer["name"],
            "x".join(map(str, layer["shape"])),
            str(layer["weights"]),
            str(layer["nonzero"]),
            f"{layer['nonzero'] / layer['weights']:.2%}",
            "?" if layer["flops"] is None else f"{layer['flops'] / 1e6:.3f}",
        )
        for layer in metrics["layers"]
    ]


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The metrics as a person reads them."""
    flops = "unknown" if metrics["flops"] is None else f"{metrics['flops'] / 1e9:.4g} G"
    return [
        ("top-1", f"{metrics['top1']:.2%}"),
        ("top-5", f"{metrics['top5']:.2%}"),
        ("loss", f"{metrics['loss']:.4f} nats"),
        ("entropy", f"{metrics['entropy']:.4f} nats"),
        ("sparsity of the pruned layers", f"{metrics['sparsity']:.2%}"),
        ("sparsity of all conv and linear layers", f"{metrics['sparsity_all']:.2%}"),
        ("nonzero parameters", f"{metrics['nonzero']:,} of {metrics['params']:,}"),
        (f"FLOPs of an image, convention {CONVENTION}", flops),
        ("images", f"{metrics['samples']:.0f}"),
    ]


def _locate(source: Path, options: Options) -> tuple[Recipe, Path]:
    """The recipe that a checkpoint belongs to, and the file with its weights."""
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a run directory or a checkpoint file")
    if source.is_dir():
        run = open_run(source)
        if options.model is not None:
            raise RunError(f"{source} is a run, whose recipe names its model; leave --model out")
        return load(run.resolved, options.overrides), _model_of(run, options.which)
    if options.which is not None:
        raise RunError("--which chooses between the two models of a run directory; a file holds one")
    recipe = _recorded_recipe(source)
    if recipe is not None:
        recorded = from_dict(recipe, str(source), options.overrides)
        if options.model is not None:
            raise RunError(f"{source} says itself that it is a {recorded.model.name}; leave --model out")
        return recorded, source
    if options.model is None or options.data is None:
        raise CheckpointError(f"{source} was not written by acdc: name its architecture and data by --model and --data")
    return _foreign(options.model, options.data, options.overrides), source


def _model_of(run: RunDir, which: Which | None) -> Path:
    wanted: tuple[Which, ...] = ("sparse", "dense") if which is None else (which,)
    for kind in wanted:
        if run.model_file(kind).exists():
            return run.model_file(kind)
    there = [kind for kind in ("sparse", "dense") if run.model_file(kind).exists()]
    raise CheckpointError(
        f"{run.path} has no {' or '.join(wanted)} model"
        + (f"; it has --which {there[0]}" if there else ": no phase of the run has ended yet")
    )


def _recorded_recipe(file: Path) -> dict[str, Any] | None:
    if file.suffix == ".safetensors":
        metadata = read_metadata(file)
    else:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception:
            # torch's old format cannot be mapped; of any other file this says what is wrong with it
            state = weights.read(file)
        metadata = state.get("metadata") if isinstance(state, dict) else None
    recipe = metadata.get("recipe") if isinstance(metadata, dict) else None
    return recipe if isinstance(recipe, dict) else None


def _foreign(model: str, data: str, overrides: Sequence[str]) -> Recipe:
    """The least recipe that a checkpoint of others can be judged by, with torchvision's decoding and resizing."""
    recipe = from_dict(
        {
            "name": "eval",
            "epochs": 1,
            "model": {"name": model},
            "data": {"name": "folder" if Path(data).is_dir() else data, "batch_size": 128, "loader": "torch"},
            "optim": {"name": "sgd", "lr": 1.0, "schedule": {"name": "linear"}},
            "sparsity": {"method": "dense"},
        },
        "acdc eval",
        overrides,
    )
    block = recipe.data
    # nothing in the file says what its model was trained to see
    console.say(
        f"judged at {block.val_crop} of {block.val_resize} pixels, mean {list(block.mean)}, std {list(block.std)}; for "
        "other training: --set data.val_crop=…, data.val_resize, data.mean, data.std"
    )
    return recipe


def _changed(recipe: Recipe, file: Path, options: Options) -> Recipe:
    model = recipe.model.model_copy(update={"weights": str(file)})
    changes = {"model": model, "data": _data(recipe.data, options), "compile": False}
    return setup.without_start(recipe).model_copy(update=changes)


def _data(block: DataBlock, options: Options) -> DataBlock:
    changes: dict[str, Any] = {}
    if options.data is not None:
        is_folder = Path(options.data).is_dir()
        changes |= {"path": options.data} if is_folder else {"name": options.data, "path": None}
    if options.batch_size is not None:
        changes["val_batch_size"] = options.batch_size
    if options.loader is not None:
        changes["loader"] = options.loader
    return block.model_copy(update=changes)
