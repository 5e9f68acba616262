"""Calibration: entropy, NLL, ECE, Brier score, reliability diagram (P2 C.1, eq. 4).

For one run with a sparse and a dense model, both are measured and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveInt
from torch import Tensor

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.outputs import Split
from acdc_cli.analysis.base.subject import Kind, Loaded, Subject
from acdc_cli.analysis.base.workspace import UNSAVED, Batches, Workspace
from acdc_cli.data.batches import Batch
from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.tasks.base import registry as tasks
from acdc_cli.tasks.base.abstract_task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS: tuple[Kind, Kind] = ("sparse", "dense")
_COMPARED = ("accuracy", "confidence", "nll", "entropy", "ece", "mce", "brier")


class Options(Block):
    bins: PositiveInt = 15
    """Number of equal-width bins for confidences between 0 and 1."""
    split: Split = "val"
    """Images to evaluate on: `val`, or `train` (prepared as for validation, without augmentation)."""


@dataclass(frozen=True)
class Bin:
    """Decisions whose confidence c, the largest probability of an option, satisfies `low` < c ≤ `high`."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean of c; NaN for an empty bin."""
    accuracy: float
    """Fraction of right decisions; NaN for an empty bin."""


@dataclass(frozen=True)
class Calibration:
    """Means over decisions: an image has one, its class, or one for each label, yes or no."""

    samples: int
    """Decisions."""
    accuracy: float
    """Fraction of right decisions; of images whose largest logit is that of their class."""
    confidence: float
    """Mean of the largest probability of each decision."""
    nll: float
    """-ln p[truth], in nats: P2 eq. 4's CE."""
    entropy: float
    """-Σ p ln p, in nats: P2 eq. 4's H, between 0 and ln(options)."""
    brier: float
    """Σ (p[k] - [k is the truth])² over the options k, between 0 and 2."""
    bins: tuple[Bin, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017, eq. 3): mean over the bins of |accuracy - mean confidence|,
        weighted by their decisions; between 0 and 1."""
        return sum(each.count / self.samples * abs(each.accuracy - each.confidence) for each in self._filled)

    @property
    def mce(self) -> float:
        """Maximum calibration error (Guo et al. 2017, eq. 5): the largest |accuracy - mean confidence| of a bin that is
        not empty."""
        return max(abs(each.accuracy - each.confidence) for each in self._filled)

    @property
    def _filled(self) -> list[Bin]:
        return [each for each in self.bins if each.count]


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    calibrations = {}
    for subject in measured(subjects):
        with subject.images(options.split) as images:
            calibrations[subject.name] = calibrate(
                subject.load(), images, options.bins, workspace, f"{subject.digest} {subject.name}", subject.name
            )
    differences = difference(*calibrations.values()) if len(subjects) == 1 and len(calibrations) == 2 else None
    numbers = {name: {**asdict(each), "ece": each.ece, "mce": each.mce} for name, each in calibrations.items()}
    rows = [(name, *(getattr(each, key) for key in _COMPARED)) for name, each in calibrations.items()]
    task = tasks.build(subjects[0].recipe.task)
    counted = "images" if len(task.decisions(2)) == 1 else "predictions"
    return Findings(
        numbers={"models": numbers, **({"sparse_minus_dense": differences} if differences else {})},
        summary=_summary(calibrations, differences, task.measures.right_answers.name),
        tables={
            "": Table(
                ("model", "samples", *_COMPARED), [(name, calibrations[name].samples, *rest) for name, *rest in rows]
            ),
            "bins": Table(
                ("model", "low", "high", "count", "confidence", "accuracy"),
                [(name, *asdict(each).values()) for name, model in calibrations.items() for each in model.bins],
            ),
        },
        figures={"": draw(calibrations, counted)},
    )


def measured(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects themselves; for a single run with no requested model, both of its models if it has them."""
    if len(subjects) == 1 and subjects[0].run is not None and subjects[0].kind is None:
        models = [subjects[0].of(kind) for kind in _KINDS if subjects[0].run.model_file(kind).exists()]
        return models or list(subjects)
    return list(subjects)


def calibrate(
    model: Loaded,
    images: Batches[Batch],
    bins: int = 15,
    workspace: Workspace = UNSAVED,
    key: str = "calibration",
    description: str = "calibration",
) -> Calibration:
    """Evaluates the model on all images. Accuracy, `nll` and entropy equal those of `acdc eval`.

    Raises RunError if there are no images.
    """

    def add(batch: Batch) -> dict[str, Tensor]:
        with model.precision.autocast():
            logits = model.forward(batch.inputs)
        return sums(logits, batch.targets, model.task, bins)

    totals = workspace.sums(key, images, add, description)
    if not totals:
        raise RunError("there are no images to evaluate the model on; name another set with --data")
    return of_sums(totals)


def sums(logits: Tensor, labels: Tensor, task: Task, bins: int = 15) -> dict[str, Tensor]:
    """The sums over a batch that `of_sums` needs, in float64 on the logits' device.

    logits: (batch, outputs).  labels: (batch,) int64.  The bins are (0, 1/bins], (1/bins, 2/bins], … up to 1.
    """
    asked = task.asked(labels)
    counted = slice(None) if asked is None else asked
    truth = task.truth(labels, logits.shape[-1])[counted]
    probabilities = task.log_probabilities(logits.float().double())[counted].exp().flatten(0, 1)
    confidence = probabilities.amax(dim=1)
    right = (task.answers(logits)[counted] == truth).double().flatten()
    edges = torch.arange(1, bins, dtype=torch.float64, device=logits.device) / bins
    members = torch.bucketize(confidence, edges)[:, None] == torch.arange(bins, device=logits.device)
    # products rather than index_add, whose order on a GPU varies
    weights = members.double().T
    errors = probabilities.scatter_add(1, truth.reshape(-1, 1), probabilities.new_full((len(right), 1), -1))
    # in the precision of `acdc eval`
    logs = task.log_probabilities(logits.float())[counted]
    return {
        "nll": -logs.gather(2, truth[:, :, None]).sum(dtype=torch.float64),
        "entropy": -(logs.exp() * logs).sum(dtype=torch.float64),
        "accuracy": right.sum(),
        "brier": errors.square().sum(),
        "counts": members.sum(dim=0),
        "confidences": weights @ confidence,
        "rights": weights @ right,
    }


def of_sums(totals: Mapping[str, Tensor]) -> Calibration:
    """totals: the results of `sums`, added over all batches."""
    counts: list[int] = totals["counts"].tolist()
    samples, bins = sum(counts), len(counts)
    means = {key: float(totals[key]) / samples for key in ("accuracy", "nll", "entropy", "brier")}
    nothing = float("nan")
    return Calibration(
        samples=samples,
        confidence=float(totals["confidences"].sum()) / samples,
        bins=tuple(
            Bin(
                at / bins,
                (at + 1) / bins,
                count,
                confidence / count if count else nothing,
                right / count if count else nothing,
            )
            for at, (count, confidence, right) in enumerate(
                zip(counts, totals["confidences"].tolist(), totals["rights"].tolist(), strict=True)
            )
        ),
        **means,
    )


def difference(sparse: Calibration, dense: Calibration) -> dict[str, float]:
    """For every measure, the sparse model's value minus the dense model's."""
    return {key: getattr(sparse, key) - getattr(dense, key) for key in _COMPARED}


def draw(models: Mapping[str, Calibration], counted: str = "images") -> Figure:
    """The reliability diagram above the number of images (or what is counted) in each bin."""
    figure = plotting.new(5.5, 6)
    reliability, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1.2))
    reliability.plot([0, 100], [0, 100], color="0.6", linewidth=1, label="perfectly calibrated")
    for (name, model), style in zip(models.items(), plotting.styles(), strict=False):
        filled = [each for each in model.bins if each.count]
        points = [[100 * each.confidence for each in filled], [100 * each.accuracy for each in filled]]
        reliability.plot(*points, label=f"{name}: ECE {model.ece:.2%}", **style)
        edges = [0.0, *(100 * each.high for each in model.bins)]
        heights = [each.count for each in model.bins]
        counts.stairs(heights, edges, baseline=None, color=style["color"], linestyle=style["linestyle"])
    reliability.set(ylabel="accuracy of the bin (%)", ylim=(-3, 103))
    figure.legend(loc="outside upper center", fontsize=8)
    counts.set(xlabel="confidence (%)", ylabel=f"{counted} in the bin", xlim=(0, 101), ylim=(0.7, None))
    plotting.log(counts, "y")
    for panel in (reliability, counts):
        panel.grid(alpha=0.3)
    return figure


def _summary(models: Mapping[str, Calibration], differences: Mapping[str, float] | None, accuracy: str) -> Table:
    """Shares in percent; differences (sparse minus dense) in percentage points."""

    def texts(values: Sequence[float]) -> list[str]:
        right, confidence, nll, entropy, ece, mce, brier = values
        return [
            *(f"{value:.2%}" for value in (right, confidence)),
            *(f"{value:.4f}" for value in (nll, entropy)),
            *(f"{value:.2%}" for value in (ece, mce)),
            f"{brier:.4f}",
        ]

    rows = [[name, *texts([getattr(model, key) for key in _COMPARED])] for name, model in models.items()]
    if differences:
        rows.append(["difference", *texts(list(differences.values()))])
    return Table(("model", accuracy, "confidence", "NLL, nats", "entropy, nats", "ECE", "MCE", "Brier"), rows)
