from __future__ import annotations

import json

from command import Acdc


def test_the_papers_cost_columns_stand_beside_ours_without_a_recipe(acdc: Acdc) -> None:
    result = acdc("plan", "--tables")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines if line[:1] == ["Table"]] == [["Table", "1:"], ["Table", "2:"], ["Table", "3:"]]
    assert ["dense", "0", "8.2", "8.2", "3.14", "3.14", "reproduced", "under", "A"] in lines
    assert ["STR", "97.78", "0.02x", "-", "-", "-", "not", "reproducible"] in lines
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "STR: its sparsity is learned" in result.stderr


def test_programs_read_the_rows(acdc: Acdc) -> None:
    (first, *others) = json.loads(acdc("plan", "--tables", "--json").stdout)["rows"]
    assert (first["method"], first["training"], first["ours_training"]) == ("dense", "3.14", "3.14")
    assert len(others) == 32


def test_the_tables_are_of_no_recipe(acdc: Acdc) -> None:
    for words in (["plan"], ["plan", "demo", "--tables"]):
        refused = acdc(*words)
        assert refused.exit_code == 2
        assert "give either a recipe or --tables" in " ".join(refused.stderr.split())
