"""The YAML of recipes: scalars mean what they say, every value knows its line, slips are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.syntax import dump, read_file, read_value

SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "2:4",
        "1e-4",
        "on",
        "off",
        "yes",
        "null",
        "~",
        "<<",
        "true",
        "0x1F",
        "1_000",
        "10%",
        "",
        "- a",
        "a: b",
        "#",
        "1.",
        "=",
    ]
)
VALUES = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


def value(text: str) -> Any:
    return read_value(text, "here")[0].plain()


def in_file(folder: Path, text: str) -> Path:
    path = folder / "foo.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2:4", "2:4"),
        ("[2:4, 4:8]", ["2:4", "4:8"]),
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ("10%", "10%"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2021-06-23", "2021-06-23"),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("{on: 1, 2: b}", {"on": 1, "2": "b"}),
        ("ResNet: {a: 1}", {"ResNet": {"a": 1}}),
    ],
)
def test_a_scalar_means_what_it_says(text: str, meant: Any) -> None:
    assert value(text) == meant
    assert type(value(text)) is type(meant)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
@example({"since": 1e-05, "large": 1e16, "folded": "a long text " * 20, "lines": "a\n\n b\t\n"})
def test_what_is_dumped_reads_back_the_same(values: dict[str, Any]) -> None:
    assert value(dump(values)) == values


@given(st.dictionaries(st.text("abc", min_size=1), SCALARS | TEXT, max_size=4))
def test_any_other_yaml_reader_reads_what_is_dumped(values: dict[str, Any]) -> None:
    assert yaml.safe_load(dump(values)) == values


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    path = in_file(tmp_path, "a: 1\n\nb:\n  c:\n  - x\n  - d: [\n      1,\n      2]\n")
    root, _ = read_file(path)
    lines = {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 5,
        ("b", "c", 1, "d"): 6,
        ("b", "c", 1, "d", 1): 8,
        ("b", "not", "there"): 3,
    }
    assert {keys: root.nearest(keys).place.line for keys in lines} == lines


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    root, problems = read_file(
        in_file(tmp_path, "base: &base {x: 1, y: 2}\nmore: &more {y: 3, z: 4}\nall:\n  y: 0\n  <<: [*base, *more]\n")
    )
    assert root.plain()["all"] == {"x": 1, "y": 0, "z": 4}
    assert root.nearest(("all", "x")).place.line == 1
    assert problems == []


def test_a_duplicate_key_names_both_lines(tmp_path: Path) -> None:
    path = in_file(tmp_path, "optim:\n  lr: 1\n  momentum: 0\n  lr: 2\n")
    root, problems = read_file(path)
    assert [str(problem) for problem in problems] == [f"{path}:4: optim.lr: given twice, first at {path}:2"]
    assert root.plain() == {"optim": {"lr": 1, "momentum": 0}}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: b: c", 1, "mapping values are not allowed here; put a value that holds a colon in quotes, or fix the"),
        ("a:\n\t- b", 2, "found character '\\t' that cannot start any token; indent with spaces, not with tabs"),
        ("a: @x", 1, "found character '@' that cannot start any token; put the value in quotes"),
        (
            "a: 1\nb: [1\nc: 2",
            3,
            "expected ',' or ']', but got ':' in the text that begins on line 2; a bracket is not closed",
        ),
        (
            "a:\n  b: 1\n c: 2",
            3,
            "expected <block end>, but found '<block mapping start>' in the text that begins on line 1; the",
        ),
        ("---\na: 1\n---\nb: 1", 3, "expected a single document in the stream, but found another document"),
        ("a: !!int x", 1, "'x' is not a valid int"),
        ("? [a]\n: 1", 1, "a key must be text"),
    ],
)
def test_broken_yaml_names_the_line_and_the_way_out(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = in_file(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}:{line}: not valid YAML: {message}")


@pytest.mark.parametrize(("text", "kind"), [("", "nothing"), ("# a", "nothing"), ("- a", "a list"), ("a b", "'a b'")])
def test_a_recipe_that_is_no_mapping_is_refused(in_tmp: Path, text: str, kind: str) -> None:
    in_file(in_tmp, text)
    with pytest.raises(RecipeError, match=r"^foo.yaml: a recipe is a block of keys") as error:
        read_file(in_tmp / "foo.yaml")
    assert str(error.value).endswith(f"found {kind}")


def test_a_file_that_is_no_text_is_refused(in_tmp: Path) -> None:
    (in_tmp / "model.pt").write_bytes(b"\x80\x02\xff")
    with pytest.raises(RecipeError, match=r"^model.pt: not a recipe, or not saved as UTF-8"):
        read_file(in_tmp / "model.pt")
