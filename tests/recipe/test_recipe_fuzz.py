"""Whatever stands in a recipe's file or behind `--set`: a valid recipe comes of it, or a RecipeError, and soon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from acdc_cli.errors import RecipeError
from acdc_cli.recipe import shipped
from acdc_cli.recipe.inherit import draft
from acdc_cli.recipe.load import load, resolved_yaml

Draw = Callable[[st.SearchStrategy[Any]], Any]
Block = list[tuple[str, Any]]
"""A mapping as pairs, in which a key can stand twice; the values are blocks, or YAML as it is written."""


@dataclass(frozen=True)
class Case:
    files: dict[str, bytes]
    """`a.yaml` is loaded."""
    overrides: list[str]


TEXTS = [shipped.find(name).read_bytes() for name in shipped.names()]
WHOLE = [draft(name, ()).root.plain() for name in shipped.names()]
"""Every shipped recipe with what it extends."""
FILES = ("a.yaml", "b.yaml", "c.yaml")
PLAIN = st.sampled_from(
    [
        *("~", "true", "off", "0", "-1", "1", "3", "0.5", "1e-4", "1e400", "-0.0", "1e-320", ".5", "5.", "2:4", "0:0"),
        *("block4", "10%", "101%", "-5%", ".inf", "1_000", "0x1F", "9" * 30, "9" * 400, "1000001", "100000"),
        *(
            "2021-06-23",
            "é",
            "٣",
            "日本",
            '"\\x1b[31m"',
            '"a\\nb"',
            "a" * 300,
            "[]",
            "{}",
            "[[]]",
            "[1, 2, 3]",
            "[0.5]",
        ),
        *("[~]", "{a: 1}", "{a: {b: {c: 1}}}", "{1: 2, true: 3}", "[{since: 0, size: 32}]", "[{since: 0.5, size: 1}]"),
        *("acdc", "gmp", "dense", "lottery", "str", "adamw", "sgd", "linear", "step", "cosine", "global", "erk"),
        *("first", "[first, last]", "!!str 3", "&x 1", "{<<: {a: 1}}", "{lr: 1}", "{method: dense}", "{name: step}"),
    ]
)
BROKEN = st.sampled_from(
    [
        *(
            "",
            "9" * 5000,
            "'",
            '"',
            '"\\ud800"',
            '"\\U00110000"',
            "\u2028",
            "\x85",
            "\ufeff",
            "a: b",
            "[" * 30,
            "}",
            "]",
        ),
        *("[" * 15 + "]" * 15, "*x", "&x [*x]", "&x {<<: *x}", "<<", "{<<: 3}", "!!int x", "!!float .nan", "!x", "? a"),
        *("!!python/object:os.system x", "!!set {a}", "- a", "|", ">-", "@", "`", "%", "#", "---", "..."),
    ]
)
ODD = st.one_of(PLAIN, PLAIN, PLAIN, PLAIN, BROKEN)
KEYS = st.sampled_from(sorted({key for recipe in WHOLE for key in recipe})) | st.sampled_from(
    ["extends", "lr", "target", "epohcs", "<<", "~", "2", "ключ", "a b", "''", "? x", "[1]", "momentum", "", "a" * 2000]
)
TOKENS = st.sampled_from(
    [*":-?{}[],#&*!|>'\"%@`~<= \t\n\r\0\x1b\x7f\x85\u2028\ufeffé", "\n  ", ": ", "- ", "<<: ", "*a", "&a ", "---\n"]
)


def _pairs(value: Any) -> Any:
    return [(key, _pairs(inner)) for key, inner in value.items()] if isinstance(value, dict) else _yaml(value)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _written(value: Any, indent: int = 0) -> str:
    if isinstance(value, str):
        return f" {value}\n"
    lines = (f"{' ' * indent}{key}:{_written(inner, indent + 2)}" for key, inner in value)
    return "\n" + "".join(lines)


def _spots(block: Block) -> Iterator[tuple[Block, int]]:
    """Every key's block, and its position there."""
    for at, (_, value) in enumerate(block):
        yield block, at
        if isinstance(value, list):
            yield from _spots(value)


def _paths(recipe: dict[str, Any], around: str = "") -> Iterator[str]:
    for key, value in recipe.items():
        yield f"{around}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{around}{key}.")


PATHS = sorted({path for recipe in WHOLE for path in _paths(recipe)})


def _copy(value: Any) -> Any:
    return [(key, _copy(inner)) for key, inner in value] if isinstance(value, list) else value


@st.composite
def changed_recipes(draw: Draw) -> bytes:
    """A shipped recipe some of whose values, keys and blocks are others, are gone, stand twice or changed places."""
    root = _pairs(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 3))):
        spots = list(_spots(root))
        block, at = spots[draw(st.integers(0, len(spots) - 1))]
        other, there = spots[draw(st.integers(0, len(spots) - 1))]
        key, value = block[at]
        match draw(st.sampled_from(["value", "value", "value", "key", "gone", "twice", "swap", "wrap"])):
            case "value":
                block[at] = (key, draw(ODD))
            case "key":
                block[at] = (draw(KEYS), value)
            case "gone" if len(root) > 1:
                del block[at]
            case "twice":
                block.insert(at, (key, draw(ODD)))
            case "swap":
                # copies, as a block that came to lie in itself would have no end
                ours, theirs = _copy(value), _copy(other[there][1])
                other[there] = (other[there][0], ours)
                block[at] = (key, theirs)
            case "wrap":
                block[at] = (key, [(draw(KEYS), value)])
    return _written(root).encode()


@st.composite
def damaged_texts(draw: Draw) -> bytes:
    """A shipped recipe's file with bytes flipped, cut off, repeated, or YAML's own characters put in."""
    data = bytearray(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        match draw(st.sampled_from(["token", "token", "flip", "cut", "end", "repeat", "indent", "noise"])):
            case "token":
                data[at:at] = draw(TOKENS).encode()
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + length]
            case "end":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 3))
            case "indent":
                line = data.find(b"\n", at) + 1
                data[line:line] = b" " * draw(st.integers(1, 4))
            case "noise":
                data[at : at + length] = draw(st.binary(max_size=12))
    return bytes(data)


WRITTEN = st.builds(lambda data: {"a.yaml": data}, st.one_of(changed_recipes(), changed_recipes(), damaged_texts()))
OVERRIDE = st.one_of(
    st.sampled_from(["seed=3", "optim.lr=1e-3", "sparsity.target=0.5", "sparsity={method: dense}", "track.tags=[a]"]),
    st.builds("{}={}".format, st.sampled_from(PATHS) | KEYS, ODD),
    st.text(max_size=20),
)
PARENT = st.one_of(
    st.sampled_from(["demo", "demo.yaml", "cifar/resnet20_95"]),
    st.sampled_from(FILES),
    st.sampled_from(["nowhere", "../a.yaml", ".", "/", "/dev/zero", "~root", "\0"]) | ODD,
)


@st.composite
def chains(draw: Draw) -> dict[str, bytes]:
    """Three files, each of which extends another, or itself, or something odd, and says a little of its own."""
    files = {}
    for name in FILES:
        own = draw(st.lists(st.tuples(st.sampled_from(PATHS), ODD), max_size=2))
        blocks = [_nested(path.split("."), value) for path, value in own]
        files[name] = _written([("extends", draw(PARENT)), *blocks]).encode()
    return files


def _nested(keys: list[str], value: str) -> tuple[str, Any]:
    return (keys[0], [_nested(keys[1:], value)] if keys[1:] else value)


CASES = st.builds(
    Case,
    files=st.one_of(WRITTEN, WRITTEN, chains()),
    overrides=st.one_of(st.just([]), st.just([]), st.lists(OVERRIDE, min_size=1, max_size=3)),
)


def outcome(case: Case, folder: Path) -> str:
    """`valid` or `refused`; raises whatever else loading raises."""
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    try:
        recipe = load(folder / "a.yaml", case.overrides)
    except RecipeError as refusal:
        lines = str(refusal).split("\n")
        assert 0 < len(lines) <= 21
        assert all(line.isprintable() and 0 < len(line) < 2000 for line in lines), [line[:200] for line in lines]
        return "refused"
    resolved = folder / "resolved.yaml"
    resolved.write_text(resolved_yaml(recipe), encoding="utf-8", newline="")
    assert load(resolved) == recipe
    assert resolved_yaml(load(resolved)) == resolved_yaml(recipe)
    return "valid"


def rarer_fate(cases: int, folder: Path) -> float:
    """The share of the cases that met the rarer of the two fates; each case is checked."""
    fates = Counter[str]()

    @settings(
        max_examples=cases,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.reuse},
        database=None,
    )
    @given(CASES)
    def meet(case: Case) -> None:
        fates[outcome(case, folder)] += 1

    meet()
    return min(fates["valid"], fates["refused"]) / cases


def test_every_recipe_is_valid_or_refused_in_words(in_tmp: Path) -> None:
    assert rarer_fate(60, in_tmp) > 0.02, "the cases are too tame"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_of_20_000_recipes_is_valid_or_refused_in_words(in_tmp: Path) -> None:
    assert rarer_fate(20_000, in_tmp) > 0.02, "the cases are too tame"
