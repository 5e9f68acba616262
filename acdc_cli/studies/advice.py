"""Is a sparse model under-trained? Its training cross entropy and validation entropy beside the best dense model's.

P2 (arXiv 2308.02060, C.1 and C.2): a model trained for too short a time has a high training loss and predictions of
high entropy. The most accurate models of all but the highest sparsities have about the same loss and the same entropy;
models below that level are less accurate again. A sparse model above the level of the best dense one may therefore need
longer training; longer runs show whether it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from acdc_cli.quantities import Measures, Quantity
from acdc_cli.runs.collapse import REMEDY, sign_of_collapse
from acdc_cli.statistics import Spread, distance, rises
from acdc_cli.studies.summary import Group, Series, Summary

Verdict = Literal["collapsed", "under-trained", "looks under-trained", "not under-trained", "past its best length"]

CLEAR = 2.0
"""A verdict requires loss and entropy both to differ by more than this many pooled standard deviations over seeds."""
LEVEL = 1.0, 0.1
"""A level: at most this many pooled standard deviations, and at most this fraction of its mean, above the reference. A
spread so wide that it hides a difference is no evidence that there is none."""


def rule(measures: Measures) -> str:
    """What the verdicts mean, in the words of the runs' task."""
    headline = measures.headline
    return (
        f"A model looks under-trained if its training cross entropy and validation {measures.confidence.name} after "
        f"the last epoch are both more than {CLEAR:g} pooled standard deviations over seeds above those of the best "
        f"dense model (arXiv 2308.02060, C.1) and of every dense length that is about as {headline.adjective}. It is "
        f"called under-trained if longer runs were also {headline.comparative}. A length is supported if its "
        f"{headline.name} is at most one pooled standard deviation {headline.words.behind} the best of its series."
    )


@dataclass(frozen=True)
class Advice:
    group: Group
    reference: Group | None
    equals: tuple[Group, ...]
    """Dense groups about as accurate as the reference."""
    loss: float | None
    """Training loss minus the reference's, in pooled standard deviations; None if unknown."""
    confidence: float | None
    """Validation entropy, or what the task has in its place, minus the reference's, likewise."""
    verdict: Verdict | None
    reason: str


@dataclass(frozen=True)
class Lengths:
    """How long the models of a series should be trained, as far as its runs show."""

    series: str
    supported: tuple[int, ...]
    """In epochs; empty if the runs do not show it."""
    note: str


def advise(summary: Summary) -> list[Advice]:
    """Advice for every group of finished sparse runs, in the summary's order."""
    ended = [group for group in summary.groups if group.done]
    series = {each.name: each for each in summary.series}
    return [_advice(group, series[group.series], ended) for group in ended if not group.dense]


def lengths(series: Series) -> Lengths:
    known = [(group, spread) for group in series.groups if (spread := group.accuracy) and spread.n > 1]
    if len(known) < 2:
        return Lengths(series.name, (), "fewer than two lengths have at least two runs")
    headline = known[0][0].measures.headline
    best, highest = max(known, key=lambda pair: headline.rank(pair[1].mean))
    supported = tuple(group.epochs for group, spread in known if not _improves(headline, spread, highest))
    (before, lower), (longest, last) = known[-2:]
    (shortest, _) = known[0]
    notes = [f"{best.epochs} has the {headline.words.best} mean {headline.name}"]
    if _improves(headline, lower, last):
        still = f"{headline.name} still {headline.words.improved} from {before.epochs} to {longest.epochs}"
        notes.append(f"{still}, the longest; longer runs may help")
    elif longest.epochs in supported:
        notes.append(f"{longest.epochs} is the longest tried")
    if shortest.epochs in supported:
        notes.append(f"{shortest.epochs} is the shortest tried")
    if waiting := [group for group in series.groups if not group.complete]:
        notes.append(f"some runs of {_listed([group.epochs for group in waiting])} epochs are missing")
    if single := [group.epochs for group in series.groups if group.complete and len(group.done) == 1]:
        notes.append(f"{_listed(single)} is left out because it has only one run")
    return Lengths(series.name, supported, "; ".join(notes))


def _advice(group: Group, series: Series, ended: Sequence[Group]) -> Advice:
    alike = [other for other in ended if other is not group and other.accuracy and _comparable(other, group)]
    reference = _reference(group, alike)
    equals = tuple(other for other in alike if other.dense and reference and _equal(other, reference))
    loss, confidence = _above(group, reference)
    verdict, reason = _verdict(group, reference, equals, series)
    return Advice(group, reference, equals, loss, confidence, verdict, reason)


def _comparable(group: Group, other: Group) -> bool:
    return group.done[0].images_and_model == other.done[0].images_and_model


def _reference(group: Group, alike: Sequence[Group]) -> Group | None:
    """The best dense group with the same data and model; if there is none, the best other group."""
    chosen = [other for other in alike if other.dense] or [
        other for other in alike if _accuracy(other) > _accuracy(group)
    ]
    several = [other for other in chosen if len(other.done) > 1]
    return max(several or chosen, key=_accuracy, default=None)


def _equal(group: Group, reference: Group) -> bool:
    """Whether a different group is as accurate as the reference, within the spread over seeds."""
    return group is not reference and len(group.done) > 1 and not _more_accurate(reference, group)


def _accuracy(group: Group) -> float:
    """The larger, the better."""
    return group.measures.headline.rank(group.accuracy.mean if group.accuracy else None)


def _above(group: Group, reference: Group | None) -> tuple[float | None, float | None]:
    """Distance of training cross entropy and entropy above the reference's."""
    if reference is None:
        return None, None
    pairs = _pairs(group, reference)
    loss, confidence = (distance(own, other) if own and other else None for own, other in pairs)
    return loss, confidence


def _side(group: Group, reference: Group) -> Literal["above", "level", "below", "between"] | None:
    """The position of both measures relative to the reference; None if unknown."""
    loss, confidence = _above(group, reference)
    if loss is None or confidence is None:
        return None
    if min(loss, confidence) > CLEAR:
        return "above"
    if max(loss, confidence) < -CLEAR:
        return "below"
    deviations, share = LEVEL
    near = max(loss, confidence) <= deviations and all(
        own.mean <= (1 + share) * other.mean for own, other in _pairs(group, reference) if own and other
    )
    return "level" if near else "between"


def _pairs(group: Group, reference: Group) -> list[tuple[Spread | None, Spread | None]]:
    losses = group.last("train_cross_entropy"), reference.last("train_cross_entropy")
    return [losses, (group.confidence, reference.confidence)]


def _verdict(
    group: Group, reference: Group | None, equals: Sequence[Group], series: Series
) -> tuple[Verdict | None, str]:
    if signs := [sign for run in group.done if (sign := sign_of_collapse(run.records))]:
        return "collapsed", f"{len(signs)} of {len(group.done)} runs: {signs[0]}; {REMEDY}"
    if reference is None:
        return None, f"no other run of the same data and model is dense or {group.measures.headline.comparative}"
    sides = {other: _side(group, other) for other in (reference, *equals)}
    side = sides[reference]
    if side is None:
        return None, _unknown(group, reference)
    if not reference.dense:
        return _of_best_known(reference, side)
    other = next((other for other in equals if (sides[other] == "above") != (side == "above")), None)
    if other is not None:
        alike = f"{named(other)}, is about as {group.measures.headline.adjective} as the reference"
        return None, f"{alike}, but would give a different verdict"
    if side == "above":
        return _of_high(group, series)
    if side == "between":
        return None, f"loss and {group.undecided} are neither both clearly above the reference nor both level with it"
    comparative = group.measures.headline.comparative
    if better := _better(group, series, longer=True):
        return (
            None,
            f"loss and {group.undecided} are not above the reference, but {_listed(better)} epochs were {comparative}",
        )
    if side == "below" and (shorter := _better(group, series, longer=False)):
        return (
            "past its best length",
            f"loss and {group.undecided} are below the reference; {_listed(shorter)} epochs were {comparative}",
        )
    return (
        "not under-trained",
        f"neither loss nor {group.undecided} is above the reference by more than one standard deviation or 10 %",
    )


def _of_high(group: Group, series: Series) -> tuple[Verdict | None, str]:
    """Loss and entropy are above the reference: other lengths show whether the model lacks training or weights."""
    known, headline = [other for other in series.groups if len(other.done) > 1], group.measures.headline
    high = f"loss and {group.undecided} are above the reference"
    if better := _better(group, series, longer=True):
        return "under-trained", f"{high}; {_listed(better)} epochs were {headline.comparative}"
    if longer := [other.epochs for other in known if other.epochs > group.epochs]:
        return None, f"{high}, but {_listed(longer)} epochs were no {headline.comparative}"
    in_vain = [other.epochs for other in known if other.epochs < group.epochs and not _more_accurate(group, other)]
    if in_vain:
        return None, f"{high}, but {_listed(in_vain)} epochs were as {headline.adjective}"
    return "looks under-trained", f"{high}; longer runs show whether training helps"


def _of_best_known(reference: Group, side: str) -> tuple[Verdict | None, str]:
    """Without a dense model the level is only a bound: the best known model may itself need longer training."""
    if side == "above":
        return (
            "looks under-trained",
            f"loss and {reference.undecided} are above those of the best known model, {named(reference)}",
        )
    return None, "none of these runs is dense, and the best known model may itself be under-trained"


def _better(group: Group, series: Series, longer: bool) -> list[int]:
    """The longer (or shorter) lengths that are more accurate."""
    others = [
        other for other in series.groups if (other.epochs > group.epochs if longer else other.epochs < group.epochs)
    ]
    return [other.epochs for other in others if _more_accurate(other, group)]


def _unknown(group: Group, reference: Group) -> str:
    for name, each in (("it has", group), (f"{named(reference)} has", reference)):
        if len(each.done) < 2:
            return f"{name} one run: the spread over seeds is unknown"
    for each in (group, reference):
        if not (each.last("train_cross_entropy") and each.confidence):
            return f"the loss or the {each.undecided} of {named(each)} is missing, NaN or infinite"
    return "all seeds gave the same result: the spread over seeds is unknown"


def _more_accurate(group: Group, than: Group) -> bool:
    own, other = group.accuracy, than.accuracy
    return bool(own and other and _improves(group.measures.headline, other, own))


def _improves(headline: Quantity, before: Spread, after: Spread) -> bool:
    ranks = [[headline.rank(value) for value in spread.values] for spread in (before, after)]
    return rises(*ranks)


def named(group: Group) -> str:
    return f"{group.series}, {group.epochs} epochs"


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last
