"""Accuracy under the 19 corruptions of ImageNet-C, and mean corruption error against the first model (P2 F)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from acdc_cli import console
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.subject import Loaded, Subject
from acdc_cli.analysis.base.workspace import UNSAVED, Batches, Workspace
from acdc_cli.data.batches import Batch, Loader
from acdc_cli.data.image_corruption import COMMON, CORRUPTIONS, GROUPS, SIDE, SMALLEST_SIDE, Corrupter, Corruption
from acdc_cli.data.image_set import images_of
from acdc_cli.data.imagenet_c import Folders, MadeAnew
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.statistics import mean
from acdc_cli.training.precision import choose_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Errors = Mapping[str, Sequence[float]]
"""For each corruption, the error (1 - top-1, a fraction) at each severity."""
Under = Callable[[Loader, Corruption, int], AbstractContextManager[Batches[Batch]]]
"""The images of a loader under a corruption of a given severity."""

_GROUP_OF: dict[str, str] = {corruption: group for group, members in GROUPS.items() for corruption in members}
_ALEXNET_IN_ORDER = (
    *(0.886428, 0.894468, 0.92264),  # noise
    *(0.81988, 0.826268, 0.785948, 0.79836),  # blur
    *(0.866816, 0.826572, 0.819324, 0.564592),  # weather
    *(0.853204, 0.646056, 0.71784, 0.6065),  # digital
)
_ALEXNET: Mapping[str, float] = dict(zip(COMMON, _ALEXNET_IN_ORDER, strict=True))
"""AlexNet's errors, means over all five severities, as published with ImageNet-C."""
_SIDE_BY_SIDE = 6
"""Number of models that fit side by side in 80 columns."""


class Options(Block):
    path: str | None = None
    """Folder of ImageNet-C, with fog/1/n01440764/*.JPEG. Default: corrupt the validation images."""
    corruptions: Annotated[list[Corruption], Field(min_length=1)] | None = None
    """Corruptions to evaluate. Default: all 19."""
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)] = [1]
    """Severities from 1, as in P2, to 5; mean corruption errors are usually over all five."""
    alexnet: bool = False
    """Take corruption errors against AlexNet's published errors, as papers report mCE, instead of the first model's.
    They are means over all five severities of ImageNet-C's own images."""
    noise_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the corruptions applied here."""
    workers: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Processes that corrupt images; the numbers do not depend on it. Default: one per core."""

    @model_validator(mode="after")
    def _each_is_used(self) -> Self:
        if self.path is not None and (idle := {"noise_seed", "workers"} & self.model_fields_set):
            raise ValueError(f"{' and '.join(sorted(idle))}: has no effect when `path` names ImageNet-C's own images")
        if self.alexnet and sorted(self.severities) != [1, 2, 3, 4, 5]:
            raise ValueError("alexnet: its errors are means over all severities; set severities: [1, 2, 3, 4, 5]")
        for key in ("corruptions", "severities"):
            values = getattr(self, key) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: each is measured once, but {values} has a duplicate")
        return self


@dataclass(frozen=True)
class Scores:
    """Top-1 of a model, or the accuracy that its task has, as fractions."""

    clean: float
    under: Mapping[str, Mapping[int, float]]
    """Top-1 by corruption and severity."""

    @property
    def errors(self) -> Errors:
        return {name: [1 - top1 for top1 in by_severity.values()] for name, by_severity in self.under.items()}

    def top1(self, *corruptions: str) -> float:
        """Mean over these corruptions and all severities; NaN if there are none."""
        return mean(mean(self.under[name].values()) for name in corruptions)


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """Corruption errors are relative to the first subject. Raises DataError if images or the library are missing."""
    corruptions = options.corruptions or CORRUPTIONS
    scores: dict[str, Scores] = {}
    with ExitStack() as stack:
        made = None
        if options.path is None:
            made = MadeAnew(stack.enter_context(Corrupter(options.noise_seed, options.workers)))
            _say_what_severities_mean({subject.recipe.images.val_crop for subject in subjects})
        for group in _seeing_the_same(subjects):
            device = choose_device(group[0].recipe.device)
            images = made or Folders(Path(options.path or ""), images_of(group[0].data), device)
            if isinstance(images, Folders):
                images.require(corruptions, options.severities)
            models = {subject.name: subject.load() for subject in group}
            with group[0].images() as loader:
                scores |= scores_of(models, loader, images.under, corruptions, options.severities, workspace)
    accuracy = measures_of(subjects[0].recipe.task.name).right_answers
    return _findings({subject.name: scores[subject.name] for subject in subjects}, options, accuracy)


def scores_of(
    models: Mapping[str, Loaded],
    loader: Loader,
    under: Under,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    severities: Sequence[int] = (1,),
    workspace: Workspace = UNSAVED,
) -> dict[str, Scores]:
    """Evaluates models on one device that share the loader's preparation: each image is corrupted once for all of
    them."""
    add, names = partial(correct, models), ", ".join(models)
    hits = workspace.sums(f"{names}: clean", loader, add, "clean images")
    clean = {name: float(hits[name]) / loader.samples for name in models}
    top1: dict[str, dict[str, dict[int, float]]] = {name: {each: {} for each in corruptions} for name in models}
    for corruption in corruptions:
        for severity in severities:
            what = f"{corruption} {severity}"
            with under(loader, corruption, severity) as batches:
                hits = workspace.sums(f"{names}: {what}", batches, add, what)
            for name in models:
                top1[name][corruption][severity] = float(hits[name]) / loader.samples
    return {name: Scores(clean[name], top1[name]) for name in models}


def correct(models: Mapping[str, Loaded], batch: Batch) -> dict[str, Tensor]:
    """The number of images that each model classifies correctly, on the device; several labels of an image share it."""
    hits = {}
    for name, model in models.items():
        with model.precision.autocast():
            logits = model.forward(batch.inputs)
        right = model.task.answers(logits) == model.task.truth(batch.targets, logits.shape[1])
        hits[name] = right.sum() if right.shape[1] == 1 else right.double().mean(dim=1).sum()
    return hits


def corruption_errors(errors: Errors, baseline: Errors) -> dict[str, float]:
    """Hendrycks and Dietterich's CE of each corruption: the mean error over severities over the baseline's.

    NaN if the baseline makes no error. The mean over the 15 common corruptions is mCE.
    """
    return {name: _ratio(mean(each), mean(baseline[name])) for name, each in errors.items()}


def relative_corruption_errors(
    errors: Errors, clean: float, baseline: Errors, baseline_clean: float
) -> dict[str, float]:
    """The same for the increase of the errors over those on clean images, `clean`; NaN if the baseline's do not
    increase."""
    return {
        name: _ratio(mean(error - clean for error in each), mean(error - baseline_clean for error in baseline[name]))
        for name, each in errors.items()
    }


def _ratio(part: float, whole: float) -> float:
    # anything smaller is rounding: errors are multiples of one image's share
    return part / whole if whole > 1e-12 else math.nan


def _say_what_severities_mean(sides: set[int]) -> None:
    for side in sorted(sides - {SIDE}):
        small = f"; below {SMALLEST_SIDE} they are padded by mirroring, corrupted and cropped back"
        console.say(
            f"severities are meant for images of {SIDE} pixels; these have {side}{small * (side < SMALLEST_SIDE)}"
        )


def _seeing_the_same(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Groups the subjects whose validation images are prepared identically."""

    def view(subject: Subject) -> str:
        block = subject.recipe.data
        shown = block.model_dump(include={"name", "path", "loader", "val_images", "val_resize", "val_crop"})
        return repr((shown, block.val_batch_size or block.batch_size, subject.recipe.device))

    return [list(group) for _, group in groupby(sorted(subjects, key=view), key=view)]


def _findings(scores: Mapping[str, Scores], options: Options, accuracy: Quantity) -> Findings:
    corruptions = options.corruptions or CORRUPTIONS
    over = {"common": [each for each in corruptions if each in COMMON], "all": list(corruptions)}
    baseline, against = _baseline(scores, options.alexnet, corruptions)
    models = {name: _numbers(score, against, over, accuracy.key) for name, score in scores.items()}
    rows = [
        (
            name,
            corruption,
            _GROUP_OF[corruption],
            severity,
            top1,
            models[name].get("corruption_error", {}).get(corruption),
        )
        for name, score in scores.items()
        for corruption, by_severity in score.under.items()
        for severity, top1 in by_severity.items()
    ]
    clean = [(name, "clean", None, 0, score.clean, None) for name, score in scores.items()]
    return Findings(
        numbers={
            "images": options.path or "of the validation set, corrupted anew",
            "severities": options.severities,
            "baseline": baseline,
            "models": models,
        },
        summary=(
            _side_by_side(scores, models, over, accuracy)
            if len(scores) <= _SIDE_BY_SIDE
            else _below(scores, models, accuracy)
        ),
        tables={
            "": Table(("run", "corruption", "group", "severity", accuracy.key, "corruption_error"), [*clean, *rows]),
            "groups": _by_group(scores, models, accuracy.key),
        },
        figures={"": draw(scores, accuracy)},
    )


def _baseline(
    scores: Mapping[str, Scores], alexnet: bool, corruptions: Sequence[str]
) -> tuple[str | None, Scores | None]:
    if alexnet:
        # NaN where nothing is published: clean images, the extra corruptions
        return "AlexNet", Scores(math.nan, {name: {0: 1 - _ALEXNET.get(name, math.nan)} for name in corruptions})
    if len(scores) == 1:
        # there is nothing to compare
        return None, None
    return next(iter(scores.items()))


def _by_group(scores: Mapping[str, Scores], models: Mapping[str, Mapping[str, Any]], key: str) -> Table:
    """key: of the accuracy."""
    rows = []
    for name, score in scores.items():
        ratios = models[name].get("corruption_error", {})
        for group, members in GROUPS.items():
            if there := [each for each in members if each in score.under]:
                error = mean(ratios[each] for each in there if each in ratios)
                rows.append((name, group, len(there), score.top1(*there), error))
    return Table(("run", "group", "corruptions", key, "corruption_error"), rows)


def _numbers(score: Scores, baseline: Scores | None, over: Mapping[str, Sequence[str]], key: str) -> dict[str, Any]:
    """over: corruptions by the name of their mean.  key: of the accuracy."""
    numbers = {
        f"clean_{key}": score.clean,
        key: score.under,
        f"mean_{key}": {name: score.top1(*members) for name, members in over.items()},
    }
    if baseline is None:
        return numbers
    ratios = corruption_errors(score.errors, baseline.errors)
    relative = relative_corruption_errors(score.errors, 1 - score.clean, baseline.errors, 1 - baseline.clean)
    return numbers | {
        "corruption_error": ratios,
        "mce": {name: mean(ratios[each] for each in members) for name, members in over.items()},
        "relative_corruption_error": relative,
        "relative_mce": {name: mean(relative[each] for each in members) for name, members in over.items()},
    }


def _side_by_side(
    scores: Mapping[str, Scores],
    models: Mapping[str, Mapping[str, Any]],
    over: Mapping[str, Sequence[str]],
    accuracy: Quantity,
) -> Table:
    rows = [("clean", *(_percent(score.clean) for score in scores.values()))]
    for each in over["all"]:
        rows.append((each.replace("_", " "), *(_percent(score.top1(each)) for score in scores.values())))
    for group, parts in GROUPS.items():
        if there := [each for each in parts if each in over["all"]]:
            rows.append((f"mean of {group}", *(_percent(score.top1(*there)) for score in scores.values())))
    means = {key: members for key, members in over.items() if members and (key == "all" or members != over["all"])}
    for title, measure in (("mean", f"mean_{accuracy.key}"), ("mCE", "mce"), ("relative mCE", "relative_mce")):
        for key, members in means.items():
            shown = [_percent(numbers[measure][key]) for numbers in models.values() if measure in numbers]
            if shown:
                rows.append((f"{title} of {'the ' if len(members) == len(COMMON) else ''}{len(members)}", *shown))
    return Table((f"{accuracy.head} under", *scores), rows)


def _below(scores: Mapping[str, Scores], models: Mapping[str, Mapping[str, Any]], accuracy: Quantity) -> Table:
    """One row for each model, with means over groups of corruptions."""
    first = next(iter(scores.values()))
    groups = {group: [each for each in members if each in first.under] for group, members in GROUPS.items()}
    groups = {group: members for group, members in groups.items() if members}
    rows = [
        (
            name,
            _percent(score.clean),
            *(_percent(score.top1(*members)) for members in groups.values()),
            _percent(models[name][f"mean_{accuracy.key}"]["all"]),
            _percent(models[name]["mce"]["common"]),
        )
        for name, score in scores.items()
    ]
    return Table((f"{accuracy.head} under", "clean", *groups, "mean", "mCE"), rows)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def draw(scores: Mapping[str, Scores], accuracy: Quantity) -> Figure:
    """Accuracy by corruption, of models by their names; the mean over severities if there are several."""
    corruptions = list(next(iter(scores.values())).under)
    row_height = max(0.22, 0.07 * len(scores))
    figure = plotting.new(7, 1.2 + row_height * (len(corruptions) + 1) + 0.18 * len(scores))
    panel = figure.subplots()
    for number, ((name, score), style) in enumerate(zip(scores.items(), plotting.styles(), strict=False)):
        top1 = [100 * share for share in (score.clean, *(score.top1(each) for each in corruptions))]
        # at different heights, so that equal values are all visible
        rows = [row + 0.6 * ((number + 0.5) / len(scores) - 0.5) for row in range(len(top1))]
        panel.plot(top1, rows, label=name, **style | {"linestyle": "none", "markersize": 5})
    for row, (above, below) in enumerate(pairwise(corruptions), start=1):
        if _GROUP_OF[above] != _GROUP_OF[below]:
            panel.axhline(row + 0.5, color="0.8", linewidth=0.8)
    panel.axhline(0.5, color="0.5", linewidth=0.8)
    panel.set_yticks(range(len(corruptions) + 1), ["clean", *(each.replace("_", " ") for each in corruptions)])
    panel.invert_yaxis()
    severities = [str(each) for each in next(iter(scores.values())).under[corruptions[0]]]
    at = f"mean of severities {', '.join(severities)}" if len(severities) > 1 else f"severity {severities[0]}"
    panel.set(xlabel=f"{accuracy.axis}, {at}")
    panel.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", fontsize=8)
    return figure
