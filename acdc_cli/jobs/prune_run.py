"""`acdc prune`: a trained model, pruned at once to each of several sparsities, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from acdc_cli import __version__, console, files
from acdc_cli.analysis.base.batch_norm import re_estimate, tracking
from acdc_cli.analysis.base.findings import Findings
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet, open_set
from acdc_cli.errors import CheckpointError, RunError
from acdc_cli.jobs import costs, setup
from acdc_cli.jobs.checkpoints import dense_first, weights_of
from acdc_cli.jobs.lint import lint
from acdc_cli.jobs.prune_findings import findings
from acdc_cli.jobs.pruned_recipe import Asked, recipes
from acdc_cli.jobs.training_run import assemble
from acdc_cli.recipe import code
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import resolved_yaml
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.provenance import command_line, provenance
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines
from acdc_cli.schedule.time import Moment
from acdc_cli.training import checkpoint
from acdc_cli.training.device_errors import mendable
from acdc_cli.training.epoch_record import charge_probes, epoch_record, sparsities
from acdc_cli.training.method_services import MethodServices
from acdc_cli.training.parts import Parts
from acdc_cli.training.precision import choose_device
from acdc_cli.training.products import Products
from acdc_cli.training.random_state import random_state
from acdc_cli.training.running import Running
from acdc_cli.training.validation import Validation


@dataclass(frozen=True)
class Pruned:
    findings: Findings
    document: Mapping[str, Any]
    """The content of prune.json."""
    runs: Sequence[RunDir]
    files: Sequence[Path]

    def next_steps(self) -> list[str]:
        """What was written, and the next commands."""
        run = self.runs[-1].path
        figure = [f"drawn: {file}" for file in self.files if file.suffix == ".png"]
        return [*figure, f"next: acdc eval --checkpoint {run} · acdc train --fork {run}@1 --set epochs=10"]


def prune(asked: Asked, out: Path, bn_images: int) -> Pruned:
    """Writes a run directory for each target: `out` itself for a single one, otherwise a folder in it.

    bn_images: training images on which batch norm's statistics are estimated anew, in whole batches; 0: they stay.
    Raises an AcdcError for what the user can fix.
    """
    weights = _weights(asked)
    planned = recipes(asked, weights)
    runs = _free(out, [f"{target:g}" for target in asked.targets])
    data = open_set(planned[0].data)
    about = {"source": str(weights.resolve()), "sha256": files.sha256(weights), "bn_images": bn_images}
    before: dict[str, Any] = {}
    after = []
    with _loaders(planned[0], data) as (train, val):
        for recipe, run in zip(planned, runs, strict=True):
            parts = _parts(recipe, data, train, val)
            bn_batches = _bn_batches(recipe, parts, bn_images)
            if not before:
                _describe(recipe, parts, bn_batches)
                before = _judged(parts)
            running = Running()
            running.start_clock()
            _prune(parts, recipe.data.batch_size, bn_batches)
            running.tick_step()
            metrics = _judged(parts)
            record = epoch_record(parts, 0, running, running.fetch(), metrics, {})
            after.append(metrics)
            _write(run, recipe, parts, running, record, {"data": data.facts(), "pruned": about | {"before": before}})
    done = findings(asked, measures_of(planned[0].task.name), before, after)
    about = {"acdc": __version__, "method": asked.method, **about}
    return Pruned(done, {**about, "results": done.numbers}, runs, done.write(out, "prune", about))


def _weights(asked: Asked) -> Path:
    if not asked.source.exists():
        raise CheckpointError(f"{asked.source} does not exist; give a run directory or a checkpoint file")
    return dense_first(asked.source) if asked.which is None else weights_of(asked.source, asked.which)


def _free(out: Path, targets: Sequence[str]) -> list[RunDir]:
    """The run directories to write. Raises RunError if something is there."""
    if len(targets) > 1 and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is not an empty folder; choose another with --out")
    runs = [RunDir(out / target if len(targets) > 1 else out) for target in targets]
    for run in runs:
        run.refuse_if_taken()
    return runs


@contextmanager
def _loaders(recipe: Recipe, data: DataSet) -> Iterator[tuple[Loader, Loader]]:
    """The training images, shuffled, and the validation images, both prepared as for validation."""
    device = choose_device(recipe.device)
    train = data.calibration_loader(recipe.seed, device)
    with closing(train), closing(data.val_loader(device)) as val:
        yield train, val


def _parts(recipe: Recipe, data: DataSet, train: Loader, val: Loader) -> Parts:
    """The unpruned model with its method attached."""
    ready, side = setup.build(recipe, data.labelled), recipe.data.val_size
    setup.require_sizes(ready, [side])
    cost = costs.measured_cost(recipe, data.classes, [side])
    parts = assemble(_portable(recipe), ready, train, val, cost)
    parts = replace(parts, resolution=lambda epoch: side)
    parts.sparsifier.attach(parts.optimizer, MethodServices(parts))
    return parts


def _portable(recipe: Recipe) -> Recipe:
    """Without the file that the weights came from: provenance.json names it, and a fork has the weights."""
    return setup.without_start(recipe)


def _bn_batches(recipe: Recipe, parts: Parts, bn_images: int) -> int:
    """Whole batches of training images for batch norm, at least one; 0 if the statistics stay."""
    if not bn_images or not tracking(parts.model):
        return 0
    return max(1, min(bn_images // recipe.data.batch_size, parts.train.steps))


def _describe(recipe: Recipe, parts: Parts, bn_batches: int) -> None:
    """Says what is about to be done, and warns of what is odd. Raises RecipeError for what would fail."""
    for warning in lint(recipe, parts.sparsifier, parts.train.steps):
        console.warn(warning)
    if bn_batches:
        console.say(
            f"batch norm's statistics are estimated anew after pruning, on {bn_batches * recipe.data.batch_size:,} "
            "training images; --no-bn-reset leaves them as they are"
        )
    elif tracking(parts.model):
        console.say("batch norm keeps the statistics of the unpruned model")


def _prune(parts: Parts, batch_size: int, bn_batches: int) -> None:
    method = parts.sparsifier.config.method
    charge_probes(parts, 0)
    with mendable(f"pruning with {method}", "lower the sizes in the sparsity block, or use a device with more memory"):
        parts.sparsifier.prune_trained(Moment(0, 0, 1, parts.train.steps), batch_size)
    if bn_batches:
        with parts.train.epoch(0) as batches:
            re_estimate(parts.model, parts.forward, (batch.inputs for batch in islice(batches, bn_batches)))


def _judged(parts: Parts) -> dict[str, Any]:
    """Metrics on the validation images, sparsities and FLOPs."""
    metrics = Validation(parts, lambda: None).of_model()
    zeros = sparsities(parts.layers)
    del zeros["layers"]
    return {**metrics, **zeros, "flops": _flops(parts)}


def _flops(parts: Parts) -> int | None:
    """FLOPs of one validation image; None for a model whose operations cannot be counted."""
    if parts.cost is None:
        return None
    flops: int = costs.cost_after_pruning(parts, parts.cost, parts.resolution(0))["measured"]["inference_flops"]
    return flops


def _write(
    run: RunDir, recipe: Recipe, parts: Parts, running: Running, record: dict[str, Any], origin: Mapping[str, Any]
) -> None:
    """The files of a run that has trained one epoch of no steps, and that kept its state for a fork."""
    device = next(parts.model.parameters()).device
    loaded = {**origin["data"], "loader": parts.train.kind}
    entry = provenance(device, parts.precision.name, loaded, command_line()) | {"pruned": origin["pruned"]}
    entry |= code.facts(recipe.model.code)
    resolved = resolved_yaml(_portable(recipe))
    products = Products(parts, run)
    run.start(resolved, resolved, entry, code.files_of(recipe.model.code))
    with run.locked():
        JsonLines(run.metrics).log(record)
        products.save(record)
        state = {
            "epoch": 1,
            "step": 0,
            "finished": False,
            "processes": [{"running": running.state_dict(), "random": random_state()}],
            "ends": products.phase_ends,
            "seconds": record["seconds"],
            **parts.state_dict(),
        }
        folder = run.kept_state(1)
        products.copy_models(folder)
        checkpoint.save_state(folder, state)
        summary = {"name": recipe.name, "seed": recipe.seed, "status": "finished", "epochs": 1}
        summary |= {"seconds": record["seconds"], **products.phase_ends, "pruned": origin["pruned"]}
        if parts.cost:
            summary["cost"] = costs.cost_after_pruning(parts, parts.cost, parts.resolution(0))
        run.finish(summary)
