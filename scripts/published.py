"""The costs that P1 gives, in Tables 1-3 and in section 4, beside what is counted here for the runs they stand for.

Their rows come from several papers, and each counts in its own way: RigL's columns are its own (convention C, and K for
MobileNet), dense ones are weights alone (A). What P1 prints is here for the comparison; nothing is computed from it.

    python -m scripts.published          every row, with a verdict
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch

from acdc_cli import console
from acdc_cli.cost.conventions import Convention, exact, forward_flops
from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Flops, Kept, nominal, training_flops
from acdc_cli.models import build as models
from acdc_cli.recipe.blocks.base import Distribution
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods import acdc
from acdc_cli.sparsity.prunable import layers, pruned
from acdc_cli.sparsity.where import Selector

Counter = Convention | Literal["K"]
"""K is the counter of MobileNetV1 in RigL's code (google-research/rigl, MobileNet_Counting.ipynb). It differs from C in
two things: the padding counts as pixels at every strided convolution, not only at the first, and a depthwise
convolution's +1 counts once per position, for all its channels together."""
Verdict = Literal["reproduced", "in part", "learned"]
VERDICTS: dict[Verdict, str] = {
    "reproduced": "one convention gives every printed digit of the row",
    "in part": "no one convention does",
    "learned": "the trained weights decide, which are not published",
}

_SIDE, _CLASSES, _EPOCHS, _IMAGES = 224, 1000, 100, 1_281_167
_RIGL_INTERVAL = 100
"""Ordinary steps to one update of RigL's (arXiv 1911.11134)."""
_COUNTERS: dict[str, tuple[Counter, ...]] = {"resnet50": ("A", "B", "C"), "mobilenet_v1": ("A", "B", "C", "K")}
"""By model, in the order in which they are tried."""
_BUDGETS = Path(__file__).with_name("str_budgets.csv")
"""Sparsity in % of each layer of STR's ResNet-50s, by their sparsity (github.com/RAIVNLab/STR, budgets)."""


@dataclass(frozen=True)
class Comparison:
    """A row of the tables, or a cost of the text. Costs are as printed: of dense rows GFLOPs an image and EFLOPs a run,
    else shares of these; `-` where there is none."""

    where: str
    """Table 1, 2 or 3, or section 4."""
    model: str
    method: str
    sparsity: str
    inference: str
    ours_inference: str
    by_inference: str
    """Conventions that give the printed digits, `none`, or `-` where nothing is to be compared."""
    training: str
    ours_training: str
    by_training: str
    verdict: Verdict
    why: str
    """What the verdict leaves open, or empty."""


class _Network:
    """A model of the tables, counted once."""

    def __init__(self, name: str) -> None:
        with torch.device("meta"):
            self.model = models.find(name)(num_classes=_CLASSES)
        self.operations = operations(self.model, _SIDE)

    def flops(self, kept: Kept, counter: Counter) -> Flops:
        return self._by_mobilenets_counter(kept) if counter == "K" else forward_flops(self.operations, kept, counter)

    def kept(self, sparsity: float, distribution: Distribution, keep_dense: Sequence[str]) -> Kept:
        shapes = {name: weight.shape for name, weight in pruned(layers(self.model, keep_dense)).items()}
        counts = Selector(sparsity, distribution, layers={}, n_of_m=None, block=1).counts(shapes, sparsity)
        assert counts is not None
        return counts

    def _by_mobilenets_counter(self, kept: Kept) -> Flops:
        """Convention K."""
        total: Flops = 0
        for operation in self.operations:
            if operation.kind not in ("conv", "linear"):
                continue
            layer: Any = self.model.get_submodule(operation.name)
            strided, depthwise = getattr(layer, "stride", (1,))[0] > 1, getattr(layer, "groups", 1) > 1
            positions = (isqrt(operation.positions) + 1) ** 2 if strided else operation.positions
            nonzero = kept.get(operation.parameter_name or "", operation.weights)
            macs = Fraction(operation.macs * nonzero, operation.weights)
            added = operation.positions if depthwise else operation.elements
            total += Fraction(positions, operation.positions) * (2 * macs + added)
        return exact(total)


Costs = tuple[Flops | None, Flops | None]
"""FLOPs of an image in inference and, as a mean over the run, in training; None where P1 prints no such cost."""
Price = Callable[[_Network, Counter], Costs]


def _dense(network: _Network, counter: Counter) -> Costs:
    dense = network.flops({}, counter)
    return dense, training_flops(dense, dense, dense)


def _rigl(
    sparsity: float, distribution: Distribution, keep_dense: Sequence[str], network: _Network, counter: Counter
) -> Costs:
    """As in its paper, which prices updates as if they went on to the end of the run."""
    sparse = network.flops(network.kept(sparsity, distribution, keep_dense), counter)
    dense = network.flops({}, counter)
    return sparse, training_flops(sparse, sparse, dense, Fraction(1, _RIGL_INTERVAL + 1))


def _topkast(
    forward_sparsity: float, backward_sparsity: float, network: _Network, counter: Counter, times: int = 1
) -> Costs:
    """times: as many epochs as the dense run."""
    forward, backward = (
        network.flops(network.kept(sparsity, "uniform", ["first", "last"]), counter)
        for sparsity in (forward_sparsity, backward_sparsity)
    )
    return forward, times * training_flops(forward, backward, network.flops({}, counter))


def _acdc(
    target: float,
    network: _Network,
    counter: Counter,
    keep_dense: Sequence[str] = (),
    fine_tuned: int = 0,
    **keys: Any,
) -> Costs:
    """By its schedule of P1 3.2, with the same density in every layer.

    keys: of its recipe.  fine_tuned: epochs after the run, for the dense model.
    """
    assert counter != "K"
    masked = MaskedParameters(pruned(layers(network.model, keep_dense)))
    run = acdc.Method(acdc.Config(method="acdc", target=target, **keys), masked, _EPOCHS)
    epochs = nominal(run, {_SIDE: network.operations}, [_SIDE] * _EPOCHS, 1, 1, counter)
    total = sum(epoch.train for epoch in epochs) + fine_tuned * 3 * network.flops({}, counter)
    return epochs[-1].forward, Fraction(total) / _EPOCHS


_short_acdc = partial(_acdc, dense_epochs=2, last_dense_epochs=2, last_sparse_epochs=13)
"""The lengths near P1's own that fit: 32 dense and 68 sparse epochs."""
_short_uniform = partial(_short_acdc, distribution="uniform", keep_dense=["first", "last"])


def _evenly(sparsity: float, network: _Network, counter: Counter) -> Costs:
    return network.flops(network.kept(sparsity, "uniform", []), counter), None


def _budget(sparsity: str, network: _Network, counter: Counter) -> Costs:
    with _BUDGETS.open(encoding="utf-8") as file:
        zeros = {row["layer"]: Fraction(row[sparsity]) / 100 for row in csv.DictReader(file)}
    kept = {
        each.parameter_name: round(each.weights * (1 - zeros[each.name]))
        for each in network.operations
        if each.parameter_name
    }
    return network.flops(kept, counter), None


def _millions(published: int, network: _Network, counter: Counter) -> Costs:
    """Multiply-accumulates that STR's authors publish for a whole model, whose layers they do not list."""
    return (2 * published * 10**6 if counter == "A" else None), None


@dataclass(frozen=True)
class _Row:
    method: str
    sparsity: str
    inference: str
    training: str
    price: Price
    """Cost of the run that the row stands for."""
    counter: Counter = "A"
    """For ours, where none gives the printed digits."""
    learned: str = ""
    """What the cost takes from the trained weights; empty if it takes nothing."""
    why: str = ""
    """What else is to be said of the row."""


_MASKS = "how sparse each layer is follows from its weights; ours has the same density in all"
_AND_DEAD = f"{_MASKS}, and P1 leaves out what is zero in dense phases"
_LINEAR = (
    "no one convention gives its four rows. By any that is linear in the density, 2 f(95 %) + f(50 %) = 3 f(80 %): the "
    "same share, but P1 prints 0.22x in training at 95 % and 0.23x in inference at 80 %"
)
_DEPTHWISE = (
    "inference is that of a model with the first convolution dense, training that of one with the depthwise "
    "convolutions dense too, if updates end after three quarters of the run; no one model gives both columns"
)
_SHORT = "32 epochs are dense; with P1's own 0.18x of a sparse one (Table 1) the run costs 0.44x"
_SHORT_UNIFORM = "uniform sparsity fixes the cost of sparse epochs, but P1 leaves out what is zero in dense ones"
_PAIR = "0.58x of Table 1 and 15 dense epochs more make 0.73x"
_FIRST = ("first",)

_ROWS: dict[tuple[str, str], tuple[_Row, ...]] = {
    ("Table 1", "resnet50"): (
        _Row("dense", "0", "8.2", "3.14", _dense),
        _Row("AC/DC", "80", "0.29x", "0.65x", partial(_acdc, 0.8), learned=_AND_DEAD),
        _Row("RigL", "80", "0.23x", "0.23x", partial(_rigl, 0.8, "uniform", _FIRST), "C"),
        _Row("RigL (ERK)", "80", "0.42x", "0.42x", partial(_rigl, 0.8, "erk", ()), "C"),
        _Row("Top-KAST", "80 fwd, 50 bwd", "0.23x", "0.32x", partial(_topkast, 0.8, 0.5), why=_LINEAR),
        _Row("STR", "79.55", "0.19x", "-", partial(_budget, "79.55")),
        _Row("WoodFisher", "80", "0.25x", "-", partial(_evenly, 0.8), learned=_MASKS),
        _Row("AC/DC", "90", "0.18x", "0.58x", partial(_acdc, 0.9), learned=_AND_DEAD),
        _Row("RigL", "90", "0.13x", "0.13x", partial(_rigl, 0.9, "uniform", _FIRST), "C"),
        _Row("RigL (ERK)", "90", "0.24x", "0.25x", partial(_rigl, 0.9, "erk", ()), "C"),
        _Row("Top-KAST", "90 fwd, 80 bwd", "0.13x", "0.16x", partial(_topkast, 0.9, 0.8), why=_LINEAR),
        _Row("STR", "90.23", "0.08x", "-", partial(_budget, "90.23")),
        _Row("WoodFisher", "90", "0.15x", "-", partial(_evenly, 0.9), learned=_MASKS),
    ),
    ("Table 2", "resnet50"): (
        _Row("dense", "0", "8.2", "3.14", _dense),
        _Row("AC/DC", "95", "0.11x", "0.53x", partial(_acdc, 0.95), learned=_AND_DEAD),
        _Row("RigL", "95", "0.08x", "0.08x", partial(_rigl, 0.95, "uniform", _FIRST), "C"),
        _Row("RigL (ERK)", "95", "0.12x", "0.13x", partial(_rigl, 0.95, "erk", ()), "C"),
        _Row("Top-KAST", "95 fwd, 50 bwd", "0.08x", "0.22x", partial(_topkast, 0.95, 0.5), why=_LINEAR),
        _Row("STR", "94.8", "0.04x", "-", partial(_budget, "94.8")),
        _Row("WoodFisher", "95", "0.09x", "-", partial(_evenly, 0.95), learned=_MASKS),
        _Row("AC/DC", "98", "0.06x", "0.46x", partial(_acdc, 0.98), learned=_AND_DEAD),
        _Row("Top-KAST", "98 fwd, 90 bwd", "0.05x", "0.08x", partial(_topkast, 0.98, 0.9), why=_LINEAR),
        _Row("STR", "97.78", "0.02x", "-", partial(_budget, "97.78")),
        _Row("WoodFisher", "98", "0.05x", "-", partial(_evenly, 0.98), learned=_MASKS),
    ),
    ("Table 3", "mobilenet_v1"): (
        _Row("dense", "0", "1.1", "0.44", _dense),
        _Row("AC/DC", "75", "0.34x", "0.64x", partial(_acdc, 0.75), learned=_AND_DEAD),
        _Row("RigL (ERK)", "75", "0.52x", "0.53x", partial(_rigl, 0.75, "erk", _FIRST), "K", why=_DEPTHWISE),
        _Row("STR", "75.28", "0.18x", "-", partial(_millions, 101)),
        _Row("WoodFisher", "75.28", "0.28x", "-", partial(_evenly, 0.7528), learned=_MASKS),
        _Row("AC/DC", "90", "0.18x", "0.56x", partial(_acdc, 0.9), learned=_AND_DEAD),
        _Row("RigL (ERK)", "90", "0.27x", "0.29x", partial(_rigl, 0.9, "erk", _FIRST), "K", why=_DEPTHWISE),
        _Row("STR", "89.01", "0.07x", "-", partial(_millions, 42)),
        _Row("WoodFisher", "89", "-", "-", partial(_evenly, 0.89), learned=_MASKS),
    ),
    ("Section 4", "resnet50"): (
        _Row("AC/DC, short dense phases", "90", "-", "0.44x", partial(_short_acdc, 0.9), learned=_SHORT),
        _Row("AC/DC, short, uniform", "90", "-", "0.40x", partial(_short_uniform, 0.9), learned=_SHORT_UNIFORM),
        _Row("AC/DC, short, uniform", "95", "-", "0.35x", partial(_short_uniform, 0.95), learned=_SHORT_UNIFORM),
        _Row("AC/DC, both models", "90", "-", "0.73x", partial(_acdc, 0.9, fine_tuned=15), learned=_PAIR),
        _Row("Top-KAST, 200 epochs", "98 fwd, 90 bwd", "-", "0.15x", partial(_topkast, 0.98, 0.9, times=2)),
    ),
}


def compare() -> list[Comparison]:
    """Every row of the three tables and every cost of section 4, in their order."""
    networks = {name: _Network(name) for name in _COUNTERS}
    return [_compare(where, model, row, networks[model]) for (where, model), rows in _ROWS.items() for row in rows]


def _compare(where: str, model: str, row: _Row, network: _Network) -> Comparison:
    counters = (row.counter,) if row.learned else _COUNTERS[model]
    ours = {counter: _as_printed(row, network, counter) for counter in counters}
    printed = row.inference, row.training
    by = [[counter for counter in counters if printed[column] in ("-", ours[counter][column])] for column in (0, 1)]
    by_row = [counter for counter in by[0] if counter in by[1]]

    def shown(column: int) -> str:
        reproducing = by_row or by[column]
        return ours[row.counter if row.counter in reproducing else (*reproducing, row.counter)[0]][column]

    def named(column: int) -> str:
        return "-" if row.learned or printed[column] == "-" else "".join(by[column]) or "none"

    return Comparison(
        where,
        model,
        row.method,
        row.sparsity,
        row.inference,
        shown(0),
        named(0),
        row.training,
        shown(1),
        named(1),
        "learned" if row.learned else "reproduced" if by_row else "in part",
        row.learned or row.why,
    )


def _as_printed(row: _Row, network: _Network, counter: Counter) -> tuple[str, str]:
    """Inference and training, with as many decimals as the table has; `-` where it has none."""
    inference, training = row.price(network, counter)
    if row.price is _dense:
        assert inference is not None
        assert training is not None
        return f"{float(inference) / 1e9:.1f}", f"{float(training * _EPOCHS * _IMAGES) / 1e18:.2f}"
    dense = network.flops({}, counter)
    return _share(inference, dense), _share(training, 3 * dense)


def _share(flops: Flops | None, dense: Flops) -> str:
    return "-" if flops is None else f"{float(Fraction(flops) / dense):.2f}x"


def main() -> None:
    rows = compare()
    for (where, model), group in groupby(rows, key=lambda row: (row.where, row.model)):
        _print(f"{where}: {model}; GFLOPs an image and EFLOPs a run, or shares of dense", list(group))
        console.out("")
    console.say("by: the conventions of `acdc plan` that give the printed digits; K: RigL's counter of MobileNetV1")
    for verdict, meaning in VERDICTS.items():
        console.say(f"{verdict}: {meaning}")
    for method, why in dict.fromkeys((row.method, row.why) for row in rows if row.why):
        console.say(f"{method}: {why}")


def _print(title: str, rows: Sequence[Comparison]) -> None:
    columns = {
        "method": [row.method for row in rows],
        "zeros %": [row.sparsity for row in rows],
        "infer": [row.inference for row in rows],
        "ours": [row.ours_inference for row in rows],
        "by": [row.by_inference for row in rows],
        "train": [row.training for row in rows],
        "ours ": [row.ours_training for row in rows],
        "by ": [row.by_training for row in rows],
        "verdict": [row.verdict for row in rows],
    }
    if all(row.inference == "-" for row in rows):
        columns = {name: cells for name, cells in columns.items() if name not in ("infer", "ours", "by")}
    console.table([name.strip() for name in columns], list(zip(*columns.values(), strict=True)), title)


if __name__ == "__main__":
    main()
