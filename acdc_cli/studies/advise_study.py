"""`acdc advise`: are these sparse models under-trained, as far as their runs show?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli.errors import RunError
from acdc_cli.quantities import Measures
from acdc_cli.recipe import shipped
from acdc_cli.statistics import Spread
from acdc_cli.studies import advice as studies
from acdc_cli.studies import results
from acdc_cli.studies.advice import Advice, Lengths
from acdc_cli.studies.summary import Group, Summary, summarise


@dataclass(frozen=True)
class StudyAdvice:
    summary: Summary
    advice: list[Advice]
    lengths: list[Lengths]

    @property
    def measures(self) -> Measures:
        return self.summary.measures

    @property
    def unfinished(self) -> list[str]:
        return [run.key for run in self.summary.missing]

    def as_dict(self) -> dict[str, Any]:
        return {
            "rule": studies.rule(self.measures),
            "groups": [_group(group) for group in self.summary.groups if group.done],
            "advice": [
                {
                    "series": each.group.series,
                    "epochs": each.group.epochs,
                    "reference": _name(each.reference) if each.reference else None,
                    "about_as_accurate": [_name(group) for group in each.equals],
                    "train_cross_entropy_above_std": each.loss,
                    f"{self.measures.confidence.key}_above_std": each.confidence,
                    "verdict": each.verdict,
                    "because": each.reason,
                }
                for each in self.advice
            ],
            "lengths": [{"series": each.series, "epochs": each.supported, "known": each.note} for each in self.lengths],
            "unfinished": self.unfinished,
        }


def advise(sources: Sequence[str]) -> StudyAdvice:
    """sources: run directories, or one study, as for `acdc report`.

    Raises RunError for any other source, or if no run has ended.
    """
    paths = list(map(Path, sources))
    studied = [path for path in paths if results.is_study(path)]
    if studied and len(paths) > 1:
        raise RunError(f"{studied[0]} is a study; give one study, or run directories such as {studied[0]}/runs/*")
    study = results.folder_of(sources[0]) if studied or _names_a_study(sources) else None
    runs = results.of_study(study) if study else results.of_runs(paths)
    if not any(run.done for run in runs):
        raise RunError("none of these runs has ended: only models after the last epoch can be compared")
    summary = summarise("the runs", runs, "epochs", results.advancing_together(study) if study else ())
    return StudyAdvice(summary, studies.advise(summary), [studies.lengths(series) for series in summary.series])


def group_rows(advised: StudyAdvice) -> list[list[str]]:
    """The numbers behind the advice, for every group of finished runs."""
    headline, confidence = advised.measures.headline, advised.measures.confidence
    return [
        [
            group.series,
            str(group.epochs),
            str(len(group.done)),
            _shown(group.accuracy, headline.scale, headline.digits),
            _shown(group.last("train_cross_entropy"), 1, 4),
            _shown(group.confidence, confidence.scale, confidence.digits),
        ]
        for group in advised.summary.groups
        if group.done
    ]


def distance_rows(advised: StudyAdvice) -> list[list[str]]:
    return [
        [
            advice.group.series,
            str(advice.group.epochs),
            *("-" if value is None else f"{value:+.1f}" for value in (advice.loss, advice.confidence)),
            studies.named(advice.reference) if advice.reference else "-",
        ]
        for advice in advised.advice
    ]


def _names_a_study(sources: Sequence[str]) -> bool:
    return len(sources) == 1 and (Path(sources[0]).is_file() or sources[0] in shipped.study_names())


def _shown(spread: Spread | None, scale: float, digits: int) -> str:
    if spread is None:
        return "not finite"
    mean = f"{scale * spread.mean:.{digits}f}"
    return mean if spread.std is None else f"{mean} ± {scale * spread.std:.{digits}f}"


def _name(group: Group) -> dict[str, Any]:
    return {"series": group.series, "epochs": group.epochs}


def _group(group: Group) -> dict[str, Any]:
    keys = group.measures.headline.key, "train_cross_entropy", group.measures.confidence.key
    return _name(group) | {"n": len(group.done)} | {key: _spread(group.last(key)) for key in keys}


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else {"mean": spread.mean, "std": spread.std}
