"""Is a sparse model under-trained? Its training loss and validation entropy beside those of the best dense model.

P2 (arXiv 2308.02060, C.1 and C.2): a model that has not been trained for long enough has a high training loss and
predictions of high entropy; the most accurate models of all sparsities but the highest have about the same loss and
the same entropy, and those below that level are less accurate again. So a sparse model above the level of the best
dense one may want longer training; whether it does, longer runs tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from acdc_cli.runs.collapse import REMEDY, sign_of_collapse
from acdc_cli.statistics import Spread, distance, rises
from acdc_cli.studies.summary import Group, Series, Summary

Verdict = Literal["collapsed", "under-trained", "looks under-trained", "not under-trained", "past its best length"]

CLEAR = 2.0
"""Pooled standard deviations over seeds by which loss and entropy must both differ, for a verdict."""
LEVEL = 1.0, 0.1
"""Not further above the reference than so many pooled standard deviations, nor than this share of its own mean: the two
are on a level. A spread so wide that it hides a difference is no evidence that there is none."""
RULE = (
    "A model looks under-trained where its training loss and its validation entropy, after the last epoch, both lie "
    f"more than {CLEAR:g} pooled standard deviations over seeds above those of the best dense model (arXiv 2308.02060, "
    "C.1) and of every dense length that is about as accurate. It is called under-trained where longer runs were more "
    "accurate, too. A length is supported where its top-1 is not more than one pooled standard deviation below the "
    "best of its series."
)


@dataclass(frozen=True)
class Advice:
    group: Group
    reference: Group | None
    equals: tuple[Group, ...]
    """Dense groups that are about as accurate as the reference."""
    loss: float | None
    """How far the training loss lies above the reference's, in pooled standard deviations; None: that is not known."""
    entropy: float | None
    """As `loss`, of the validation entropy."""
    verdict: Verdict | None
    reason: str


@dataclass(frozen=True)
class Lengths:
    """What is known of how long the models of a series should be trained."""

    series: str
    supported: tuple[int, ...]
    """In epochs; none where the data do not tell."""
    note: str


def advise(summary: Summary) -> list[Advice]:
    """Of every group of sparse runs that has ended, in the summary's order."""
    ended = [group for group in summary.groups if group.done]
    series = {found.name: found for found in summary.series}
    return [_advice(group, series[group.series], ended) for group in ended if not group.dense]


def lengths(series: Series) -> Lengths:
    known = [(group, accuracy) for group in series.groups if (accuracy := group.last("top1")) and accuracy.n > 1]
    if len(known) < 2:
        return Lengths(series.name, (), "fewer than two lengths have two runs or more")
    best, highest = max(known, key=lambda found: found[1].mean)
    supported = tuple(group.epochs for group, accuracy in known if not rises(accuracy.values, highest.values))
    (before, lower), (longest, last) = known[-2:]
    (shortest, _) = known[0]
    notes = [f"{best.epochs} has the highest mean top-1"]
    if rises(lower.values, last.values):
        notes.append(f"top-1 still rose from {before.epochs} to {longest.epochs}, the longest: more may help")
    elif longest.epochs in supported:
        notes.append(f"no longer than {longest.epochs} was tried")
    if shortest.epochs in supported:
        notes.append(f"no shorter than {shortest.epochs} was tried")
    if waiting := [group for group in series.groups if not group.complete]:
        notes.append(f"some runs of {_listed([group.epochs for group in waiting])} epochs are missing")
    if single := [group.epochs for group in series.groups if group.complete and len(group.done) == 1]:
        notes.append(f"{_listed(single)} is left out for want of a second run")
    return Lengths(series.name, supported, "; ".join(notes))


def _advice(group: Group, series: Series, ended: Sequence[Group]) -> Advice:
    alike = [other for other in ended if other is not group and other.last("top1") and _comparable(other, group)]
    reference = _reference(group, alike)
    equals = tuple(other for other in alike if other.dense and reference and _equal(other, reference))
    loss, entropy = _above(group, reference)
    verdict, reason = _verdict(group, reference, equals, series)
    return Advice(group, reference, equals, loss, entropy, verdict, reason)


def _comparable(group: Group, other: Group) -> bool:
    return group.done[0].images_and_model == other.done[0].images_and_model


def _reference(group: Group, alike: Sequence[Group]) -> Group | None:
    """The most accurate dense group of the same data and model, else the most accurate other one of them."""
    chosen = [other for other in alike if other.dense] or [other for other in alike if _top1(other) > _top1(group)]
    several = [other for other in chosen if len(other.done) > 1]
    return max(several or chosen, key=_top1, default=None)


def _equal(group: Group, reference: Group) -> bool:
    """Is it another, and not less accurate by more than seeds differ?"""
    return group is not reference and len(group.done) > 1 and not _more_accurate(reference, group)


def _top1(group: Group) -> float:
    accuracy = group.last("top1")
    return accuracy.mean if accuracy else -1.0


def _above(group: Group, reference: Group | None) -> tuple[float | None, float | None]:
    """How far training loss and entropy lie above the reference's."""
    if reference is None:
        return None, None
    pairs = _pairs(group, reference)
    loss, entropy = (distance(own, other) if own and other else None for own, other in pairs)
    return loss, entropy


def _side(group: Group, reference: Group) -> Literal["above", "level", "below", "between"] | None:
    """Where both measures lie; None: that is not known."""
    loss, entropy = _above(group, reference)
    if loss is None or entropy is None:
        return None
    if min(loss, entropy) > CLEAR:
        return "above"
    if max(loss, entropy) < -CLEAR:
        return "below"
    deviations, share = LEVEL
    near = max(loss, entropy) <= deviations and all(
        own.mean <= (1 + share) * other.mean for own, other in _pairs(group, reference) if own and other
    )
    return "level" if near else "between"


def _pairs(group: Group, reference: Group) -> list[tuple[Spread | None, Spread | None]]:
    return [(group.last(key), reference.last(key)) for key in ("train_loss", "entropy")]


def _verdict(
    group: Group, reference: Group | None, equals: Sequence[Group], series: Series
) -> tuple[Verdict | None, str]:
    if signs := [sign for run in group.done if (sign := sign_of_collapse(run.records))]:
        return "collapsed", f"{len(signs)} of {len(group.done)} runs: {signs[0]}; {REMEDY}"
    if reference is None:
        return None, "no dense run, and none more accurate, of the same data and model is among these"
    sides = {other: _side(group, other) for other in (reference, *equals)}
    side = sides[reference]
    if side is None:
        return None, _unknown(group, reference)
    if not reference.dense:
        return _of_best_known(reference, side)
    other = next((other for other in equals if (sides[other] == "above") != (side == "above")), None)
    if other is not None:
        return None, f"{named(other)}, is about as accurate as the reference, and against it the verdict is another"
    if side == "above":
        return _of_high(group, series)
    if side == "between":
        return None, "loss and entropy do not both lie clearly above, nor both on a level"
    if better := _better(group, series, longer=True):
        return None, f"loss and entropy do not lie above, but {_listed(better)} epochs were more accurate"
    if side == "below" and (shorter := _better(group, series, longer=False)):
        return "past its best length", f"loss and entropy lie below; {_listed(shorter)} epochs were more accurate"
    return "not under-trained", "neither loss nor entropy lies above by more than seeds differ, or by a tenth"


def _of_high(group: Group, series: Series) -> tuple[Verdict | None, str]:
    """Loss and entropy lie above: is it training that the model lacks, or weights? Other lengths tell."""
    known = [other for other in series.groups if len(other.done) > 1]
    if better := _better(group, series, longer=True):
        return "under-trained", f"loss and entropy lie above; {_listed(better)} epochs were more accurate"
    if longer := [other.epochs for other in known if other.epochs > group.epochs]:
        return None, f"loss and entropy lie above, but {_listed(longer)} epochs were no more accurate"
    in_vain = [other.epochs for other in known if other.epochs < group.epochs and not _more_accurate(group, other)]
    if in_vain:
        return None, f"loss and entropy lie above, but it is no more accurate than after {_listed(in_vain)} epochs"
    return "looks under-trained", "loss and entropy lie above; longer runs would tell whether training is what it lacks"


def _of_best_known(reference: Group, side: str) -> tuple[Verdict | None, str]:
    """Without a dense model the level is no more than a bound: the best known may want longer training itself."""
    if side == "above":
        return "looks under-trained", f"loss and entropy lie above those of the best known, {named(reference)}"
    return None, "no dense run is among these, and the best known may be under-trained itself"


def _better(group: Group, series: Series, longer: bool) -> list[int]:
    """Lengths that are more accurate, of those that are longer, or shorter."""
    others = [
        other for other in series.groups if (other.epochs > group.epochs if longer else other.epochs < group.epochs)
    ]
    return [other.epochs for other in others if _more_accurate(other, group)]


def _unknown(group: Group, reference: Group) -> str:
    for name, found in (("it has", group), (f"{named(reference)} has", reference)):
        if len(found.done) < 2:
            return f"{name} one run: how far runs of other seeds lie apart is not known"
    for found in (group, reference):
        if not (found.last("train_loss") and found.last("entropy")):
            return f"a loss or an entropy of {named(found)} is no number"
    return "the seeds' runs are all the same: how far runs lie apart is not known"


def _more_accurate(group: Group, than: Group) -> bool:
    own, other = group.last("top1"), than.last("top1")
    return bool(own and other and rises(other.values, own.values))


def named(group: Group) -> str:
    return f"{group.series}, {group.epochs} epochs"


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last
