"""What a stranger sees first: README, the pages that are generated, the files that a public project has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from acdc_cli import __version__, api
from acdc_cli.recipe.blocks.sparsity import PrunedBlock, SparsityBlock, TargetBlock
from acdc_cli.recipe.kinds import DATA_BLOCKS, method_config, methods
from acdc_cli.recipe.schema import Recipe
from scripts import docs_hooks

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def _blocks(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The blocks within an annotation; `[]` before those of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    for inner in get_args(annotation):
        for mark, block in _blocks(inner):
            yield ("[]" if getattr(annotation, "__origin__", None) is list else mark), block


def _keys(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in block.model_fields.items():
        yield f"{prefix}{name}"
        for mark, inner in _blocks(field.annotation):
            yield from _keys(inner, f"{prefix}{name}{mark}.")


def test_every_recipe_key_of_the_schema_stands_on_the_page() -> None:
    page = docs_hooks.keys()
    keys = {*_keys(Recipe), *_keys(PrunedBlock, "sparsity."), *_keys(TargetBlock, "sparsity.")}
    for block in DATA_BLOCKS.values():
        keys |= {*_keys(block, "data.")}
    assert {"name", "data.resolution[].since", "optim.schedule.milestones", "sparsity.pattern", "ema.decay"} <= keys
    assert [key for key in sorted(keys) if f"\n| `{key}` | " not in page] == []


@pytest.fixture(scope="module")
def method_pages() -> str:
    return docs_hooks.method_pages()


@pytest.mark.parametrize("method", methods())
def test_a_methods_section_has_its_equation_keys_and_paper_or_is_a_baseline(method: str, method_pages: str) -> None:
    _, _, section = method_pages.partition(f"## `{method}`")
    section, _, _ = section.partition("\n## ")
    shared = {*SparsityBlock.model_fields, *PrunedBlock.model_fields, *TargetBlock.model_fields}
    own = set(method_config(method).model_fields) - shared
    assert [key for key in sorted(own) if f"\n| `sparsity.{key}` | " not in section] == []
    before, _, _ = section.partition("\n| key |")
    assert method in ("dense", "static") or re.search(r"\S (=|<-) \S", before)
    assert method in ("dense", "static", "acdc") or "https://arxiv.org/abs/" in section
    assert "Recipes: `" in section


def test_the_api_page_documents_everything_that_the_api_defines() -> None:
    page = docs_hooks.api_page()
    assert [name for name in api.__all__ if name[0].islower() and f"### `{name}`" not in page] == []
    assert "#### `step`" in page


def test_a_marker_that_names_nothing_is_an_error() -> None:
    with pytest.raises(KeyError):
        docs_hooks.on_page_markdown("<!-- generated: nonsense -->")


def test_readme_is_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/**/*.md"))],
)
def test_relative_links_exist(page: str) -> None:
    path = ROOT / page
    assert [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()] == []


def test_every_promise_of_reliability_names_tests_that_exist() -> None:
    rows = [
        line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if "test_" in line and line[0] == "|"
    ]
    assert len(rows) > 20
    for row in rows:
        file = ""
        for quoted in re.findall(r"`([\w./]+)`", row.split("|")[-2]):
            if quoted.endswith(".py"):
                file = (ROOT / "tests" / quoted).read_text()
            else:
                assert re.search(rf"def test_\w*{quoted}", file), quoted


def test_every_page_of_the_navigation_exists() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = re.findall(r": (\S+\.md)$", text, re.MULTILINE)
    assert len(pages) > 15
    assert [page for page in pages if not (ROOT / "docs" / page).exists()] == []


def test_the_citation_names_both_papers_and_the_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [reference["url"].rpartition("/")[2] for reference in citation["references"]] == ["2106.12379", "2308.02060"]
    assert citation["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_no_ten_words_of_a_message_stand_in_two_test_files() -> None:
    """One test words a message whole; others look for the key or the number that they are about."""
    first: dict[str, Path] = {}
    twice = set()
    for file in (ROOT / "tests").rglob("*.py"):
        for outer in (node for node in ast.walk(ast.parse(file.read_text())) if not isinstance(node, ast.Expr)):
            for node in ast.iter_child_nodes(outer):
                words = node.value.split() if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
                parts = [" ".join(words[start : start + 10]) for start in range(len(words) - 9)]
                twice |= {(part, file.name) for part in parts if first.setdefault(part, file) != file}
    # set-up, such as a recipe, has no five plain words in a row
    assert [(part, name) for part, name in twice if re.search(r"([a-z]+ ){5}", part)] == []
