"""Which keys bear on the numbers: one answer for resume, compare, studies and the queue of a sweep."""

from __future__ import annotations

from typing import Any

from acdc_cli.recipe.bearing import (
    LENGTH,
    MAY_CHANGE_ON_RESUME,
    SAME_EXPERIMENT,
    all_but_the_seed,
    bearing,
    bears_on,
    conflicts,
    differences,
    marks,
)
from acdc_cli.recipe.blocks.base import Bears
from acdc_cli.recipe.load import load

NOTHING = {"data.path", "data.workers", "optim.lr_batch", "optim.nan_patience", "track", "checkpoint", "distributed"}
EXECUTION = {
    "device",
    "threads",
    "deterministic",
    "eval_every",
    "compile",
    "channels_last",
    "model.blur",
    "data.loader",
    "data.val_batch_size",
}
REPETITION = {"name", "seed", "fork"}


def test_every_key_of_the_schema_has_a_class_and_those_that_may_differ_are_these() -> None:
    assert marks() == {
        **dict.fromkeys(NOTHING, Bears.NOTHING),
        **dict.fromkeys(EXECUTION, Bears.EXECUTION),
        **dict.fromkeys(REPETITION, Bears.REPETITION),
    }
    keys = bearing(load("demo").as_dict(), ())
    assert {bears_on(key) for key in keys} == set(Bears)
    assert {key for key in keys if bears_on(key) is Bears.NOTHING and key.startswith("checkpoint.")}


def test_a_block_marks_its_keys_and_an_unknown_key_bears_on_the_numbers() -> None:
    assert bears_on("track.log_every") is Bears.NOTHING
    assert bears_on("tracks") is bears_on("optim.lr") is bears_on("sparsity.of_another_version") is Bears.NUMBERS


def test_a_resumed_run_may_change_fewer_keys_than_a_repetition() -> None:
    recipe: dict[str, Any] = {"seed": 0, "threads": 1, "optim": {"lr": 0.1, "lr_batch": 64, "nan_patience": 3}}
    assert bearing(recipe, MAY_CHANGE_ON_RESUME) == {"seed": 0, "threads": 1, "optim.lr": 0.1}
    assert bearing(recipe, SAME_EXPERIMENT) == {"optim.lr": 0.1}


def test_named_keys_can_be_left_out() -> None:
    assert bearing({"epochs": 8, "seed": 0, "optim": {"lr": 0.1}}, SAME_EXPERIMENT, LENGTH) == {"optim.lr": 0.1}


def test_differences_count_a_missing_key_as_none_and_conflicts_leave_it_out() -> None:
    before, now = {"b": 1, "a": 1, "same": 0, "old": 2, "unset": None}, {"b": 2, "a": 3, "same": 0, "new": 4}
    assert list(differences(before, now).items()) == [
        ("a", (1, 3)),
        ("b", (1, 2)),
        ("new", (None, 4)),
        ("old", (2, None)),
    ]
    assert list(conflicts(before, now).items()) == [("a", (1, 3)), ("b", (1, 2))]


def test_recipes_that_differ_in_their_seed_alone_are_equal_but_for_the_seed() -> None:
    one, repeated, renamed = (all_but_the_seed(load("demo", [key])) for key in ("seed=1", "seed=2", "name=other"))
    assert one == repeated != renamed
