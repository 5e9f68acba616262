"""`acdc train`: from a recipe to a finished run directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from acdc_cli import console, files
from acdc_cli.cost.training_cost import Measured
from acdc_cli.data.batches import Loader
from acdc_cli.data.corrupted_labels import CorruptedLabels
from acdc_cli.data.data_set import DataSet, open_set
from acdc_cli.data.image_loaders import corrupted_loader
from acdc_cli.data.image_set import images_of
from acdc_cli.errors import CheckpointError, RunError, Stopped
from acdc_cli.jobs import costs, requeueing, setup, teaching
from acdc_cli.jobs.data_search import open_found
from acdc_cli.jobs.forking import fork_of
from acdc_cli.jobs.lint import lint
from acdc_cli.jobs.opening import Resume, recipe_and_run, with_own_code
from acdc_cli.quantities import Quantity
from acdc_cli.recipe import code
from acdc_cli.recipe.bearing import MAY_CHANGE_ON_RESUME, bearing, conflicts, differences
from acdc_cli.recipe.blocks.base import epochs_of
from acdc_cli.recipe.blocks.sparsity import PrunedBlock
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.shipped import find
from acdc_cli.runs.provenance import command_line, provenance
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import trackers
from acdc_cli.schedule.learning_rate import learning_rate
from acdc_cli.schedule.sizes import sizes
from acdc_cli.sparsity.prunable import pruned
from acdc_cli.tasks.base.memorised import Memorisation
from acdc_cli.training import checkpoint, distributed, saved_state
from acdc_cli.training.distributed import Ranks
from acdc_cli.training.ema import Average
from acdc_cli.training.evaluate import Probe, further_probes
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.training.parts import Parts
from acdc_cli.training.stopping import StopSignals
from acdc_cli.training.teacher import Teacher
from acdc_cli.training.trainer import Trainer


def train(source: str, overrides: Sequence[str] = (), out: Path | None = None, resume: Resume = False) -> RunDir:
    """Train the recipe `source` into `out`, or resume the run that is there.

    source: a recipe file, a shipped recipe's name, or, to resume, a run directory.
    Several processes started by a launcher train it together.
    Raises an AcdcError for errors that the user can fix, and Stopped after a signal that stops the run.
    """
    with distributed.process_group() as ranks:
        source, recipe, run = recipe_and_run(source, overrides, out)
        requeueing.require_resuming(recipe, resume)
        if resume == "auto":
            if ranks.from_first(run.finished):
                console.say(f"{run.path} is finished: there is nothing to do")
                return run
            resume = ranks.from_first(run.resolved.exists())
        if resume:
            recipe = with_own_code(recipe, run)
        _train(source, recipe, run, bool(resume), ranks)
    return run


def _train(source: str, recipe: Recipe, run: RunDir, resume: bool, ranks: Ranks) -> None:
    launcher = os.getppid()
    ranks.limit_waiting(recipe.distributed.timeout_minutes)
    _check_start(recipe, run, resume, ranks)
    data = open_found(recipe.data, run.path) if resume else open_set(recipe.data)
    ranks.require_same({"recipe": _bearing(recipe), "data set": data.fingerprint})
    # a resumed run takes its weights from its checkpoint: the file it started from may be gone
    begun = recipe.fork is not None or ranks.from_first(resume and any(run.checkpoints.glob("*.pt")))
    ready = setup.build(setup.without_start(recipe) if begun else recipe, data.labelled, ranks)
    sides = {*sizes(recipe), recipe.data.val_size}
    setup.require_sizes(ready, sides)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        train_loader = data.train_loader(recipe.seed, sizes(recipe), ready.device, ranks.shard)
        stack.callback(train_loader.close)
        val_loader = data.val_loader(ready.device, shard=ranks.shard)
        stack.callback(val_loader.close)
        wrong = data.corrupted_labels
        probes = further_probes(data, ready.task, ready.device, ranks.shard)
        for probe in probes:
            stack.callback(probe.loader.close)
        probes += [_memorisation(data, wrong, ready, stack)] if wrong else []
        teacher = teaching.teacher(recipe, ready, data.labelled.names, sizes(recipe))
        cost = costs.measured_cost(recipe, data.classes, sides)
        parts = assemble(recipe, ready, train_loader, val_loader, cost, probes, teacher)
        warnings = lint(recipe, parts.sparsifier, train_loader.steps)
        entry = _provenance_entry(recipe, ready, data, train_loader.kind, teacher)
        state: dict[str, Any] | None = None
        if ranks.first:
            state = _open_run(source, recipe, run, resume, parts, data, entry, stack)
            stack.enter_context(run.recording_end())
        _describe(recipe, run, ready, train_loader.kind, wrong)
        for warning in warnings:
            console.warn(warning)

        def stop_asked() -> bool:
            # otherwise nothing would end a process whose launcher died
            return bool(stop) or (ranks.store is not None and os.getppid() != launcher)

        # only one process reads the state: others might fall back to the previous file, or not see this machine's files
        try:
            _fit(recipe, run, parts, resume or recipe.fork is not None, ranks.from_first(state), stop_asked)
        except Stopped:
            if recipe.checkpoint.requeue and ranks.largest(stop.asked == signal.SIGUSR1) and ranks.first:
                requeueing.requeue()
            raise


def _check_start(recipe: Recipe, run: RunDir, resume: bool, ranks: Ranks) -> None:
    """Raises an AcdcError, before any data is opened, if the run cannot start or resume here with these ranks."""
    if ranks.first:
        if resume:
            _check_resumable(run, recipe)
        else:
            run.refuse_if_taken()
    if ranks.size > 1:
        setup.split(recipe, ranks)


def _provenance_entry(
    recipe: Recipe, ready: setup.ReadyModel, data: DataSet, loader: str, teacher: Teacher | None
) -> dict[str, Any]:
    """What this start records in provenance.json: machine, data, teacher and the recipe's own code."""
    facts = data.facts() | {"loader": loader}
    entry = provenance(ready.device, ready.precision.name, facts, command_line()) | {"processes": ready.ranks.size}
    if teacher:
        entry["teacher"] = {"source": recipe.task.teacher, "sha256": teacher.digest}
    return entry | code.facts(recipe.model.code)


def _open_run(
    source: str,
    recipe: Recipe,
    run: RunDir,
    resume: bool,
    parts: Parts,
    data: DataSet,
    entry: dict[str, Any],
    stack: ExitStack,
) -> dict[str, Any] | None:
    """Locks the run's directory and starts or resumes the run there; returns the state that it continues from.

    entry: of provenance.json; a fork adds its source.
    """
    # later, its own checkpoint is all it needs
    fork = None if any(run.checkpoints.glob("*.pt")) else fork_of(recipe, run)
    if fork:
        fork.require_fit(recipe, parts.sparsifier.phases, data.fingerprint)
        entry["fork"] = fork.provenance(recipe)
    stack.enter_context(run.locked())
    if resume:
        _check_continuity(run, entry)
    else:
        run.start(find(source).read_text(), resolved_yaml(recipe), entry, code.files_of(recipe.model.code))
    if fork:
        fork.prepare(run, parts)
    state = _last_state(run, recipe, parts) if resume or fork else None
    if resume:
        # last, because a refused run stays as it was
        run.record_provenance(entry)
    if wrong := data.corrupted_labels:
        files.write_text(run.corrupted_labels, wrong.csv())
    return state


def assemble(
    recipe: Recipe,
    ready: setup.ReadyModel,
    train_loader: Loader,
    val_loader: Loader,
    cost: Measured | None = None,
    probes: Sequence[Probe] = (),
    teacher: Teacher | None = None,
) -> Parts:
    """The trainer's parts: the model, and the optimiser and method that the recipe names for it."""
    sparsifier = setup.sparsifier(recipe, ready.layers, ready.ranks)
    groups = sparsifier.parameter_groups(recipe.optim.weight_decay)
    average = None
    if ema := recipe.ema:
        average = Average(ready.model, sparsifier.masked, ema.decay, epochs_of(ema.begin, recipe.epochs))
    return Parts(
        model=ready.model,
        forward=ready.forward,
        optimizer=build_optimizer(ready.model, recipe.optim, groups),
        sparsifier=sparsifier,
        layers=ready.layers,
        task=ready.task,
        precision=ready.precision,
        train=train_loader,
        val=val_loader,
        epochs=recipe.epochs,
        learning_rate=partial(learning_rate, recipe),
        resolution=sizes(recipe).__getitem__,
        optim=recipe.optim,
        checkpoint=recipe.checkpoint,
        samples=type(recipe.data),
        log_every=recipe.track.log_every,
        eval_every=recipe.eval_every,
        metadata={"recipe": recipe.as_dict()},
        probes=probes,
        average=average,
        teacher=teacher,
        cost=cost,
        ranks=ready.ranks,
    )


def _memorisation(data: DataSet, wrong: CorruptedLabels, ready: setup.ReadyModel, stack: ExitStack) -> Probe:
    """Measures memorisation of the samples with wrong labels."""
    loader = corrupted_loader(images_of(data), wrong, ready.device, ready.ranks.shard)
    stack.callback(loader.close)
    true, given = (torch.from_numpy(classes).to(ready.device) for classes in (wrong.true, wrong.given))
    return Probe("corrupted samples", loader, Memorisation(true, given))


def _fit(
    recipe: Recipe,
    run: RunDir,
    parts: Parts,
    resume: bool,
    state: dict[str, Any] | None,
    stop_asked: Callable[[], bool],
) -> None:
    first = parts.ranks.first
    if resume:
        epoch, step = (state["epoch"], state["step"]) if state else (0, 0)
        within = f" and {step} of {parts.train.steps} steps" if step else ""
        console.say(f"resuming after {epoch} of {recipe.epochs} epochs{within}")
    tracking = trackers(recipe.track, run, f"{recipe.name}-{recipe.seed}", recipe.as_dict()) if first else []
    try:
        trainer = Trainer(parts, run, tracking, stop_asked)
        if state:
            with saved_state.loading(run.checkpoints, parts.ranks.size):
                trainer.load_state_dict(state)
        if first and resume:
            run.rewind_metrics(state["epoch"] if state else 0)
        summary = {"name": recipe.name, "seed": recipe.seed, **trainer.fit()}
        if parts.cost is not None:
            summary["cost"] = costs.run_cost(parts, parts.cost, recipe.data.batch_size, recipe.data.val_size)
        if first and recipe.fork:
            (fork, *_) = [entry["fork"] for entry in run.provenance() if entry.get("fork")] or [{}]
            summary["fork"] = {key: value for key, value in fork.items() if key != "source"}
        _require_finite(summary)
        for tracker in tracking:
            tracker.finish(summary)
        if first:
            run.finish(summary)
            _conclude(run, summary, parts.task.measures.headline)
    except KeyboardInterrupt:
        console.say(f"interrupted; resume from the last checkpoint with: acdc train {run.path} --resume")
        raise
    finally:
        for tracker in tracking:
            tracker.close(failed=not run.finished)


def _require_finite(summary: Mapping[str, Any]) -> None:
    """Raises RunError for a run that ends with NaN, however few its steps; `optim.nan_patience` ends the others."""
    for end in summary.values():
        if not isinstance(end, Mapping) or end.get("epoch") != summary["epochs"] - 1:
            continue
        if bad := [key for key in ("train_loss", "val_loss") if end.get(key, 0.0) is None]:
            raise RunError(
                f"the last epoch's {bad[0]} is NaN or infinite, so the run has no result; start a new run with a lower "
                "optim.lr, with optim.clip_norm, or with precision bf16 or fp32"
            )


def _last_state(run: RunDir, recipe: Recipe, parts: Parts) -> dict[str, Any] | None:
    """The newest checkpoint; None for a run that ended before its first one.

    Raises RunError if checkpoints are missing, and CheckpointError if none is readable or it belongs to another run.
    """
    state = checkpoint.load_state(run.checkpoints)
    if state is None:
        # an epoch's record is written before its checkpoint, and that is written during the epochs until the next
        if (trained := len(run.records())) > 2 * load(run.resolved).checkpoint.every_epochs:
            raise RunError(
                f"{run.path} has trained {trained} epochs, but its checkpoints are gone, or its loss was NaN and "
                f"none was written; restore {run.checkpoints}, or start a new run with --out"
            )
        return None
    saved_state.require_form(state, run.checkpoints)
    saved = bearing(state["metadata"]["recipe"], MAY_CHANGE_ON_RESUME)
    if differing := conflicts(saved, _bearing(recipe)):
        key, (there, here) = next(iter(differing.items()))
        raise CheckpointError(
            f"the checkpoint in {run.checkpoints} belongs to another run ({key}: {there} there, {here} "
            "here); restore this run's own, or start a new run with --out"
        )
    saved_state.require_fit(state, parts, run.checkpoints)
    return state


def _check_resumable(run: RunDir, recipe: Recipe) -> None:
    """A resumed run must be the same run: every key that affects the numbers must be unchanged."""
    if run.finished:
        raise RunError(f"{run.path} is finished: there is nothing to resume")
    if not run.resolved.exists():
        raise RunError(f"{run.path} holds no run to resume; leave out --resume to start it")
    if changed := changes(run, recipe):
        raise RunError(f"{run.path} was started with another recipe ({'; '.join(changed)}); use --out for a new run")


def changes(run: RunDir, recipe: Recipe) -> list[str]:
    """Where the recipe differs from the run's, in keys that affect its numbers."""
    changed = differences(_bearing(load(run.resolved)), _bearing(recipe))
    return [f"{key}: {before} there, {now} here" for key, (before, now) in changed.items()]


def _check_continuity(run: RunDir, now: dict[str, Any]) -> None:
    """Compares what the machine decides: other images are an error, another device or loader is a warning."""
    before = run.last_start()
    if before["data"]["fingerprint"] != now["data"]["fingerprint"]:
        raise RunError(
            f"the data in {now['data']['path']} are not those that {run.path} was trained on; restore those, at any "
            "data.path, or use --out for a new run"
        )
    machine = ("device", "precision", "threads")
    changed = [(what, before[what], now[what]) for what in machine if before[what] != now[what]]
    if (processes := before.get("processes", 1)) != now["processes"]:
        changed.append(("processes", processes, now["processes"]))
    if before["data"]["loader"] != now["data"]["loader"]:
        changed.append(("loader", before["data"]["loader"], now["data"]["loader"]))
    for what, old, new in changed:
        console.warn(
            f"the run began with {what} {old} and resumes with {new}: its numbers will differ from those of one "
            "uninterrupted run"
        )


def _bearing(recipe: Recipe) -> dict[str, Any]:
    """The keys that a resumed run may not change."""
    return bearing(recipe.as_dict(), MAY_CHANGE_ON_RESUME)


def _conclude(run: RunDir, summary: dict[str, Any], headline: Quantity) -> None:
    """Prints the run's results."""
    for kind in ("sparse", "dense"):
        for key, name in ((headline.key, kind), (f"ema_{headline.key}", f"{kind}-ema")):
            if key in summary.get(kind, {}):
                console.say(f"{name}: {headline.name} {headline.spelt(summary[kind][key])} in {run.model_file(name)}")


def _describe(recipe: Recipe, run: RunDir, ready: setup.ReadyModel, loader: str, wrong: CorruptedLabels | None) -> None:
    """Prints the run's first lines."""
    weights = sum(layer.parameter.numel() for layer in ready.layers)
    prunable = sum(parameter.numel() for parameter in pruned(ready.layers).values())
    fate = f"{prunable:,} can be pruned" if isinstance(recipe.sparsity, PrunedBlock) else "none is pruned"
    console.say(
        f"{recipe.name}: {recipe.model.name} on {recipe.data.name}, {recipe.sparsity.method}, {recipe.epochs} epochs, "
        f"{ready.device.type} {ready.precision.name}, loader {loader}"
    )
    if ready.ranks.size > 1:
        console.say(setup.split(recipe, ready.ranks))
    console.say(f"of {weights:,} conv and linear weights {fate}; results go to {run.path}")
    if name := recipe.task.teacher:
        block = recipe.task.distillation
        console.say(f"taught by {name}, weight {block.weight:g}, temperature {block.temperature:g}")
    if wrong:
        console.say(f"{len(wrong.indices):,} training labels are deliberately wrong: {run.corrupted_labels} lists them")
