from __future__ import annotations

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
