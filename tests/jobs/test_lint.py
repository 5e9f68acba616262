"""What is said of a doubtful run before it starts, word for word."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from acdc_cli.errors import RecipeError
from acdc_cli.jobs import setup
from acdc_cli.jobs.lint import lint
from acdc_cli.recipe import shipped
from acdc_cli.recipe.load import from_dict, load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.sparsity.prunable import layers

STEPS = 10


def recipe(sparsity: dict[str, Any], epochs: int = 20, **optim: Any) -> Recipe:
    """On data in batches of 64."""
    return from_dict(
        {
            "name": "doubtful",
            "epochs": epochs,
            "model": {"name": "resnet8"},
            "data": {"name": "demo", "batch_size": 64},
            "optim": {"name": "sgd", "lr": 0.1, "schedule": {"name": "linear"}} | optim,
            "sparsity": sparsity,
        },
        "test",
    )


def said(of: Recipe, steps: int = STEPS) -> list[str]:
    """Of a network whose convolutions have 3, 8 and 8 input channels."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1), nn.Linear(16, 10))
    return lint(of, setup.sparsifier(of, layers(network, setup.keep_dense(of))), steps)


SOUND = {"method": "acdc", "target": 0.9, "warmup_epochs": 2, "sparse_epochs": 2, "dense_epochs": 2}
SOUND |= {"last_dense_epochs": 2, "last_sparse_epochs": 2}


@pytest.mark.parametrize(
    "sparsity",
    [
        {"method": "dense"},
        SOUND,
        # these end dense because that is what they are for
        SOUND | {"last_phase": "dense_last"},
        {"method": "dsd", "target": 0.5},
        # these papers update their masks to the end
        {"method": "snfs", "target": 0.9, "every_epochs": 1},
        {"method": "deepr", "target": 0.9, "every": 1},
        {"method": "topkast", "target": 0.9, "backward_sparsity": 0.5},
        {"method": "dpf", "target": 0.9},
        {"method": "gmp", "target": 0.9},
        {"method": "str", "s_init": -5.0},
        SOUND | {"layers": {"1": 0.1}},
    ],
    ids=lambda sparsity: "-".join(map(str, sparsity.values())),
)
def test_a_run_that_does_what_it_is_for_raises_no_doubt(sparsity: dict[str, Any]) -> None:
    assert said(recipe(sparsity)) == []


def test_a_run_that_prunes_nothing_ends_dense() -> None:
    assert said(recipe(SOUND | {"target": 0.0})) == [
        "sparsity.target: at 0 no weight is pruned, and the run ends dense; use method dense"
    ]


def test_a_target_that_a_pattern_cannot_reach_is_told_with_the_sparsity_that_will_be() -> None:
    # of 216 + 576 + 128 + 160 weights the first 216 stay: 432 of 1,080 are pruned
    assert said(recipe(SOUND | {"pattern": "2:4", "target": 0.5})) == [
        "sparsity.pattern: 2:4 does not divide the input channels of 0; they stay dense",
        "sparsity.target: 0.5 is never reached; the pruned layers reach at most 0.4",
    ]


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_masks_that_change_until_the_end_leave_nothing_trained(method: str) -> None:
    sparsity = {"method": method, "target": 0.9, "every_epochs": 1, "end": "100%"}
    assert said(recipe(sparsity)) == [
        "sparsity.end: the masks change until the run ends, so weights that grow last are hardly trained; "
        f"the default of {method} is 75%"
    ]
    assert said(recipe(sparsity | {"end": 19})) == []


def test_a_ramp_shorter_than_a_step_of_it_is_a_jump() -> None:
    gmp = {"method": "gmp", "target": 0.9, "begin": 4, "end": 9}
    assert said(recipe(gmp)) == [
        "sparsity.every_epochs: the sparsity rises from epoch 4 to 9, within one step of 5 epochs, so it jumps "
        "to the target; make it smaller"
    ]
    assert said(recipe(gmp | {"every_epochs": 4})) == []


def test_dense_weights_that_are_never_ranked_again_are_told() -> None:
    # 20 epochs of 10 steps, of which the last 5 epochs have the target: steps 150 to 199
    dpf = {"method": "dpf", "target": 0.9}
    assert said(recipe(dpf | {"every": 75})) == [
        "sparsity.every: the weights are not ranked again after step 150, which reaches the target; make it smaller"
    ]
    assert said(recipe(dpf | {"every": 76})) == []
    topkast = {"method": "topkast", "target": 0.9, "backward_sparsity": 0.5}
    assert said(recipe(topkast | {"every": 200})) == [
        "sparsity.every: the run has 200 steps, so the weights are never ranked again; make it smaller"
    ]
    assert said(recipe(topkast | {"every": 199})) == []


def test_a_learning_rate_that_still_rises_when_weights_are_pruned_is_told() -> None:
    slow = {"schedule": {"name": "linear", "warmup_epochs": 3}}
    assert said(recipe(SOUND, **slow)) == [
        "optim.schedule.warmup_epochs: the learning rate rises until epoch 3, but weights are pruned from epoch 2 on; "
        "shorten the warm-up or lengthen the first dense phase"
    ]
    assert said(recipe(SOUND | {"warmup_epochs": 6}, **slow)) == []


def test_a_batch_that_is_not_the_learning_rates_is_told_with_what_scaling_gives() -> None:
    assert said(recipe(SOUND, lr_batch=256)) == [
        "optim.lr: 0.1 was chosen for batch 256, but data.batch_size is 64; the linear scaling rule gives "
        "--set optim.lr=0.025 --set optim.lr_batch=64"
    ]


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (
            {"method": "rigl", "target": 0.9, "every": 150},
            "sparsity.every: the first update would be at step 150, but the updates end before step 150 "
            "(epochs of 10 steps): make it smaller",
        ),
        (
            {"method": "snip", "target": 0.9, "batches": 10},
            "sparsity.batches: expected fewer than the 10 batches of the first epoch, which prunes the weights, "
            "found 10",
        ),
    ],
    ids=["rigl", "snip"],
)
def test_what_would_stop_the_run_on_its_way_is_refused(sparsity: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        said(recipe(sparsity))
    assert str(refused.value) == message
    assert said(recipe(sparsity), steps=11) == []


def test_no_shipped_recipe_raises_a_doubt() -> None:
    for name in shipped.names():
        shipped_recipe = load(name)
        if hasattr(shipped_recipe.sparsity, "layers"):
            block = shipped_recipe.sparsity.model_copy(update={"layers": {}})
            shipped_recipe = shipped_recipe.model_copy(update={"sparsity": block})
        # names of layers hold for the recipe's own model alone
        patterns = [entry for entry in setup.keep_dense(shipped_recipe) if "*" not in entry]
        groups = 4 if "depthwise" in patterns else 1
        last = nn.Linear(8, 8), nn.Linear(8, 4), nn.Embedding(4, 8)
        network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups), nn.Conv2d(8, 8, 3), *last)
        of = setup.sparsifier(shipped_recipe, layers(network, patterns))
        assert lint(shipped_recipe, of, steps_per_epoch=1000) == [], name


def averaged(decay: float, begin: int | str = 0, **data: Any) -> Recipe:
    """Of 20 epochs, the last two of which are the last sparse phase."""
    changes = recipe(SOUND).as_dict()
    changes["data"] |= data
    return from_dict(changes | {"ema": {"decay": decay, "begin": begin}}, "test")


def test_an_average_longer_than_a_third_of_the_last_phase_is_told_with_what_is_shorter() -> None:
    # 2 epochs of 100 steps; 1 / (1 - decay) is 50, 66.7 and 100 steps
    assert said(averaged(0.98), steps=100) == []
    assert said(averaged(0.985), steps=100) == []
    assert said(averaged(0.99), steps=100) == [
        "ema.decay: 0.99 spans about 100 steps, more than a third of the 200 in the last phase; "
        "lower it to 0.985 or less"
    ]
    assert said(averaged(0.985, begin=19), steps=100) == [
        "ema.decay: 0.985 spans about 67 steps, more than a third of the 100 in the last phase; "
        "lower it to 0.97 or less"
    ]
    dense = from_dict(averaged(0.9).as_dict() | {"sparsity": {"method": "dense"}, "ema": {"decay": 0.99}}, "test")
    assert said(dense, steps=15) == []
    assert said(dense, steps=14) == [
        "ema.decay: 0.99 spans about 100 steps, more than a third of the 280 of the run; lower it to 0.9893 or less"
    ]


def test_more_image_sizes_than_are_compiled_are_told() -> None:
    ramp = {"start_size": 20, "end_size": 40, "end": "100%"}
    warnings = said(averaged(0.5, resolution=ramp | {"step": 2}))
    assert warnings == ["data.resolution: torch.compile recompiles the model for each of 11 sizes; use a larger step"]
    assert said(averaged(0.5, resolution=ramp | {"step": 4})) == []


def test_an_average_is_refused_where_freed_weights_come_back_with_values() -> None:
    for method in ("topkast", "dpf"):
        changes = from_dict(load("demo").as_dict() | {"sparsity": load(f"demo_{method}").as_dict()["sparsity"]}, "test")
        averaging = from_dict(changes.as_dict() | {"epochs": 20, "ema": {"decay": 0.5}}, "test")
        with pytest.raises(RecipeError, match=f"ema: {method} restores the values of weights that it frees"):
            said(averaging)
        assert isinstance(said(changes), list)
