"""The commands that help most after a run, as its own files and the runs beside it show."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from acdc_cli import console
from acdc_cli.errors import AcdcError
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.load import load
from acdc_cli.runs.collapse import sign_of_collapse
from acdc_cli.runs.overview import find_runs
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import advice, results
from acdc_cli.studies.advice import Advice
from acdc_cli.studies.summary import summarise

STEPS = 3
_MOST_RUNS = 30
"""Runs beside this one up to which they are compared with it."""
_SEARCHED_EPOCHS = 60
_GAP = 0.01
"""By how much the sparse model may be worse than the dense one of the same run: shares in points, else relatively."""


@dataclass(frozen=True)
class Step:
    command: str
    why: str

    def __str__(self) -> str:
        return f"next: {self.command}  ({self.why})"


def say_next_steps(run: RunDir) -> None:
    """Prints them; the processes of a run that are muted find none."""
    # the run is finished, whatever became of its files since
    with suppress(AcdcError):
        for step in next_steps(run) if run.finished and not console.muted() else ():
            console.say(str(step))


def next_steps(run: RunDir) -> list[Step]:
    """The first of those that apply, the most urgent first. Raises an AcdcError for a run that cannot be read."""
    return list(islice(_steps(run), STEPS))


def _steps(run: RunDir) -> Iterator[Step]:
    records, summary, recipe = run.records(), run.final() or {}, run.recipe()
    path, sparsity = shlex.quote(str(run.path)), recipe["sparsity"]
    if sign := sign_of_collapse(records):
        change = "sparsity.revive=clipped" if "revive" in sparsity else "optim.clip_norm=1"
        yield _again(run, recipe, "rescued", [change], f"it collapsed: {sign}")
        yield Step(f"acdc analyze channels {path}", "which channels are empty")
    is_dense = sparsity["method"] == "dense"
    if not is_dense:
        yield from _longer(run, recipe)
    if run.corrupted_labels.exists():
        yield Step(f"acdc analyze memorisation {path}", "some of its labels are wrong on purpose")
    if is_dense:
        pruned = shlex.quote(str(run.path.with_name(f"{run.path.name}_pruned")))
        yield Step(
            f"acdc prune {path} --method obc --target 0.8,0.9,0.95 --out {pruned}", "what it loses if pruned now"
        )
    elif empty := int(records[-1].get("empty_channels", 0) if records else 0):
        yield Step(f"acdc export {path} --format onnx --shrink", f"{empty:,} of its channels are empty: remove them")
    headline = results.headline_of(run)
    if lag := _lag(summary, headline):
        yield Step(f"acdc analyze agreement {path}", lag)
    if not is_dense:
        yield Step(f"acdc bench {path}", "what its zeros gain on each engine")
    yield Step(f"acdc export {path} --format onnx", "for other software, checked against this model")
    yield Step(f"acdc analyze curves {path}", f"sparsity, loss and {headline.common.name} over the epochs")


def _lag(summary: Mapping[str, Any], headline: Quantity) -> str:
    """By how much the run's sparse model is worse than its dense one; empty if it is hardly, or has not both."""
    dense, sparse = ((summary.get(kind) or {}).get(headline.key) for kind in ("dense", "sparse"))
    if dense is None or sparse is None:
        return ""
    gap = headline.gain(dense, sparse)
    if gap <= _GAP * (1 if headline.unit == "%" else abs(dense)):
        return ""
    shown = f"{100 * gap:.1f} points" if headline.unit == "%" else headline.spelt(gap)
    in_what = "" if headline.is_accuracy else f" in {headline.name}"
    return f"sparse is {shown} {headline.words.behind} dense{in_what}"


def _longer(run: RunDir, recipe: Mapping[str, Any]) -> Iterator[Step]:
    """Twice the epochs, or more, if the runs beside it show that it is under-trained; a dense run, if none is there."""
    siblings = [path for path in find_runs([run.path.absolute().parent]) if path != run.path.absolute()]
    if len(siblings) > _MOST_RUNS:
        return
    advised, has_dense = _advice(run, siblings)
    if advised and advised.verdict in ("under-trained", "looks under-trained"):
        epochs = recipe["epochs"]
        for longer in range(2 * epochs, 2 * epochs + _SEARCHED_EPOCHS):
            step = _again(run, recipe, str(longer), [f"epochs={longer}"], f"it {advised.verdict}: {advised.reason}")
            if _loads(run, f"epochs={longer}"):
                yield step
                return
    elif not has_dense:
        what = "a dense run beside it tells acdc advise whether this one is under-trained"
        yield _again(run, recipe, "dense", ["sparsity={method: dense}"], what)


def _advice(run: RunDir, siblings: list[Any]) -> tuple[Advice | None, bool]:
    """The advice about the run's group, and whether a dense run of the same data and model is among the others."""
    try:
        runs = results.of_runs([run.path, *siblings])
        own = runs[0]
        alike = [each for each in runs if each.done and each.images_and_model == own.images_and_model]
        own_group = [each for each in advice.advise(summarise("runs", alike, "epochs")) if own in each.group.runs]
    # of a run beside it, whose damage is no concern of this one
    except AcdcError:
        return None, True
    return (own_group[0] if own_group else None), any(each.dense for each in alike)


def _again(run: RunDir, recipe: Mapping[str, Any], name: str, changes: list[str], why: str) -> Step:
    """The same recipe with changes, as a run of another name."""
    words = [f"name={recipe.get('name', 'run')}_{name}", *changes]
    given = " ".join(f"--set {shlex.quote(word)}" for word in words)
    return Step(f"acdc train {shlex.quote(str(run.resolved))} {given}", why)


def _loads(run: RunDir, change: str) -> bool:
    try:
        load(run.resolved, [change])
    except AcdcError:
        return False
    return True
