"""The cost columns of P1's Tables 1-3, beside what is counted here for the runs that they stand for.

Their rows come from several papers, and each counts in its own way: RigL's columns are its own (convention C), dense
ones are weights alone (A). What P1 prints is here for the comparison; nothing is computed from it.

    python -m scripts.published          its three tables, with a verdict for each row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby

import torch

from acdc_cli import console
from acdc_cli.cost.conventions import Convention, forward_flops
from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Flops, Kept, nominal, training_flops
from acdc_cli.models import build as models
from acdc_cli.recipe.schema import Distribution
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods import acdc
from acdc_cli.sparsity.prunable import layers, pruned
from acdc_cli.sparsity.where import Selector

_SIDE, _CLASSES, _EPOCHS, _IMAGES = 224, 1000, 100, 1_281_167
_RIGL_INTERVAL = 100
"""Ordinary steps to one update of RigL's (arXiv 1911.11134)."""
_CONVENTIONS: tuple[Convention, ...] = ("A", "B", "C")


@dataclass(frozen=True)
class Comparison:
    """A row of the tables. Costs are as printed: of dense rows GFLOPs an image and EFLOPs a run, else shares of these;
    `-` where there is none."""

    table: int
    model: str
    method: str
    sparsity: str
    inference: str
    ours_inference: str
    training: str
    ours_training: str
    verdict: str
    """Under which conventions the printed digits come out, if under any."""
    why: str
    """They do not, or empty."""


class _Network:
    """A model of the tables, counted once."""

    def __init__(self, name: str) -> None:
        with torch.device("meta"):
            self.model = models.find(name)(num_classes=_CLASSES)
        self.operations = operations(self.model, _SIDE)

    def flops(self, kept: Kept, convention: Convention) -> Flops:
        return forward_flops(self.operations, kept, convention)

    def kept(self, sparsity: float, distribution: Distribution, keep_dense: Sequence[str]) -> Kept:
        shapes = {name: weight.shape for name, weight in pruned(layers(self.model, keep_dense)).items()}
        counts = Selector(sparsity, distribution, layers={}, n_of_m=None, block=1).counts(shapes, sparsity)
        assert counts is not None
        return counts


Costs = tuple[Flops, Flops | None]
"""FLOPs of an image in inference and, as a mean over the run, in training; None where P1 prints no such cost."""
Price = Callable[[_Network, Convention], Costs]


def _dense(network: _Network, convention: Convention) -> Costs:
    dense = network.flops({}, convention)
    return dense, training_flops(dense, dense, dense)


def _rigl(
    sparsity: float, distribution: Distribution, keep_dense: Sequence[str], network: _Network, convention: Convention
) -> Costs:
    """As in its paper, which prices updates as if they went on to the end of the run."""
    sparse = network.flops(network.kept(sparsity, distribution, keep_dense), convention)
    dense = network.flops({}, convention)
    return sparse, training_flops(sparse, sparse, dense, Fraction(1, _RIGL_INTERVAL + 1))


def _topkast(forward_sparsity: float, backward_sparsity: float, network: _Network, convention: Convention) -> Costs:
    forward, backward = (
        network.flops(network.kept(sparsity, "uniform", ["first", "last"]), convention)
        for sparsity in (forward_sparsity, backward_sparsity)
    )
    return forward, training_flops(forward, backward, network.flops({}, convention))


def _acdc(target: float, network: _Network, convention: Convention) -> Costs:
    """By its schedule of P1 3.2, with the same density in every layer."""
    masked = MaskedParameters(pruned(layers(network.model, [])))
    run = acdc.Method(acdc.Config(method="acdc", target=target), masked, _EPOCHS)
    epochs = nominal(run, {_SIDE: network.operations}, [_SIDE] * _EPOCHS, 1, 1, convention)
    return epochs[-1].forward, Fraction(sum(epoch.train for epoch in epochs)) / _EPOCHS


def _evenly(sparsity: float, network: _Network, convention: Convention) -> Costs:
    return network.flops(network.kept(sparsity, "uniform", []), convention), None


@dataclass(frozen=True)
class _Row:
    table: int
    model: str
    method: str
    sparsity: str
    inference: str
    training: str
    price: Price | None
    """Of the run that the row stands for; None where its layers' sparsities are learned."""
    convention: Convention = "A"
    """For ours, where none gives the printed digits."""
    learned: bool = False
    """Does the cost depend on what training did to the weights?"""
    why: str = ""
    """It is not reproduced."""


_MASKS = "how sparse each layer is follows from its weights; ours has the same density in all"
_LEARNED = "its sparsity is learned, layer by layer"
_DEAD = "and P1 leaves out what is zero in dense phases"
_DEPTHWISE = (
    "no convention gives both columns, neither with every layer pruned, as here, nor with the first and the depthwise "
    "convolutions dense, as P1's text says"
)
_FIRST = ("first",)

_ROWS = (
    _Row(1, "resnet50", "dense", "0", "8.2", "3.14", _dense),
    _Row(1, "resnet50", "AC/DC", "80", "0.29x", "0.65x", partial(_acdc, 0.8), learned=True, why=f"{_MASKS}, {_DEAD}"),
    _Row(1, "resnet50", "RigL", "80", "0.23x", "0.23x", partial(_rigl, 0.8, "uniform", _FIRST), "C"),
    _Row(1, "resnet50", "RigL (ERK)", "80", "0.42x", "0.42x", partial(_rigl, 0.8, "erk", ()), "C"),
    _Row(1, "resnet50", "Top-KAST", "80 fwd, 50 bwd", "0.23x", "0.32x", partial(_topkast, 0.8, 0.5)),
    _Row(1, "resnet50", "STR", "79.55", "0.19x", "-", None, learned=True, why=_LEARNED),
    _Row(1, "resnet50", "WoodFisher", "80", "0.25x", "-", partial(_evenly, 0.8), learned=True, why=_MASKS),
    _Row(1, "resnet50", "AC/DC", "90", "0.18x", "0.58x", partial(_acdc, 0.9), learned=True, why=f"{_MASKS}, {_DEAD}"),
    _Row(1, "resnet50", "RigL", "90", "0.13x", "0.13x", partial(_rigl, 0.9, "uniform", _FIRST), "C"),
    _Row(1, "resnet50", "RigL (ERK)", "90", "0.24x", "0.25x", partial(_rigl, 0.9, "erk", ()), "C"),
    _Row(1, "resnet50", "Top-KAST", "90 fwd, 80 bwd", "0.13x", "0.16x", partial(_topkast, 0.9, 0.8)),
    _Row(1, "resnet50", "STR", "90.23", "0.08x", "-", None, learned=True, why=_LEARNED),
    _Row(1, "resnet50", "WoodFisher", "90", "0.15x", "-", partial(_evenly, 0.9), learned=True, why=_MASKS),
    _Row(2, "resnet50", "dense", "0", "8.2", "3.14", _dense),
    _Row(2, "resnet50", "AC/DC", "95", "0.11x", "0.53x", partial(_acdc, 0.95), learned=True, why=f"{_MASKS}, {_DEAD}"),
    _Row(2, "resnet50", "RigL", "95", "0.08x", "0.08x", partial(_rigl, 0.95, "uniform", _FIRST), "C"),
    _Row(2, "resnet50", "RigL (ERK)", "95", "0.12x", "0.13x", partial(_rigl, 0.95, "erk", ()), "C"),
    _Row(2, "resnet50", "Top-KAST", "95 fwd, 50 bwd", "0.08x", "0.22x", partial(_topkast, 0.95, 0.5)),
    _Row(2, "resnet50", "STR", "94.8", "0.04x", "-", None, learned=True, why=_LEARNED),
    _Row(2, "resnet50", "WoodFisher", "95", "0.09x", "-", partial(_evenly, 0.95), learned=True, why=_MASKS),
    _Row(2, "resnet50", "AC/DC", "98", "0.06x", "0.46x", partial(_acdc, 0.98), learned=True, why=f"{_MASKS}, {_DEAD}"),
    _Row(2, "resnet50", "Top-KAST", "98 fwd, 90 bwd", "0.05x", "0.08x", partial(_topkast, 0.98, 0.9)),
    _Row(2, "resnet50", "STR", "97.78", "0.02x", "-", None, learned=True, why=_LEARNED),
    _Row(2, "resnet50", "WoodFisher", "98", "0.05x", "-", partial(_evenly, 0.98), learned=True, why=_MASKS),
    _Row(3, "mobilenet_v1", "dense", "0", "1.1", "0.44", _dense),
    _Row(
        3, "mobilenet_v1", "AC/DC", "75", "0.34x", "0.64x", partial(_acdc, 0.75), learned=True, why=f"{_MASKS}, {_DEAD}"
    ),
    _Row(3, "mobilenet_v1", "RigL (ERK)", "75", "0.52x", "0.53x", partial(_rigl, 0.75, "erk", ()), "C", why=_DEPTHWISE),
    _Row(3, "mobilenet_v1", "STR", "75.28", "0.18x", "-", None, learned=True, why=_LEARNED),
    _Row(3, "mobilenet_v1", "WoodFisher", "75.28", "0.28x", "-", partial(_evenly, 0.7528), learned=True, why=_MASKS),
    _Row(
        3, "mobilenet_v1", "AC/DC", "90", "0.18x", "0.56x", partial(_acdc, 0.9), learned=True, why=f"{_MASKS}, {_DEAD}"
    ),
    _Row(3, "mobilenet_v1", "RigL (ERK)", "90", "0.27x", "0.29x", partial(_rigl, 0.9, "erk", ()), "C", why=_DEPTHWISE),
    _Row(3, "mobilenet_v1", "STR", "89.01", "0.07x", "-", None, learned=True, why=_LEARNED),
    _Row(3, "mobilenet_v1", "WoodFisher", "89", "-", "-", partial(_evenly, 0.89), learned=True, why=_MASKS),
)


def compare() -> list[Comparison]:
    """Every row of the three tables, in their order."""
    networks = {name: _Network(name) for name in dict.fromkeys(row.model for row in _ROWS)}
    return [_compare(row, networks[row.model]) for row in _ROWS]


def _compare(row: _Row, network: _Network) -> Comparison:
    ours = {convention: _as_printed(row, network, convention) for convention in _CONVENTIONS}
    by_inference = [convention for convention in _CONVENTIONS if ours[convention][0] == row.inference]
    by_training = [convention for convention in _CONVENTIONS if ours[convention][1] == row.training]
    by_both = [convention for convention in by_inference if convention in by_training]

    def shown(column: int, reproducing: Sequence[Convention]) -> str:
        return ours[row.convention if row.convention in reproducing else (*reproducing, row.convention)[0]][column]

    return Comparison(
        row.table,
        row.model,
        row.method,
        row.sparsity,
        row.inference,
        shown(0, by_both or by_inference),
        row.training,
        shown(1, by_both or by_training),
        _verdict(row, by_both, by_inference, by_training),
        "" if by_both and not row.learned else row.why,
    )


def _verdict(
    row: _Row, both: Sequence[Convention], inference: Sequence[Convention], training: Sequence[Convention]
) -> str:
    if row.learned:
        return "not reproducible"
    if both:
        return f"reproduced under {_any_of(both)}"
    return f"inference under {_any_of(inference)}, training under {_any_of(training)}"


def _any_of(conventions: Sequence[Convention]) -> str:
    return ", ".join(conventions) or "none"


def _as_printed(row: _Row, network: _Network, convention: Convention) -> tuple[str, str]:
    """Inference and training, with as many decimals as the table has."""
    if row.price is None:
        return "-", "-"
    inference, training = row.price(network, convention)
    if row.price is _dense:
        assert training is not None
        run = training * _EPOCHS * _IMAGES
        return f"{float(inference) / 1e9:.1f}", f"{float(run) / 1e18:.2f}"
    dense = network.flops({}, convention)
    return _share(inference, dense), "-" if training is None else _share(training, 3 * dense)


def _share(flops: Flops, dense: Flops) -> str:
    return f"{float(Fraction(flops) / dense):.2f}x"


def main() -> None:
    columns = ("method", "zeros %", "infer", "ours", "train", "ours", "verdict")
    rows = compare()
    for (number, model), group in groupby(rows, key=lambda row: (row.table, row.model)):
        cells = [
            (row.method, row.sparsity, row.inference, row.ours_inference, row.training, row.ours_training, row.verdict)
            for row in group
        ]
        console.table(columns, cells, f"Table {number}: {model}; GFLOPs an image and EFLOPs a run, or shares of dense")
        console.out("")
    for method, why in dict.fromkeys((row.method, row.why) for row in rows if row.why):
        console.say(f"{method}: {why}")


if __name__ == "__main__":
    main()
