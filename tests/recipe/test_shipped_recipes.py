"""The recipes that come with the package: each loads, says what it is, and follows its paper's protocol."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest

from acdc_cli.cost.conventions import Convention
from acdc_cli.data.known_sentences import known_sentences
from acdc_cli.data.known_sets import known_sets
from acdc_cli.data.known_texts import known_texts
from acdc_cli.errors import RecipeError
from acdc_cli.jobs.run_plan import Plan, plan
from acdc_cli.jobs.setup import keep_dense, on_meta, sparsifier
from acdc_cli.models import build as models
from acdc_cli.recipe import shipped
from acdc_cli.recipe.kinds import method_config
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.recipe.schema import Recipe
from acdc_cli.sparsity.prunable import layers

NAMES = shipped.names()
TOP = [f"resnet50_{kind}" for kind in ("80", "90", "95", "98", "dense")] + ["mobilenetv1_75", "mobilenetv1_90"]
OTHER_METHODS = [
    f"{method}_resnet50_95"
    for method in (
        "deepr",
        "dpf",
        "dsd",
        "gmp",
        "granet",
        "obc",
        "oneshot",
        "rigl",
        "set",
        "snfs",
        "snip",
        "static",
        "synflow",
        "topkast",
    )
]
VARIANTS = [
    *(f"acdc_resnet50_{kind}" for kind in ("2to4", "95_block4", "95_finetune", "95_decompression")),
    *(f"acdc_resnet50_{kind}" for kind in ("95_fraction", "95_uniform", "99_ramp")),
]
REWOUND = ["lottery_resnet50_95"]
"""Methods that train several times over, 100 epochs each time."""
ACDC_PP = [*TOP, *VARIANTS, *OTHER_METHODS, *REWOUND]
STR = ["str_resnet50"]
"""Whose sparsity follows from how it trains, so that it trains as in its own paper."""
WOODFISHER = ["woodfisher_resnet50_95"]
"""Which starts from a trained model, and fine-tunes it as in its own paper."""
LARGE_BATCH = ["resnet50_95_large_batch"]
"""Whose optimiser is not that of the papers."""
P1_ACDC = [
    f"neurips21/{name}"
    for name in (
        *TOP,
        "mobilenetv1_dense",
        "mobilenetv1_90_depthwise_dense",
        "resnet50_50",
        "resnet50_2to4",
        "resnet50_90_both",
        "resnet50_90_finetune",
        "resnet50_90_short_dense",
        "resnet50_90_uniform",
        "resnet50_95_uniform",
        "resnet50_95_first_last_dense",
    )
]
P1_OTHERS = [
    f"neurips21/{name}"
    for name in ("rigl_resnet50_90", "rigl_resnet50_90_erk", "rigl_mobilenetv1_90", "topkast_resnet50_90")
]
P1_STR = ["neurips21/str_resnet50", "neurips21/str_mobilenetv1"]
P1_FROM_DENSE = ["neurips21/gmp_resnet50_80", "neurips21/woodfisher_resnet50_90"]
"""Which prune the dense model as WoodFisher's authors do."""
NEURIPS21 = [*P1_ACDC, *P1_OTHERS, *P1_STR, *P1_FROM_DENSE]
CIFAR10 = [f"neurips21/cifar10_resnet20_{target}" for target in (50, 75, 90, 95)]
CORRUPT = [f"{name}_corrupt_labels" for name in CIFAR10]
CIFAR100 = [f"neurips21/cifar100_wideresnet_{target}" for target in (50, 75, 90, 95)]
NEURIPS21_CIFAR = [*CIFAR10, *CORRUPT, *CIFAR100]
CIFAR = [
    *(f"cifar/{method}_resnet20_90" for method in ("gmp", "oneshot", "rigl", "woodfisher")),
    *(f"cifar/{name}" for name in ("resnet20_90", "resnet20_95", "resnet20_dense", "wideresnet_90")),
]
TABLE4 = [f"neurips21/transformer_xl_{kind}" for kind in ("dense", "80", "90", "80_embed50", "90_embed50")]
GLUE = [f"language/{name}" for name in ("bert_glue_90", "bert_glue_80", "bert_glue_dense", "gmp_bert_glue_90")]
MINILM = ["language/minilm_kjv_90", "language/minilm_kjv_dense"]
SENTENCES = [*GLUE, *MINILM]
LANGUAGE = ["language/kjv_90", *TABLE4, *SENTENCES]
MODERN = [f"modern/resnet50_{recipe}_{kind}" for recipe in ("v2", "a2", "a3") for kind in ("dense", "95")]
"""The trainings of torchvision's and timm's best ResNet-50."""
CELEBA = [f"celeba_resnet18_{target}" for target in ("dense", "95", "98", "99", "99_5")]
DEMO = [
    "demo",
    *(
        f"demo_{method}"
        for method in (
            "corrupt_labels",
            "deepr",
            "dense",
            "dpf",
            "dsd",
            "gmp",
            "granet",
            "lottery",
            "multilabel",
            "obc",
            "oneshot",
            "rigl",
            "set",
            "snfs",
            "snip",
            "static",
            "str",
            "synflow",
            "topkast",
            "woodfisher",
        )
    ),
]


@cache
def read(name: str) -> Recipe:
    """A shipped recipe, read once for all tests."""
    return load(name)


def sparsity(recipe: Recipe) -> dict[str, Any]:
    block: dict[str, Any] = recipe.as_dict()["sparsity"]
    return block


def test_these_recipes_are_shipped() -> None:
    assert len(NAMES) > 0
    assert sorted(NAMES) == sorted(
        ACDC_PP
        + STR
        + WOODFISHER
        + LARGE_BATCH
        + NEURIPS21
        + NEURIPS21_CIFAR
        + CIFAR
        + MODERN
        + CELEBA
        + DEMO
        + LANGUAGE
    )


def test_the_top_level_is_listed_first() -> None:
    assert NAMES[0] == "acdc_resnet50_2to4"
    assert [name.count("/") for name in NAMES] == sorted(name.count("/") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads_and_resolves_to_itself(name: str, tmp_path: Path) -> None:
    recipe = read(name)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert load(resolved) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_names_a_model_and_a_data_set_that_exist(name: str) -> None:
    recipe = read(name)
    assert callable(models.find(recipe.model.name))
    assert recipe.data.name in {**known_sets(), **known_texts(), **known_sentences()}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_what_it_is_in_a_line_of_a_table(name: str) -> None:
    assert 10 < len(shipped.description(shipped.find(name))) < 50


def test_no_two_share_a_run_directory() -> None:
    assert len({read(name).name for name in NAMES}) == len(NAMES)


NUMBERED = [name for name in NAMES if name[-2:].isdigit() and "embed" not in name and name not in STR + P1_STR]


@pytest.mark.parametrize("name", NUMBERED)
def test_the_name_is_the_target(name: str) -> None:
    assert sparsity(read(name))["target"] == int(name[-2:]) / 100


@pytest.mark.parametrize("name", ACDC_PP)
def test_acdc_plus_plus_is_p2s_protocol(name: str) -> None:
    recipe = read(name)
    mobile = name.startswith("mobilenet")
    _, epochs = recipe.sparsity.clock(0, recipe.epochs)
    assert (epochs, recipe.data.batch_size, recipe.task.label_smoothing, recipe.model.blurpool) == (
        100, 1024, 0.1, True,
    )  # fmt: skip
    assert recipe.as_dict()["data"]["resolution"] == [{"since": 0.0, "size": 160}, {"since": 0.8, "size": 192}]
    assert (recipe.data.val_resize, recipe.data.val_crop) == (256, 224)
    optim = recipe.as_dict()["optim"]
    assert optim["schedule"] == {"name": "linear", "warmup_epochs": 2.0, "warmup_start": 0.0001, "end": 0.0}
    assert (optim["name"], optim["momentum"], optim["decay_norm_and_bias"]) == ("sgd", 0.9, False)
    assert (optim["lr"], optim["lr_batch"], optim["weight_decay"]) == (
        (1.024, 1024, 3e-5) if mobile else (0.5, 1024, 1e-4)
    )
    if "dense" not in name:
        kept = ["first", "last", "depthwise"] if mobile else ["first", "last"]
        assert sparsity(recipe)["keep_dense"] == kept
    if "dense" not in name and name not in VARIANTS:
        random_start = name.startswith(("deepr", "rigl", "set", "static"))
        distribution = "erk" if random_start else "uniform" if name.startswith(("snfs", "topkast")) else "global"
        assert sparsity(recipe)["distribution"] == distribution


@pytest.mark.parametrize("name", NEURIPS21)
def test_neurips21_is_p1s_data_and_says_which_item_of_the_paper_it_is(name: str) -> None:
    recipe = read(name)
    assert shipped.description(shipped.find(name)).startswith(
        ("P1, Table ", "P1, Tables ", "P1, Figure ", "P1, section ")
    )
    _, course = recipe.sparsity.clock(0, recipe.epochs)
    assert (course, recipe.data.batch_size, recipe.task.label_smoothing, recipe.model.blurpool) == (
        100, 256, 0.0, False,
    )  # fmt: skip
    assert (recipe.data.resolution, recipe.precision) == (224, "fp16")
    assert recipe.data == load("neurips21/resnet50_90").data


@pytest.mark.parametrize("name", P1_ACDC + P1_OTHERS + P1_STR)
def test_neurips21_is_p1s_protocol(name: str) -> None:
    recipe = read(name)
    optim = recipe.as_dict()["optim"]
    assert optim["schedule"] == {"name": "cosine", "warmup_epochs": 5.0, "warmup_start": 0.0, "end": 0.0}
    assert (optim["lr"], optim["lr_batch"], optim["momentum"]) == (0.256, 256, 0.875)
    assert optim["decay_norm_and_bias"] is True
    assert optim["weight_decay"] == {P1_STR[0]: 2.251757813e-5, P1_STR[1]: 3.751757813e-5}.get(name, 2**-15)
    if sparsity(recipe)["method"] == "acdc":
        assert sparsity(recipe)["warmup_epochs"] == 10


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *((f"neurips21/resnet50_{target}", []) for target in (50, 80, 90, 95, 98)),
        ("neurips21/resnet50_2to4", ["first"]),
        ("neurips21/resnet50_90_uniform", ["first", "last"]),
        ("neurips21/resnet50_95_uniform", ["first", "last"]),
        ("neurips21/resnet50_95_first_last_dense", ["first", "last"]),
        ("neurips21/topkast_resnet50_90", ["first", "last"]),
        ("neurips21/rigl_resnet50_90", ["first"]),
        ("neurips21/rigl_resnet50_90_erk", []),
        ("neurips21/mobilenetv1_90", []),
        ("neurips21/mobilenetv1_90_depthwise_dense", ["first", "depthwise"]),
        ("neurips21/rigl_mobilenetv1_90", ["first", "depthwise"]),
        *((name, []) for name in P1_STR + P1_FROM_DENSE),
    ],
)
def test_p1_prunes_every_layer_but_for_those_it_names(name: str, kept: list[str]) -> None:
    assert sparsity(read(name))["keep_dense"] == kept


def test_2_of_4_prunes_half_of_every_layer_but_the_first() -> None:
    dense, *halved = planned("neurips21/resnet50_2to4").layers
    assert (dense.name, dense.density) == ("conv1", 1)
    assert {layer.density for layer in halved} == {0.5}
    assert halved[-1].name == "fc"


def test_gmp_and_woodfisher_prune_p1s_dense_model_from_5_percent_as_in_its_configuration() -> None:
    for name, target in zip(P1_FROM_DENSE, (0.8, 0.9), strict=True):
        recipe, plan = read(name), planned(name)
        assert sparsity(recipe)["from_checkpoint"] == f"runs/{load('neurips21/resnet50_dense').name}-0"
        optim = recipe.as_dict()["optim"]
        assert (optim["lr"], optim["momentum"], optim["weight_decay"]) == (0.005, 0.9, 1e-4)
        at = [plan.epochs[epoch].sparsity for epoch in (0, 5, 39, 40, 99)]
        cubic = [target - (target - 0.05) * (1 - epoch / 40) ** 3 for epoch in (0, 5, 35)]
        assert at == pytest.approx([*cubic, target, target], abs=1e-6)
        # 0.6 nine times, at 41, 47, …, 89
        assert [plan.epochs[epoch].lr_start for epoch in (0, 40, 41, 99)] == pytest.approx(
            [0.005, 0.005, 0.003, 0.005 * 0.6**9]
        )


P1_PHASES = [10, *range(15, 76, 5), 85, 100]
"""Ends of the phases of P1's runs of 100 epochs: dense, then sparse and dense in turn (P1 4)."""


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("resnet50_90", [], P1_PHASES),
        ("mobilenetv1_75", [], P1_PHASES),
        # its public configuration: pruned at 10, 20, …, 170 and 185, freed at 15, 25, …, 165 and 175
        ("resnet50_90_uniform", ["epochs=200"], [10, *range(15, 176, 5), 185, 200]),
        ("resnet50_90_short_dense", [], [10, *sorted([*range(15, 88, 7), *range(17, 88, 7)]), 100]),
        (
            "resnet50_90_short_dense",
            ["epochs=200", "sparsity.last_sparse_epochs=15"],
            [10, *sorted([*range(15, 186, 7), *range(17, 186, 7)]), 200],
        ),
    ],
)
def test_p1s_phases(name: str, overrides: list[str], expected: list[int]) -> None:
    assert ends(planned(f"neurips21/{name}", *overrides)) == expected


def test_half_of_p1s_epochs_are_dense_and_a_third_with_dense_phases_of_2() -> None:
    for name, dense in (("resnet50_90", 50), ("resnet50_90_short_dense", 32)):
        assert sum(epoch.phase == "dense" for epoch in planned(f"neurips21/{name}").epochs) == dense


def test_the_dense_model_is_fine_tuned_in_the_place_of_the_last_sparse_phase() -> None:
    sparse, tuned = (planned(f"neurips21/resnet50_90{kind}").epochs for kind in ("", "_finetune"))
    assert [epoch.phase for epoch in tuned[85:]] == ["dense"] * 15
    assert sparse[:85] == tuned[:85]
    assert [epoch.lr_start for epoch in sparse] == [epoch.lr_start for epoch in tuned]


@pytest.mark.parametrize(
    ("name", "overrides", "convention", "inference", "training"),
    [
        # GFLOPs and EFLOPs as P1's tables have them; shares of these; conventions as in scripts/published.py
        ("resnet50_dense", [], "A", "8.2", "3.14"),
        ("mobilenetv1_dense", [], "A", "1.1", "0.44"),
        ("rigl_resnet50_90", ["sparsity.target=0.8"], "C", "0.23x", "0.23x"),
        ("rigl_resnet50_90", [], "C", "0.13x", "0.13x"),
        ("rigl_resnet50_90", ["sparsity.target=0.95"], "C", "0.08x", "0.08x"),
        ("rigl_resnet50_90_erk", ["sparsity.target=0.8"], "C", "0.42x", "0.42x"),
        ("rigl_resnet50_90_erk", [], "C", "0.24x", "0.25x"),
        ("rigl_resnet50_90_erk", ["sparsity.target=0.95"], "C", "0.12x", "0.13x"),
        ("topkast_resnet50_90", ["sparsity.target=0.8", "sparsity.backward_sparsity=0.5"], "C", "0.23x", "0.32x"),
        ("topkast_resnet50_90", [], "C", "0.13x", "0.16x"),
        ("topkast_resnet50_90", ["sparsity.target=0.95", "sparsity.backward_sparsity=0.5"], "A", "0.08x", "0.22x"),
        ("topkast_resnet50_90", ["sparsity.target=0.98", "sparsity.backward_sparsity=0.9"], "C", "0.05x", "0.08x"),
    ],
)
def test_recipes_cost_what_p1_prints(
    name: str, overrides: list[str], convention: Convention, inference: str, training: str
) -> None:
    totals = plan(load(f"neurips21/{name}", overrides), convention).totals
    if inference.endswith("x"):
        ours = f"{totals.inference_ratio:.2f}x", f"{totals.train_ratio:.2f}x"
    else:
        ours = f"{float(totals.inference_flops) / 1e9:.1f}", f"{float(totals.train_flops) / 1e18:.2f}"
    assert ours == (inference, training)


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("acdc_resnet50_2to4", {"pattern": "2:4", "target": 0.5, "distribution": "uniform"}),
        ("acdc_resnet50_95_block4", {"pattern": "block4"}),
        ("acdc_resnet50_95_finetune", {"last_phase": "dense_best"}),
        ("acdc_resnet50_95_decompression", {"dense_sparsity": 0.8}),
        (
            "acdc_resnet50_95_fraction",
            {
                "sparse_epochs": None,
                "dense_epochs": None,
                "period_epochs": 10,
                "sparse_fraction": 0.8,
                "last_dense_epochs": 7,
            },
        ),
        ("acdc_resnet50_95_uniform", {"distribution": "uniform"}),
        ("acdc_resnet50_99_ramp", {"target": 0.99, "ramp_from": 0.9}),
    ],
)
def test_a_variant_of_acdc_differs_from_resnet50_95_in_what_its_name_says(name: str, differing: dict[str, Any]) -> None:
    variant, plain = read(name), load("resnet50_95")
    assert variant.as_dict() == plain.as_dict() | {"name": name, "sparsity": sparsity(plain) | differing}


def test_p1s_str_differs_from_strs_own_in_the_label_smoothing() -> None:
    ours, own = load("neurips21/str_resnet50").as_dict(), load("str_resnet50").as_dict()
    assert {key for key in ours if ours[key] != own[key]} == {"name", "precision", "task"}
    assert ours["task"]["label_smoothing"] == 0
    assert sparsity(load("neurips21/str_mobilenetv1"))["s_init"] == -12800


def test_str_trains_as_its_paper_does() -> None:
    ours, theirs = load("str_resnet50").as_dict(), load("neurips21/resnet50_90").as_dict()
    assert ours["sparsity"] == {
        "method": "str", "s_init": -3200.0, "s_decay": None, "keep_dense": [], "from_checkpoint": None,
    }  # fmt: skip
    assert (ours["task"]["label_smoothing"], ours["optim"]["weight_decay"]) == (0.1, 2.251757813e-5)
    assert ours["optim"] | {"weight_decay": 2**-15} == theirs["optim"]
    assert (ours["epochs"], ours["data"]) == (100, theirs["data"])
    assert ours["model"] == theirs["model"] | {"options": {"init": "fan_in", "classifier_bias": False}}


def test_woodfisher_trains_as_its_authors_configuration_says() -> None:
    plan = planned("woodfisher_resnet50_95")
    rates = [epoch.lr_start for epoch in plan.epochs]
    assert [epoch for epoch in range(1, 100) if rates[epoch] != rates[epoch - 1]] == [
        41,
        47,
        53,
        59,
        65,
        71,
        77,
        83,
        89,
    ]
    assert rates[-1] == pytest.approx(0.028 * 0.6**9)
    # 0.95 - 0.9 (1 - t/40)^3: a cubic from 5 %
    assert [plan.epochs[epoch].sparsity for epoch in (0, 4, 5, 20, 39, 40)] == pytest.approx(
        [0.05, 0.05, 0.95 - 0.9 * 0.875**3, 0.95 - 0.9 / 8, 0.95 - 0.9 / 512, 0.95], abs=1e-6
    )


def test_snfs_on_imagenet_has_its_authors_prune_rate() -> None:
    assert sparsity(load("snfs_resnet50_95"))["fraction"] == 0.2


@pytest.mark.parametrize("name", CORRUPT)
def test_wrong_labels_are_all_that_sets_p1s_memorisation_runs_apart(name: str) -> None:
    ours, plain = read(name).as_dict(), load(name.removesuffix("_corrupt_labels")).as_dict()
    assert ours["data"] == plain["data"] | {
        "augment": "none", "flip": 0.0, "corrupt_labels": {"count": 1000, "classes": "all", "seed": 0},
    }  # fmt: skip
    assert ours == plain | {"name": f"{plain['name']}_corrupt_labels", "data": ours["data"]}


DENSE_THEN_SPARSE = [10, 30, 50, 70, 90, 110, 130, 150, 170, 200]
"""Ends of the phases of P1's CIFAR runs: dense, then sparse and dense in turn."""


@cache
def planned(name: str, *overrides: str) -> Plan:
    return plan(load(name, list(overrides)))


def ends(plan: Plan) -> list[int]:
    """Of the phases, the first of which is dense."""
    phases = [epoch.phase for epoch in plan.epochs] + [""]
    last = [number + 1 for number, (phase, after) in enumerate(pairwise(phases)) if phase != after]
    assert [phases[end - 1] for end in last] == ["dense", "sparse"] * (len(last) // 2)
    return last


@pytest.mark.parametrize("name", CIFAR10)
def test_p1s_runs_on_cifar10_are_those_of_its_public_configuration(name: str) -> None:
    recipe, plan = read(name), planned(name)
    target = int(name.split("_")[2]) / 100
    assert ends(plan) == DENSE_THEN_SPARSE
    assert all(
        epoch.sparsity == (pytest.approx(target, abs=1e-5) if epoch.phase == "sparse" else 0) for epoch in plan.epochs
    )
    for epoch in plan.epochs:
        lr = 0.1 if epoch.epoch < 66 else 0.01 if epoch.epoch < 126 else 0.001 if epoch.epoch < 186 else 0.0001
        assert (epoch.lr_start, epoch.lr_end) == (pytest.approx(lr), pytest.approx(lr))
    pruned = [layer.name for layer in plan.layers if layer.prunable]
    blocks = [f"layer{stage}.{block}.conv{conv}" for stage in (1, 2, 3) for block in range(3) for conv in (1, 2)]
    assert pruned == ["conv1", *blocks, "fc"]
    assert [layer.name for layer in plan.layers if not layer.prunable] == [
        "layer2.0.downsample.0", "layer3.0.downsample.0",
    ]  # fmt: skip
    assert sum(prod(layer.shape) for layer in plan.layers if layer.prunable) == 268_336
    assert (recipe.data.batch_size, recipe.optim.weight_decay, recipe.optim.decay_norm_and_bias) == (128, 5e-4, True)
    assert recipe.as_dict()["optim"]["momentum"] == 0.9


@pytest.mark.parametrize("name", CIFAR100)
def test_p1s_runs_on_cifar100_are_those_of_its_public_configuration(name: str) -> None:
    recipe, plan = read(name), planned(name)
    assert ends(plan) == DENSE_THEN_SPARSE
    # in its warm-up, epoch e begins with e fifths of the peak
    assert [epoch.lr_start for epoch in plan.epochs[:6]] == pytest.approx([0, 0.016, 0.032, 0.048, 0.064, 0.08])
    for epoch in plan.epochs[5:]:
        lr = 0.08 if epoch.epoch < 76 else 0.008 if epoch.epoch < 116 else 0.0008 if epoch.epoch < 156 else 0.00008
        assert (epoch.lr_start, epoch.lr_end) == (pytest.approx(lr), pytest.approx(lr))
    assert all(layer.prunable for layer in plan.layers)
    assert len(plan.layers) == 1 + 3 * (4 * 2 + 1) + 1
    optim = recipe.as_dict()["optim"]
    assert (optim["momentum"], optim["nesterov"], optim["weight_decay"]) == (0.9, True, 5e-4)
    assert (recipe.data.batch_size, recipe.model.options, recipe.data.augment) == (128, {"dropout": 0.3}, "pad_crop")


def test_p1s_short_dense_phases_are_three_overrides() -> None:
    lengths = ("dense_epochs=13", "last_dense_epochs=13", "last_sparse_epochs=25")
    plan = planned(CIFAR100[0], *(f"sparsity.{length}" for length in lengths))
    # pruned at 10, 43, 76, 109, 142 and 175; freed at 30, 63, 96, 129 and 162
    assert ends(plan) == [10, 30, 43, 63, 76, 96, 109, 129, 142, 162, 175, 200]


@pytest.mark.parametrize("epochs", [200, 1000])
def test_longer_training_is_one_override(epochs: int) -> None:
    assert load("resnet50_95", [f"epochs={epochs}"]).epochs == epochs
    assert all(load(name, [f"epochs={epochs}"]).epochs == epochs for name in VARIANTS + OTHER_METHODS)


@pytest.mark.parametrize(
    "spelling", ["resnet50_95", "resnet50_95.yaml", "recipes/resnet50_95.yaml", "recipes/resnet50_95"]
)
def test_a_shipped_recipe_is_found_from_anywhere(in_tmp: Path, spelling: str) -> None:
    assert shipped.find(spelling) == shipped.FOLDER / "resnet50_95.yaml"


def test_a_file_goes_before_a_shipped_recipe(in_tmp: Path) -> None:
    Path("demo").mkdir()
    assert shipped.find("demo") == shipped.FOLDER / "demo.yaml"
    Path("demo.yaml").touch()
    assert shipped.find("demo.yaml") == Path("demo.yaml")
    assert shipped.find("demo") == shipped.FOLDER / "demo.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5_95", "; did you mean resnet50_95?"),
        ("recipes/demo_gpm.yaml", "; did you mean demo_gmp?"),
        ("vit", ""),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest(in_tmp: Path, name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        shipped.find(name)
    assert str(error.value) == (f"no recipe {name}: neither a file nor a shipped recipe{hint} (see: acdc recipes list)")


def test_the_large_batch_recipe_differs_from_its_base_in_how_it_trains_only() -> None:
    ours, base = load(LARGE_BATCH[0]).as_dict(), load("resnet50_95").as_dict()
    assert {key for key in ours if ours[key] != base[key]} == {"name", "data", "optim", "ema"}
    assert {key for key in ours["data"] if ours["data"][key] != base["data"][key]} == {"batch_size", "resolution"}
    assert (ours["optim"]["lr_batch"], ours["optim"]["decay_norm_and_bias"]) == (2048, False)


@pytest.mark.parametrize("name", CELEBA)
def test_celeba_is_p2s_c2(name: str) -> None:
    recipe = read(name)
    assert (recipe.model.name, recipe.data.name, recipe.task.name) == ("resnet18", "celeba", "multilabel")
    if name.endswith("dense"):
        assert sparsity(recipe)["method"] == "dense"
        return
    method = method_config("acdc").model_validate(sparsity(recipe))
    phases = [phase for phase in method.phases(recipe.epochs).phases if phase.kind == "sparse"]
    shares = [method.sparsity(phase.start, recipe.epochs) for phase in phases]
    assert (shares[0], shares[-1]) == (0.9, float("0." + name.removeprefix("celeba_resnet18_").replace("_", "")))
    assert shares == sorted(shares)


def test_p1s_transformer_xl_has_its_285_million_parameters_and_phases() -> None:
    recipe = load("neurips21/transformer_xl_90")
    model = on_meta(recipe.model, 267_735)
    assert sum(weight.numel() for weight in model.parameters()) == 285_170_506
    phases = sparsifier(recipe, layers(model, keep_dense(recipe))).phases
    dense = [[epoch + 1 for epoch in range(48) if phases.at(epoch).kind == kind] for kind in ("dense", "sparse")]
    # P1 counts from 1: "a longer decompression phase between epochs 33-39 … a compression phase between epochs 40-48"
    assert dense[0] == [*range(1, 6), *range(9, 12), *range(15, 18), *range(21, 24), *range(27, 30), *range(33, 40)]
    assert dense[1][-9:] == [*range(40, 49)]


@pytest.mark.parametrize(("name", "dense"), [("transformer_xl_90", True), ("transformer_xl_90_embed50", False)])
def test_p1_prunes_everything_but_embeddings_and_positions(name: str, dense: bool) -> None:
    recipe = load(f"neurips21/{name}")
    kept = {layer.name: layer.kept_dense for layer in layers(on_meta(recipe.model, 267_735), keep_dense(recipe))}
    assert kept["layers.0.attention.query"] is kept["layers.17.feed_forward.second"] is None
    assert kept["layers.0.attention.positions"] == "*.positions"
    assert (kept["embeddings.tables.0"] is not None) == dense
    assert sum(each is None for each in kept.values()) == 18 * 5 + (0 if dense else 4)
