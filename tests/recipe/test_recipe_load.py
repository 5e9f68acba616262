"""Loading a recipe: what it becomes, and what is said of each thing that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.optim import SGDBlock
from acdc_cli.recipe.kinds import method_config, methods
from acdc_cli.recipe.load import block_of, from_dict, load, resolved_yaml

GOOD = """\
name: foo
epochs: 100
model:
  name: resnet20
data:
  name: demo
  batch_size: 64
optim:
  name: sgd
  lr: 0.1
  schedule:
    name: linear
sparsity:
  method: acdc
  target: 0.9
"""
TOP = (
    "extends, name, epochs, seed, device, threads, precision, compile, channels_last, deterministic, "
    "eval_every, fork, sync_bn, model, data, task, "
    "optim, sparsity, ema, track, checkpoint, distributed"
)
SGD = (
    "name, lr, lr_batch, weight_decay, decay_norm_and_bias, schedule, clip_norm, nan_patience, accumulate, momentum, "
    "nesterov"
)
ACDC = ", ".join(method_config("acdc").model_fields)
METHOD_NAMES = f"{', '.join(methods()[:-1])} or {methods()[-1]}"
OPTIMISERS = "adamw, lamb, lars or sgd"
TARGET = "expected a number of at least 0 and below 1"
LENGTH = "expected a whole number of at least 0 or a share of the run such as 10%"
NAME = "expected a name of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"


def refusal(text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    Path("foo.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load("foo.yaml", overrides)
    return str(error.value).split("\n")


def test_a_recipe_becomes_typed_blocks(in_tmp: Path) -> None:
    Path("foo.yaml").write_text(GOOD)
    recipe = load("foo.yaml")
    assert isinstance(recipe.optim, SGDBlock)
    assert recipe.optim.lr == 0.1
    assert recipe.as_dict()["sparsity"]["warmup_epochs"] == "10%"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # unknown keys, at every level
        ("epochs: 100", "epochs: 100\nlr: 3", [f"3: lr: unknown key; did you mean optim.lr? (allowed: {TOP})"]),
        ("epochs: 100", "epochs: 100\nextend: a", [f"3: extend: unknown key; did you mean extends? (allowed: {TOP})"]),
        ("  lr: 0.1", "  lr: 0.1\n  zzz: 1", [f"11: optim.zzz: unknown key (allowed: {SGD})"]),
        (
            "  target: 0.9",
            "  tarjet: 0.9",
            [
                f"13: sparsity.target: missing; {TARGET}",
                f"15: sparsity.tarjet: unknown key; did you mean target? (allowed: {ACDC})",
            ],
        ),
        (
            "  batch_size: 64",
            "  batch_size: 64\n  resolution: [{since: 0, size: 3}, 4]",
            ["8: data.resolution[1]: expected a block with at least since, size, found 4"],
        ),
        # augmentation
        (
            "  batch_size: 64",
            "  batch_size: 64\n  augmentation: {policy: tivial, mixp: 1}",
            [
                '8: data.augmentation.policy: expected rand or trivial, found "tivial"; did you mean trivial?',
                "8: data.augmentation.mixp: unknown key; did you mean mixup? "
                "(allowed: policy, erasing, mixup, cutmix, repeats)",
            ],
        ),
        (
            "  batch_size: 64",
            "  batch_size: 64\n  augmentation: {policy: trivial-m3}",
            ["8: data.augmentation.policy: trivial takes nothing after its name, found -m3"],
        ),
        (
            "  batch_size: 64",
            "  batch_size: 64\n  augmentation: {policy: rand-m7-x1}",
            [
                "8: data.augmentation.policy: rand takes parts such as m7 (strength), n2 (operations), p0.5 "
                "(probability of each), mstd0.5 (spread of the strength), mmax10 and inc1 (stronger with m), joined by "
                "dashes, found x1"
            ],
        ),
        (
            "epochs: 100",
            "epochs: 100\ntask: {target_threshold: 0.2}",
            ["3: task.target_threshold: needs loss: binary; set it, or remove target_threshold"],
        ),
        (
            "epochs: 100",
            "epochs: 100\ntask: {name: multilabel, loss: softmax}",
            ["3: task.loss: multilabel has the loss binary, found softmax"],
        ),
        ("resnet20", "resnet20\n  code: abc", ["5: model.code: resnet20 is no file; leave it out, or set name: "
         "FILE.py:FUNCTION"]),
        ("target: 0.9", "target: 0.9\ncheckpoint: {every_epochs: 0}", ["16: checkpoint.every_epochs: expected a whole "
         "number above 0, found 0"]),
        # shares are no percentages
        ("0.9", "1.0", [f"15: sparsity.target: {TARGET}, found 1.0"]),
        ("0.9", "'0.9'", [f'15: sparsity.target: {TARGET}, found "0.9"; write 0.9 without quotes']),
        ("0.9", "true", [f"15: sparsity.target: {TARGET}, found true"]),
        ("0.9", "{high: 0.9}", [f"15: sparsity.target: {TARGET}, found a block with the keys high"]),
        ("0.9", "1e999", [f"15: sparsity.target: {TARGET}, found Infinity"]),
        # whole numbers
        ("100", "1e2", ["2: epochs: expected a whole number above 0, found 100.0; write 100"]),
        ("100", "0", ["2: epochs: expected a whole number above 0, found 0"]),
        ("batch_size: 64", "batch_size: 6 4", ['7: data.batch_size: expected a whole number above 0, found "6 4"']),
        # text
        ("resnet20", "50", ['4: model.name: expected text, found 50; put it in quotes: "50"']),
        ("name: foo", "name: a b", [f'1: name: {NAME}, found "a b"']),
        # kinds
        ("  name: sgd\n", "", [f"8: optim.name: missing; expected {OPTIMISERS}"]),
        ("name: linear", "name: 3", ["12: optim.schedule.name: expected cosine, linear or step, found 3"]),
        ("    name: linear", "    end: 0", ["11: optim.schedule.name: missing; expected cosine, linear or step"]),
        ("acdc", "[acdc]", [f'14: sparsity.method: expected {METHOD_NAMES}, found ["acdc"]']),
        ("  method: acdc\n", "", [f"13: sparsity.method: missing; expected {METHOD_NAMES}"]),
        # between keys and between blocks
        ("64", "64\n  crop_scale: [1, 0.5]", ["8: data.crop_scale: the smaller number comes first, found [1.0, 0.5]"]),
        ("linear", "linear\n    warmup_epochs: 100", ["13: optim.schedule.warmup_epochs: the peak would come at "
         "epoch 100, but there are 100 epochs; make it earlier"]),
        ("0.1", "0.1\n  nesterov: true\n  momentum: 0.0", ["11: optim.nesterov: needs momentum, which is 0 "
         "here; set momentum, or nesterov: false"]),
        ("target: 0.9", "target: 0.5\n  pattern: 2:4\n  distribution: erk", ["17: sparsity.distribution: 2:4 fixes the "
         "sparsity of every layer at 0.5, and erk gives each its own; leave one of them out"]),
        ("target: 0.9", "target: 0.5\n  pattern: 2:4\n  layers: {fc: 0.9}", ["17: sparsity.layers: 2:4 fixes the "
         "sparsity of every layer at 0.5, so none can have its own; leave one of them out"]),
        ("acdc\n  target: 0.9", "gmp\n  target: 0.5\n  pattern: 2:4", ["16: sparsity.pattern: 2:4 has a single "
         "sparsity, but gmp reaches its target in steps; use another method, such as acdc, or another pattern"]),
        ("name: sgd", "name: adamw\n  betas: [0.9, 1.0]", [f"10: optim.betas[1]: {TARGET}, found 1.0"]),
    ],
)  # fmt: skip
def test_what_is_said_of_a_mistake_in_a_file(in_tmp: Path, old: str, new: str, said: list[str]) -> None:
    assert old in GOOD
    places = [f"foo.yaml:{line}" if line[0].isdigit() else f"foo.yaml: {line}" for line in said]
    assert refusal(GOOD.replace(old, new, 1)) == places


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("precision=on", 'expected auto, bf16, fp16, tf32 or fp32, found "on"'),
        ("precision=bf61", 'expected auto, bf16, fp16, tf32 or fp32, found "bf61"; did you mean bf16?'),
        ("precision=true", "expected auto, bf16, fp16, tf32 or fp32, found true"),
        (
            "compile=on",
            'expected auto, off, default, reduce-overhead, max-autotune, true or false, found "on"; write true',
        ),
        ("channels_last=No", 'expected true or false, found "No"; write false'),
        ("model.blurpool=1", "expected true or false, found 1"),
        ("seed=1.0", "expected a whole number of at least 0 and below 9.22337e+18, found 1.0; write 1"),
        ("data.workers=many", 'expected a whole number of at least 0 or null, found "many"'),
        ("data.flip=50", "expected a number from 0 to 1, found 50; it is a share: 0.5, not 50"),
        ("data.resolution=big", "expected a whole number above 0, a list, each a block with at least since, size or a "
         'block with at least start_size, end_size, end, found "big"'),
        ("data.resolution=[]", "the steps must begin with `since: 0` and rise"),
        ("data.crop_scale=[1]", "expected a list of 2, each a number above 0, found [1]"),
        ("data.crop_scale=[1, 2, 3]", "expected a list of 2, each a number above 0, found [1, 2, 3]"),
        ("data.crop_scale=0.1", "expected a list of 2, each a number above 0, found 0.1"),
        ("model.options.a=[1]", "expected true, false, a whole number, a number or text, found [1]"),
        ("optim=sgd", f'expected a block whose name is {OPTIMISERS}, found "sgd"'),
        ("optim.lr=fast", 'expected a number above 0, found "fast"'),
        ("optim.lr=0", "expected a number above 0, found 0"),
        ("sparsity=acdc", f'expected a block whose method is {METHOD_NAMES}, found "acdc"'),
        ("sparsity.warmup_epochs=-1", f"{LENGTH}, found -1"),
        ("sparsity.warmup_epochs=10 %", f'{LENGTH}, found "10 %"'),
        ("sparsity.warmup_epochs=2.0", f"{LENGTH}, found 2.0; write 2"),
        ("sparsity.period_epochs=1", "expected a whole number of at least 2 or null, found 1"),
        ("sparsity.keep_dense=first", 'expected a list, each text, found "first"'),
        ("sparsity.pattern=4", "expected unstructured, N:M such as 2:4, or blocks such as block4, found 4; put it in "
         'quotes: "4"'),
        ("sparsity.pattern=block1", "expected unstructured, N:M such as 2:4, or blocks such as block4, found "
         '"block1"'),
        ("sparsity.distribution=ekr", 'expected global, uniform or erk, found "ekr"; did you mean erk?'),
        ("sparsity.layers=0.98", "expected a block of keys, found 0.98"),
        ("track.tags=[a, 1]", 'track.tags[1]: expected text, found 1; put it in quotes: "1"'),
    ],
)  # fmt: skip
def test_what_is_said_of_a_mistake_on_the_command_line(in_tmp: Path, override: str, said: str) -> None:
    assert refusal(GOOD, (override,)) == [f"--set {override.partition('=')[0]}: {said}"]


RAMP = "start_size: 160, end_size: 192"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "data.resolution={start_size: 160, end_size: 190, end: 3}",
            "data.resolution.end_size: 190 is not a multiple of step, 32; change one of them",
        ),
        (f"data.resolution={{{RAMP}, end: 30 %}}", f'data.resolution.end: {LENGTH}, found "30 %"'),
        (
            f"data.resolution={{{RAMP}, begin: 30, end: 20%}}",
            "data.resolution.end: the ramp begins at epoch 30 and ends at epoch 20; it must end later",
        ),
        (
            f"data.resolution={{{RAMP}, end: 101}}",
            "data.resolution.end: the ramp would end at epoch 101, but the run has 100 epochs; make it earlier",
        ),
        ("ema={decay: 1.0}", f"ema.decay: {TARGET}, found 1.0"),
        (
            "ema={decay: 0.9, begin: 100%}",
            "ema.begin: the average would begin at epoch 100, but the run has 100 epochs; make it earlier",
        ),
        ("ema={}", f"ema.decay: missing; {TARGET}"),
    ],
)
def test_what_is_said_of_a_mistake_within_a_block_of_the_command_line(in_tmp: Path, override: str, said: str) -> None:
    assert refusal(GOOD, (override,)) == [f"--set {override.partition('=')[0]}: {said}"]


@pytest.mark.parametrize("override", ["=3", ".lr=3", ""])
def test_an_override_is_a_key_and_a_value(in_tmp: Path, override: str) -> None:
    [said] = refusal(GOOD, (override,))
    assert said.startswith(f"--set {override}: expected KEY=VALUE, ")


def test_a_block_of_overrides_alone_is_told_of_a_key_that_is_given_twice() -> None:
    with pytest.raises(RecipeError, match=r"^--set options: a: given twice"):
        block_of(ModelBlock, ["name=net", "options={a: 1, a: 2}"], "analyze x")
    assert block_of(ModelBlock, ["name=net", "options.a=2"], "analyze x") == ModelBlock(name="net", options={"a": 2})


@pytest.mark.parametrize(
    ("name", "shown"),
    [("language/bert_glue_dense", {"length": 128}), ("language/kjv_90", {"val_length": 64})],
)
def test_an_exported_model_of_texts_sees_its_lengths(name: str, shown: dict[str, int]) -> None:
    data = load(name).data
    assert data.shown() == shown
    assert data.settled(7) == {}


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(in_tmp: Path) -> None:
    text = GOOD.replace("epochs: 100", "epochs: 101").replace("64", "none").replace("sgd", "sdg").replace("foo", "[]")
    said = refusal(text, ("seed=-1", "sede=2"))
    assert [line.split(": ")[:2] for line in said[:4]] == [
        ["foo.yaml:1", "name"],
        ["foo.yaml:7", "data.batch_size"],
        ["foo.yaml:9", "optim.name"],
        ["foo.yaml:13", "sparsity.sparse_epochs"],
    ]
    assert [line.partition(": ")[0] for line in said[4:]] == ["--set seed", "--set sede"]


def test_a_sparsity_of_a_layers_own_is_a_share_like_the_target(in_tmp: Path) -> None:
    block = GOOD.replace("target: 0.9", 'target: 0.9\n  layers: {"layer4.*": 98, fc: 0.5}')
    assert refusal(block) == [f"foo.yaml:16: sparsity.layers.layer4.*: {TARGET}, found 98; it is a share: 0.98, not 98"]
    Path("foo.yaml").write_text(block.replace("98", "0.98"))
    assert load("foo.yaml").as_dict()["sparsity"]["layers"] == {"layer4.*": 0.98, "fc": 0.5}


def test_a_pattern_needs_no_quotes(in_tmp: Path) -> None:
    Path("foo.yaml").write_text(GOOD.replace("target: 0.9", "target: 0.5\n  pattern: 2:4"))
    assert load("foo.yaml").as_dict()["sparsity"]["pattern"] == "2:4"
    assert load("foo.yaml", ["sparsity.pattern=1:2"]).as_dict()["sparsity"]["pattern"] == "1:2"


def test_phases_that_do_not_fit_are_an_error_of_the_recipe(in_tmp: Path) -> None:
    (said,) = refusal(GOOD.replace("  target: 0.9", "  target: 0.9\n  sparse_epochs: 7"))
    assert said.startswith("foo.yaml:16: sparsity.sparse_epochs: ")


def test_plain_values_are_validated_the_same_way(in_tmp: Path) -> None:
    Path("foo.yaml").write_text(GOOD)
    recipe = load("foo.yaml")
    assert from_dict(recipe.as_dict(), "model.safetensors") == recipe
    with pytest.raises(RecipeError) as error:
        from_dict(recipe.as_dict() | {"epochs": 0}, "model.safetensors")
    assert str(error.value).startswith("model.safetensors: epochs: expected ")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["2:4", "1e-4", "off", "null", "1"]
)
SHARE = st.floats(0, 1)
SCHEDULES = st.fixed_dictionaries(
    {"name": st.sampled_from(["linear", "cosine"])},
    optional={"warmup_epochs": st.floats(0, 0.5), "warmup_start": SHARE, "end": SHARE},
) | st.fixed_dictionaries({"name": st.just("step"), "milestones": st.lists(st.integers(1, 9))})
SHARED = {"lr": st.floats(1e-300, 1e300), "schedule": SCHEDULES}
OPTIMS = st.fixed_dictionaries(
    SHARED | {"name": st.just("sgd")}, optional={"momentum": st.floats(0.001, 0.999), "nesterov": st.booleans()}
) | st.fixed_dictionaries(
    SHARED | {"name": st.just("adamw")}, optional={"betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2)}
)
METHODS = st.just({"method": "dense"}) | st.fixed_dictionaries(
    {"method": st.just("gmp"), "target": st.floats(0, 0.999)},
    optional={
        "keep_dense": st.lists(TEXT, max_size=3),
        "distribution": st.sampled_from(["global", "uniform", "erk"]),
        "pattern": st.sampled_from(["unstructured", "block4"]),
    },
)
RECIPES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
        "epochs": st.integers(10, 10**6),
        "model": st.fixed_dictionaries(
            {"name": TEXT},
            optional={
                "weights": st.none() | TEXT,
                "options": st.dictionaries(TEXT, st.booleans() | st.integers(-9, 9) | SHARE | TEXT, max_size=3),
            },
        ),
        "data": st.fixed_dictionaries(
            {"name": TEXT, "batch_size": st.integers(1, 4096)},
            optional={
                "flip": SHARE,
                "resolution": st.sampled_from(
                    [
                        [{"since": 0, "size": 160}, {"since": 0.8, "size": 192}],
                        {"start_size": 160, "end_size": 192, "end": "100%"},
                    ]
                ),
            },
        ),
        "optim": OPTIMS,
        "sparsity": METHODS,
    },
    optional={"compile": st.booleans(), "track": st.fixed_dictionaries({"tags": st.lists(TEXT, max_size=3)})},
)


@given(RECIPES)
def test_a_resolved_recipe_loads_as_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    recipe = from_dict(values, "here")
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(resolved_yaml(recipe), encoding="utf-8", newline="")
    assert load(path) == recipe
    assert resolved_yaml(load(path)) == resolved_yaml(recipe)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TOP.split(", ")) | TEXT, inner, max_size=3)
    ),
    max_leaves=6,
)
SPOTS = [
    (*block, key)
    for block, keys in {
        (): TOP.split(", ")[1:],
        ("model",): ["name", "weights", "options"],
        ("data",): ["name", "batch_size", "resolution", "crop_scale", "workers"],
        ("optim",): SGD.split(", "),
        ("optim", "schedule"): ["name", "warmup_epochs", "milestones"],
        ("sparsity",): ACDC.split(", "),
    }.items()
    for key in keys
]


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(SPOTS), ANYTHING)
def test_whatever_stands_anywhere_is_a_recipe_or_told_in_our_own_words(spot: tuple[str, ...], value: Any) -> None:
    values: dict[str, Any] = yaml.safe_load(GOOD)
    block = values
    for key in spot[:-1]:
        block = block[key]
    block[spot[-1]] = value
    try:
        from_dict(values, "here")
    except RecipeError as error:
        for line in str(error).split("\n"):
            assert line.startswith("here: ")
            assert not any(foreign in line for foreign in ("Input", "valid ", "constrained", "dictionary", "union"))
