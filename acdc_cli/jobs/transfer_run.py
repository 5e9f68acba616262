"""`acdc transfer`: what the features of runs and checkpoints are worth on other sets (P2 E)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from acdc_cli import __version__, console, files, reading
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet, steps_per_epoch
from acdc_cli.errors import RecipeError, RunError
from acdc_cli.jobs import downstream, setup
from acdc_cli.jobs.subjects import Asked, Checkpoint, open_subjects
from acdc_cli.jobs.training_run import train
from acdc_cli.recipe.bearing import SAME_EXPERIMENT, WEIGHTS_AND_SAMPLES, bearing
from acdc_cli.recipe.load import resolved_yaml
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.schedule.learning_rate import learning_rate
from acdc_cli.transfer import linear
from acdc_cli.transfer.aie import METRICS, Answers
from acdc_cli.transfer.cells import Cell, Cells, Identity, Mode, require_clear
from acdc_cli.transfer.comparison import report
from acdc_cli.transfer.features import Features, extract
from acdc_cli.transfer.target import Target, open_target

_FORMAT = 2
"""Changes when features or results of earlier versions no longer hold."""


@dataclass(frozen=True)
class Options:
    mode: Mode = "linear"
    seeds: int = 3
    """Repetitions, with seeds from 0."""
    check: bool = False
    """Also the best classifier on the same features."""
    baseline: Path | None = None
    """The model against which AIE is taken; None: the first."""
    overrides: tuple[str, ...] = ()
    """Keys of the downstream recipe, as `key=value`."""


@dataclass(frozen=True)
class Transferred:
    document: dict[str, Any]
    findings: Findings
    increases: Table
    """AIE, in words."""
    files: list[Path]


@dataclass(frozen=True)
class _Transfer:
    """One cell that is to be computed."""

    subject: Checkpoint
    target: Target
    options: Options
    seed: int
    out: Path

    @cached_property
    def recipe(self) -> Recipe:
        return downstream.recipe_for(self.subject, self.target, self.options.mode, self.seed, self.options.overrides)

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides over the numbers, apart from the weights, the samples and the seed."""
        return bearing(self.recipe.as_dict(), SAME_EXPERIMENT, WEIGHTS_AND_SAMPLES)

    @property
    def key(self) -> str:
        parts = [self.options.mode, self.seed, self.protocol, _experiment(self.subject)]
        return self._digest([*parts, self.target.preparation(self.recipe.data), self.target.fingerprint])

    @property
    def identity(self) -> Identity:
        subject, target = self.subject, self.target
        names = (_group(subject), _experiment(subject), target.name, target.fingerprint)
        return Identity(*names, self.options.mode, self.protocol)

    @property
    def name(self) -> str:
        """For files, and for people."""
        words = f"{self.subject.name}-{self.target.name}-{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._]+', '-', words)[-80:].strip('-')}-{self.key[:6]}"

    @property
    def data(self) -> DataSet:
        """The set, as the recipe prepares it."""
        return replace(self.target.data, block=self.recipe.data)

    def features(self, split: Literal["train", "val"], ready: setup.ReadyModel) -> Features:
        model = self.recipe.model.starting_from(None).model_dump(mode="json")
        preparation = self.target.preparation(self.recipe.data)
        key = self._digest([split, model, preparation, self.target.fingerprint[split], ready.precision.name])
        labels = np.float32 if self.target.data.labelled.kind == "score" else np.int64
        description = f"features of {self.subject.name} on {self.target.name}, {split}"
        opened = self._loader(ready.device, split)
        return extract(self.out / "features" / f"{key}.npy", ready, opened, description, labels)

    @contextmanager
    def _loader(self, device: torch.device, split: Literal["train", "val"]) -> Iterator[Loader]:
        with closing(self.data.val_loader(device, split)) as loader:
            loader.warm_up()
            yield loader

    def _digest(self, parts: list[Any]) -> str:
        text = json.dumps([_FORMAT, self.subject.digest, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


class _Upstream:
    """The upstream model of the latest transfer by a linear classifier, which all seeds share."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], setup.ReadyModel] = {}

    def of(self, each: _Transfer) -> setup.ReadyModel:
        key = each.subject.name, each.target.name
        if key not in self._latest:
            self._latest.clear()
            self._latest[key] = downstream.with_new_head(each.recipe, each.target.data.classes)
        return self._latest[key]


def transfer(
    sources: Sequence[Path],
    to: Sequence[str],
    options: Options,
    out: Path,
    model: str | None = None,
    overrides: Sequence[str] = (),
) -> Transferred:
    """Transfers every model to every set, and reports all results in `out`, earlier ones among them.

    model, overrides: architecture, and keys of the recipe, of files that acdc did not write. Whatever is in `out`
    already is not computed again.
    Raises DataError, ModelError or RunError for what cannot be transferred, before anything is computed where possible.
    """
    asked = Asked(model=model, foreign_data=to[0], overrides=tuple(overrides))
    subjects = open_subjects(sources, asked)
    targets = _opened(to, subjects)
    baseline = _experiment(_named(options.baseline, sources, subjects))
    transfers = list(_all(subjects, targets, options, out))
    for each in transfers:
        steps_per_epoch(each.recipe.data, each.target.used(each.recipe.data))
    cells, upstream = Cells(out / "results"), _Upstream()
    require_clear([*(cell.identity for cell in cells.all()), *(each.identity for each in transfers)], out)
    try:
        for number, each in enumerate(transfers, 1):
            cell = cells.find(each.key)
            if cell is None or (options.check and cell.logistic is None and options.mode == "linear"):
                cell = _compute(each, cells, upstream)
            console.say(
                f"{number} of {len(transfers)}: {cell.model} to {cell.to}, {cell.mode}, seed {cell.seed}: "
                f"{METRICS[cell.metric].name} {cell.score:.2%}"
            )
    except KeyboardInterrupt:
        console.say("interrupted; what is done is saved, and the same command resumes it")
        raise
    findings, increases = report(cells, baseline)
    about = {"acdc": __version__}
    return Transferred(
        reading.plain({**about, "results": findings.numbers}),
        findings,
        increases,
        findings.write(out, "transfer", about),
    )


def _opened(to: Sequence[str], subjects: Sequence[Checkpoint]) -> list[Target]:
    """The targets, for the inputs that all subjects have. Raises RecipeError if they differ."""
    first = subjects[0]
    for subject in subjects:
        if subject.recipe.data.inputs != first.recipe.data.inputs:
            raise RecipeError(
                f"{first.name} is a model of {first.recipe.data.inputs}, and {subject.name} of "
                f"{subject.recipe.data.inputs}; transfer them with a command each"
            )
    return [open_target(each, first.recipe) for each in to]


def _all(subjects: Sequence[Checkpoint], targets: Sequence[Target], options: Options, out: Path) -> Iterator[_Transfer]:
    for subject in subjects:
        for target in targets:
            for seed in range(options.seeds):
                yield _Transfer(subject, target, options, seed, out)


def _named(baseline: Path | None, sources: Sequence[Path], subjects: Sequence[Checkpoint]) -> Checkpoint:
    if baseline is None:
        return subjects[0]
    matches = [
        subject for source, subject in zip(sources, subjects, strict=True) if source.resolve() == baseline.resolve()
    ]
    if not matches:
        raise RunError(f"the baseline {baseline} is none of the models; name it among them, too")
    return matches[0]


def _compute(each: _Transfer, cells: Cells, upstream: _Upstream) -> Cell:
    if each.options.mode == "linear":
        ready = upstream.of(each)
        truth, answers, check = _linear(each, ready)
        zeros, weights = downstream.zeros_of(ready)
    else:
        truth, answers, (zeros, weights) = _full(each)
        check = None
    target, metric = each.target, each.target.metrics[0]
    cell = Cell(
        key=each.key,
        model=each.subject.name,
        group=_group(each.subject),
        experiment=_experiment(each.subject),
        upstream_seed=each.subject.recipe.seed,
        to=target.name,
        fingerprint=dict(target.fingerprint),
        metric=metric,
        mode=each.options.mode,
        seed=each.seed,
        scores={name: METRICS[name].score(answers, truth) for name in target.metrics},
        logistic=None if check is None else METRICS[metric].score(check, truth),
        sparsity=zeros / weights,
        classes=target.data.classes,
        train_samples=target.data.stored("train"),
        val_samples=len(truth),
        protocol=each.protocol,
        source=str(each.subject.source),
        sha256=each.subject.digest,
        acdc=__version__,
    )
    cells.add(cell, np.stack([truth, answers]))
    return cell


def _linear(each: _Transfer, ready: setup.ReadyModel) -> tuple[Answers, Answers, Answers | None]:
    """The truth, the answers, and those of the best classifier if it was asked for."""
    train, val = each.features("train", ready), each.features("val", ready)
    recipe, classes = each.recipe, each.target.data.classes
    rate = partial(learning_rate, recipe)
    head = linear.train(
        train, classes, recipe.optim, rate, recipe.epochs, recipe.data.batch_size, each.seed, ready.device
    )
    check = None
    if each.options.check:
        best = linear.best(train, classes, recipe.optim.weight_decay, ready.device)
        check = linear.predictions(best, val, ready.device)
    return np.asarray(val.labels), linear.predictions(head, val, ready.device), check


def _full(each: _Transfer) -> tuple[Answers, Answers, tuple[int, int]]:
    """The truth, the answers, and (zeros, weights) after the training of all weights that are not zero."""
    start = downstream.with_new_head(each.recipe, each.target.data.classes)
    recipe = downstream.with_fixed_masks(each.recipe, start).model_copy(update={"name": each.name})
    dead = {layer.name: layer.parameter == 0 for layer in start.layers if layer.kept_dense is None}
    run = RunDir(each.out / "runs" / each.name)
    if not run.finished:
        written = each.out / f"{each.name}.yaml"
        with files.explained(written):
            each.out.mkdir(parents=True, exist_ok=True)
        files.write_text(written, resolved_yaml(recipe))
        train(str(written), out=run.path, resume="auto")
        written.unlink()
    kind = "sparse" if recipe.sparsity.method == "oneshot" else "dense"
    tuned = downstream.trained(recipe, run.model_file(kind), each.target.data.classes)
    for layer in tuned.layers:
        if layer.name in dead:
            assert not layer.parameter[dead[layer.name]].any(), f"{layer.name} has weights where it had zeros"
    with closing(each.data.val_loader(tuned.device)) as loader:
        return *_answers(tuned, loader), downstream.zeros_of(tuned)


def _answers(ready: setup.ReadyModel, loader: Loader) -> tuple[Answers, Answers]:
    ready.model.eval()
    truth, answers = [], []
    with torch.inference_mode(), loader.epoch(0) as batches:
        for batch in batches:
            with ready.precision.autocast():
                logits = ready.forward(batch.inputs)
            answers.append(linear.answers(logits, batch.targets).cpu())
            truth.append(batch.targets.cpu().clone())
    return torch.cat(truth).numpy(), torch.cat(answers).numpy()


def _group(subject: Checkpoint) -> str:
    """The model's name without its seed: `runs/demo-0` and `runs/demo-1` are repetitions of `demo`."""
    seed = subject.recipe.seed
    return re.sub(rf"\bseed={seed}(,|$)|-{seed}$", "", subject.name).strip(",/") or subject.name


def _experiment(subject: Checkpoint) -> str:
    """The same for models of runs that differ in their seed alone; a file is its own, whatever recipe it is given."""
    keys = bearing(subject.recipe.as_dict(), SAME_EXPERIMENT) if subject.run else {}
    model = subject.weights.name if subject.run else subject.digest
    return hashlib.sha256(json.dumps([model, keys], sort_keys=True, default=str).encode()).hexdigest()[:16]
