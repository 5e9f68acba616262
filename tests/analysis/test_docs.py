"""The examples of docs/analyses.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "analyses.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def examples() -> list[str]:
    # memorisation's is about a run with wrong labels, of which its own tests are
    return [name for name in SECTIONS if name != "memorisation"]


@pytest.mark.parametrize("name", examples())
def test_the_example_runs(name: str, trained: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "corruptions":
        pytest.importorskip("imagecorruptions")
    (in_tmp / "runs").mkdir()
    (in_tmp / "runs/demo").symlink_to(trained)
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    exec(compile(code, f"docs/analyses.md, {name}", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_analysis_is_documented_with_a_figure_that_is_there() -> None:
    from acdc_cli.recipe.discovery import ANALYSES

    assert set(SECTIONS) == set(ANALYSES.names())
    for name, text in SECTIONS.items():
        figures = re.findall(r"!\[[^]]+\]\((analyses/[\w-]+\.svg)\)", text)
        assert figures, name
        assert all((DOCS / figure).exists() for figure in figures)
