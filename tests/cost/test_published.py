from __future__ import annotations

import csv
from fractions import Fraction
from itertools import product

import pytest

from acdc_cli.cost.training_cost import training_flops
from scripts import published
from scripts.published import _BUDGETS, _COUNTERS, VERDICTS, Comparison, Counter, _Network, compare

RIGL, MOBILENET = "RigL (ERK)", "mobilenet_v1"


@pytest.fixture(scope="module")
def rows() -> list[Comparison]:
    return compare()


@pytest.fixture(scope="module")
def mobilenet() -> _Network:
    return _Network(MOBILENET)


def of(rows: list[Comparison], model: str, method: str) -> list[Comparison]:
    of_method = [row for row in rows if (row.model, row.method) == (model, method) and row.where != "Section 4"]
    assert of_method
    return of_method


def share(network: _Network, counter: Counter, sparsity: float, keep_dense: list[str]) -> Fraction:
    sparse = network.flops(network.kept(sparsity, "erk", keep_dense), counter)
    return Fraction(sparse) / network.flops({}, counter)


def test_every_row_of_the_three_tables_and_every_cost_of_the_text_is_there(rows: list[Comparison]) -> None:
    counts = {where: sum(row.where == where for row in rows) for where in dict.fromkeys(row.where for row in rows)}
    assert counts == {"Table 1": 13, "Table 2": 11, "Table 3": 9, "Section 4": 5}


def test_every_row_has_a_verdict_and_what_is_not_reproduced_a_reason(rows: list[Comparison]) -> None:
    assert {row.verdict for row in rows} == set(VERDICTS)
    for row in rows:
        assert row.verdict == "reproduced" or row.why
        if row.verdict == "reproduced":
            assert row.inference in ("-", row.ours_inference)
            assert row.training in ("-", row.ours_training)


def test_dense_rows_are_weights_alone(rows: list[Comparison]) -> None:
    (first, second), (mobilenet,) = of(rows, "resnet50", "dense"), of(rows, MOBILENET, "dense")
    assert (first.where, second.where) == ("Table 1", "Table 2")
    assert (first.ours_inference, first.ours_training) == ("8.2", "3.14")
    assert first.by_training == second.by_training == "A"
    assert (mobilenet.ours_inference, mobilenet.ours_training) == ("1.1", "0.44")


@pytest.mark.parametrize("method", ["RigL", RIGL])
def test_rigls_columns_of_resnet50_are_its_own_convention_to_the_printed_digits(
    rows: list[Comparison], method: str
) -> None:
    of_method = of(rows, "resnet50", method)
    assert len(of_method) == 3
    for row in of_method:
        assert row.verdict == "reproduced"
        assert "C" in row.by_inference
        assert "C" in row.by_training


def test_no_convention_but_rigls_reproduces_all_its_rows(rows: list[Comparison]) -> None:
    of_method = [row for method in ("RigL", RIGL) for row in of(rows, "resnet50", method)]
    assert not all("A" in row.by_inference and "A" in row.by_training for row in of_method)
    assert not all("B" in row.by_inference and "B" in row.by_training for row in of_method)


def test_no_one_convention_fits_top_kasts_four_rows(rows: list[Comparison]) -> None:
    by_sparsity = {row.sparsity: row for row in of(rows, "resnet50", "Top-KAST")}
    by = {sparsity: set(row.by_inference) & set(row.by_training) for sparsity, row in by_sparsity.items()}
    assert by == {
        "80 fwd, 50 bwd": {"B", "C"}, "90 fwd, 80 bwd": {"A", "B", "C"}, "95 fwd, 50 bwd": {"A"},
        "98 fwd, 90 bwd": {"B", "C"},
    }  # fmt: skip
    assert not set.intersection(*by.values())
    # the proof, for any cost a + b d that is linear in the density d: training at 95 and 50 % is inference at 80 %
    assert (2 * Fraction("0.05") + Fraction("0.5")) / 3 == Fraction("0.2")
    assert by_sparsity["95 fwd, 50 bwd"].training != by_sparsity["80 fwd, 50 bwd"].inference


@pytest.mark.parametrize("model", ["resnet50", MOBILENET])
def test_rows_that_depend_on_trained_weights_say_so(rows: list[Comparison], model: str) -> None:
    for method in ("AC/DC", "WoodFisher"):
        for row in of(rows, model, method):
            assert (row.verdict, row.by_inference, row.by_training) == ("learned", "-", "-")


@pytest.mark.parametrize("model", ["resnet50", MOBILENET])
def test_strs_inference_is_that_of_its_published_budgets_by_convention_a(rows: list[Comparison], model: str) -> None:
    for row in of(rows, model, "STR"):
        assert (row.verdict, row.ours_inference) == ("reproduced", row.inference)
        assert "A" in row.by_inference
    assert any(row.by_inference == "A" for row in of(rows, model, "STR"))


def test_the_budgets_are_those_of_models_with_their_sparsity() -> None:
    network = _Network("resnet50")
    sizes = {each.name: each.weights for each in network.operations if each.parameter_name}
    with _BUDGETS.open() as file:
        budgets = list(csv.DictReader(file))
    assert {budget["layer"] for budget in budgets} == set(sizes)
    for sparsity in ("79.55", "90.23", "94.8", "97.78"):
        zeros = sum(sizes[budget["layer"]] * float(budget[sparsity]) for budget in budgets) / sum(sizes.values())
        assert zeros == pytest.approx(float(sparsity), abs=0.005)


def test_half_of_acdcs_epochs_are_priced_dense(rows: list[Comparison]) -> None:
    # (1 + 0.2) / 2 and (1 + 0.1) / 2
    trained = {row.sparsity: row.ours_training for row in of(rows, "resnet50", "AC/DC")}
    assert (trained["80"], trained["90"]) == ("0.60x", "0.55x")


def test_k_counts_as_rigls_notebook_does(mobilenet: _Network) -> None:
    # its printed MFLOPs: 1141.544 dense, 312.956 at 90 % by ERK with the first convolution dense
    assert mobilenet.flops({}, "K") == 1_141_543_864
    assert float(share(mobilenet, "K", 0.9, ["first"])) == pytest.approx(312.956 / 1141.544, abs=5e-5)
    assert f"{float(share(mobilenet, 'K', 0.9, ['first'])):.4f}" == "0.2742"
    assert f"{float(share(mobilenet, 'C', 0.9, ['first'])):.4f}" == "0.2751"


def test_mobilenets_rigl_rows_are_reproduced_in_part(rows: list[Comparison]) -> None:
    of_method = of(rows, MOBILENET, RIGL)
    assert [(row.inference, row.ours_inference) for row in of_method] == [("0.52x", "0.52x"), ("0.27x", "0.27x")]
    assert [(row.by_training, row.verdict) for row in of_method] == [("none", "in part")] * 2
    assert set.intersection(*(set(row.by_inference) for row in of_method)) == {"K"}
    assert all("depthwise" in row.why for row in of_method)


def test_no_one_model_gives_both_columns_of_mobilenets_rigl_rows(rows: list[Comparison], mobilenet: _Network) -> None:
    of_method = of(rows, MOBILENET, RIGL)

    def columns(counter: Counter, keep_dense: list[str], updating: Fraction) -> list[tuple[str, str]]:
        """updating: the share of the run in which masks are updated."""
        shares = [share(mobilenet, counter, float(row.sparsity) / 100, keep_dense) for row in of_method]
        trained = [training_flops(part, part, Fraction(1), updating / 101) / 3 for part in shares]
        return [(f"{float(part):.2f}x", f"{float(cost):.2f}x") for part, cost in zip(shares, trained, strict=True)]

    printed = [(row.inference, row.training) for row in of_method]
    dense = ([], ["first"], ["depthwise"], ["first", "depthwise"])
    updating = Fraction(0), Fraction(3, 4), Fraction(1)
    for setting in product(_COUNTERS[MOBILENET], dense, updating):
        assert columns(*setting) != printed
    second_model = columns("K", ["first", "depthwise"], Fraction(3, 4))
    assert [training for _, training in second_model] == [row.training for row in of_method]


def test_the_costs_of_the_text_follow_from_those_of_the_tables(rows: list[Comparison]) -> None:
    short, uniform_90, uniform_95, pair, top_kast = (row for row in rows if row.where == "Section 4")
    # 32 dense epochs, at P1's own share of a sparse one; two runs' last phases of 15 epochs
    assert f"{0.32 + 0.68 * 0.18:.2f}x" == short.training
    assert f"{0.58 + 0.15:.2f}x" == pair.training
    assert (top_kast.ours_training, top_kast.verdict) == (top_kast.training, "reproduced")
    # an upper bound: P1 leaves out what is zero in dense phases
    for row, ours in ((uniform_90, 0.41), (uniform_95, 0.37)):
        assert float(row.ours_training[:-1]) == ours
        assert ours - 0.03 < float(row.training[:-1]) < ours


def test_the_tables_fit_a_terminal_and_say_what_is_not_reproduced(
    rows: list[Comparison], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(published, "compare", lambda: rows)
    published.main()
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert [line[0] for line in lines if "resnet50;" in line or "mobilenet_v1;" in line] == ["Table"] * 3 + ["Section"]
    assert ["dense", "0", "8.2", "8.2", "ABC", "3.14", "3.14", "A", "reproduced"] in lines
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    assert sum(line[-1] in ("reproduced", "learned") or line[-2:] == ["in", "part"] for line in lines if line) == 38
    assert all(f"{verdict}: {meaning}" in printed.err for verdict, meaning in VERDICTS.items())
    assert "Top-KAST: no one convention gives its four rows" in printed.err
