"""`acdc eval`: exact metrics of a run's model or of any checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acdc_cli import console
from acdc_cli.cost.conventions import CONVENTION, forward_flops
from acdc_cli.cost.count import Operation, operations
from acdc_cli.data import relatives
from acdc_cli.data.data_set import DataSet
from acdc_cli.deploy import contract
from acdc_cli.deploy.contract import Logits, ModelDescription, Program
from acdc_cli.errors import ModelError, RunError
from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import Which, classes_of, judged, located, recipe_of, weights_of
from acdc_cli.jobs.data_search import open_found
from acdc_cli.recipe.kinds import data_class, measures_of, task_class
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import open_run
from acdc_cli.sparsity.masked import count_zeros
from acdc_cli.sparsity.prunable import zero_counts
from acdc_cli.tasks.base import registry as tasks
from acdc_cli.tasks.base.abstract_task import Task
from acdc_cli.training.epoch_record import sparsities
from acdc_cli.training.evaluate import Forward, Probe, evaluate, further_probes
from acdc_cli.training.precision import Precision

LAYERS = ("layer", "shape", "weights", "nonzero", "density", "MFLOPs")
OF_WEIGHTS = ("sparsity", "sparsity_all", "params", "nonzero", "flops", "samples")


@dataclass(frozen=True)
class Options:
    """What the command line may change in a recipe; None keeps the recipe's value."""

    which: Which | None = None
    """Which of a run's models; None: the sparse one if it exists."""
    model: str | None = None
    data: str | None = None
    """Folder or name of a data set."""
    split: Literal["train", "val", "test"] = "val"
    batch_size: int | None = None
    loader: Literal["auto", "ffcv", "torch"] | None = None
    overrides: tuple[str, ...] = ()
    """Further keys, as `key=value`."""


def evaluate_checkpoint(source: Path, options: Options) -> dict[str, Any]:
    """The task's metrics, then `OF_WEIGHTS` and `task`; shares as fractions, loss and entropy in nats (P2 eq. 4,
    unsmoothed logits).

    A run's `sparsity` is over the layers that its recipe prunes; a foreign checkpoint has no recipe, so both of its
    sparsities are over all conv and linear weights. FLOPs are those of one validation image under `CONVENTION`.
    `layers` has the weights, nonzero weights and FLOPs of each conv and linear layer. An exported program runs on its
    engine on the CPU; values that need its weights by name are None there, and `layers` is empty.
    """
    source = located(source)
    if source.is_file() and (exported := contract.recorded(source)):
        return _evaluate_exported(source, *exported, options)
    recipe = recipe_of(source, options.which, options.model, options.data, options.overrides)
    recipe = _changed(judged(recipe, weights_of(source, options.which), options.data), options)
    data = open_found(recipe.data, source)
    classes = classes_of(recipe) if data.only_tests else data.classes
    ready = setup.build(recipe, classes if data.only_tests else data.labelled)
    setup.require_sizes(ready, [recipe.data.val_size])
    forward = _restricted(ready.forward, source, data, classes) if data.only_tests else ready.forward
    metrics = _judged(data, options, ready.device, ready.model, forward, ready.task, ready.precision)
    metrics |= sparsities(ready.layers) | _cost(recipe, ready, classes)
    return _in_order(metrics, ready.task, recipe)


def _in_order(metrics: Mapping[str, Any], task: Task, recipe: Recipe) -> dict[str, Any]:
    headline, *more, confidence = (each.key for each in task.measures.all)
    of_splits = (key for key in metrics if "/" in key)
    first = dict.fromkeys((headline, *more, "loss", confidence, *task.names, *of_splits, *OF_WEIGHTS))
    return {**{key: metrics.get(key) for key in first}, "task": recipe.task.name, "layers": metrics.get("layers", [])}


def _restricted(forward: Forward, source: Path, data: DataSet, classes: int) -> Forward:
    """The logits of the set's classes alone, in their order. Raises DataError if a class is none of the model's."""
    trained = open_run(source).provenance() if source.is_dir() else []
    names = trained[-1]["data"].get("class_names") if trained else None
    return _of_classes(forward, relatives.indices(data.class_names, names, classes, data.path))


def _of_classes(forward: Forward, chosen: Sequence[int]) -> Forward:
    """The logits of these classes alone, in this order."""

    def restricted(images: Tensor) -> Tensor:
        return forward(images)[:, chosen]

    return restricted


def _evaluate_exported(source: Path, program: Program, facts: ModelDescription, options: Options) -> dict[str, Any]:
    if options.which or options.model:
        raise RunError(f"{source} is an exported program, which holds one model; leave out --which and --model")
    recipe = from_dict(judged(facts.recipe, source, options.data).as_dict(), str(source), options.overrides)
    recipe = _changed(recipe, options)
    if recipe.images.val_crop != facts.recipe.images.val_crop:
        raise RunError(f"{source} takes images of {facts.recipe.images.val_crop} pixels; leave data.val_crop as it is")
    data, cpu = open_found(recipe.data, source), torch.device("cpu")
    if data.classes != len(facts.classes) and not data.only_tests:
        raise RunError(
            f"{source} has {len(facts.classes)} classes, the data set {data.classes}; name its own with --data"
        )
    logits = program.read(source, facts)

    def forward(images: Tensor) -> Tensor:
        images = images.contiguous()
        parts = torch.split(images, facts.batch or len(images))
        return torch.cat([_padded(logits, facts.inputs(part), facts.batch) for part in parts])

    task = tasks.build(recipe.task, data.class_names, data.labelled.kind)
    shown: Forward = forward
    if data.only_tests:
        names = facts.classes
        shown = _of_classes(forward, relatives.indices(data.class_names, names, len(names), data.path))
    return _in_order(_judged(data, options, cpu, nn.Identity(), shown, task, Precision("fp32", cpu)), task, recipe)


def _judged(
    data: DataSet,
    options: Options,
    device: torch.device,
    model: nn.Module,
    forward: Forward,
    task: Task,
    precision: Precision,
) -> dict[str, Any]:
    probes = [Probe(options.split, data.val_loader(device, options.split), task)]
    if options.split == "val":
        probes += further_probes(data, task, device)
    metrics: dict[str, Any] = {}
    for probe in probes:
        try:
            probe.loader.warm_up()
            # the count `samples` stays that of the split
            metrics = evaluate(model, forward, probe.loader, probe.measure, precision, probe.name) | metrics
        finally:
            probe.loader.close()
    return metrics


def _padded(logits: Logits, inputs: Tensor, batch: int | None) -> Tensor:
    """Logits of inputs padded to `batch`, for a program with a fixed batch size."""
    missing = 0 if batch is None else batch - len(inputs)
    return logits(torch.cat([inputs, inputs.new_zeros(missing, *inputs.shape[1:])]))[: len(inputs)]


def _cost(recipe: Recipe, ready: setup.ReadyModel, classes: int) -> dict[str, Any]:
    """Parameter counts, and the FLOPs of a validation image: None, with a warning, if the model cannot be counted."""
    parameters = list(ready.model.parameters())
    params = sum(weight.numel() for weight in parameters)
    zeros = zero_counts(ready.layers)
    nonzero = {layer.parameter_name: layer.shape.numel() - zeros[layer.name][0] for layer in ready.layers}
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
            for layer in ready.layers
        ],
    }


def _operations(recipe: Recipe, classes: int) -> list[Operation] | None:
    try:
        return operations(setup.without_weights(recipe, classes), recipe.data.val_size, recipe.data)
    except ModelError as e:
        console.warn(f"FLOPs are not counted: {e}")
        return None


def layer_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, shape, weights, nonzero weights, their fraction, MFLOPs."""
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
    """The metrics formatted for a person."""
    flops = "unknown" if metrics["flops"] is None else f"{metrics['flops'] / 1e9:.4g} G"
    measures, samples = measures_of(metrics["task"]), data_class(metrics["task"])
    of_logits = [(each.name, each.spelt(metrics[each.key])) for each in (measures.headline, *measures.more)]
    unit = "" if task_class(metrics["task"]).losses == ("squared",) else " nats"
    of_logits.append(("loss", f"{metrics['loss']:.4f}{unit}"))
    of_logits.append((measures.confidence.name, measures.confidence.spelt(metrics[measures.confidence.key])))
    own = [key for key in metrics if key.startswith(f"{measures.headline.key}/")]
    of_logits += [(f"  {key.partition('/')[2]}", measures.headline.spelt(metrics[key])) for key in own]
    of_weights = (
        [
            ("sparsity of the pruned layers", f"{metrics['sparsity']:.2%}"),
            ("sparsity of all conv and linear layers", f"{metrics['sparsity_all']:.2%}"),
            ("nonzero parameters", f"{metrics['nonzero']:,} of {metrics['params']:,}"),
            (f"FLOPs of {samples.one}, convention {CONVENTION}", flops),
        ]
        if metrics["layers"]
        else []
    )
    return [*of_logits, *of_weights, (samples.noun, f"{metrics['samples']:.0f}")]


def _changed(recipe: Recipe, options: Options) -> Recipe:
    changes: dict[str, Any] = {}
    if options.batch_size is not None:
        changes["val_batch_size"] = options.batch_size
    if options.loader is not None:
        changes["loader"] = options.loader
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})
