"""The keys of a recipe's `data` block that fit a set of images, and the facts behind them as rows for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from acdc_cli.data.describe import KINDS, SetFacts, SplitFacts
from acdc_cli.errors import DataError

SMALL = 64
"""Longest side of square images of one size that are used as they are, as CIFAR's."""
_USUAL = 224
_STEP = 32
_SMALLEST_STD = 0.001
_CLASSES_NAMED = 5


def proposed_keys(facts: SetFacts) -> dict[str, Any]:
    """Raises DataError if no training image can be read."""
    train = facts.splits.get("train") or next(iter(facts.splits.values()))
    if train.side is None or train.mean is None or train.std is None:
        raise DataError(f"{facts.path}: none of {train.looked_at:,} images can be read; convert them to JPEG or PNG")
    if is_small(train):
        sizes = {"resolution": train.side, "val_resize": train.side, "val_crop": train.side}
        keys: dict[str, Any] = {"augment": "pad_crop", "padding": max(1, train.side // 8), **sizes}
    else:
        side = min(_USUAL, max(_STEP, train.side // _STEP * _STEP))
        keys = {"augment": "random_resized_crop", "resolution": side, "val_resize": side * 8 // 7, "val_crop": side}
    return keys | {"mean": list(train.mean), "std": [max(_SMALLEST_STD, each) for each in train.std]}


def is_small(train: SplitFacts) -> bool:
    return train.one_size and train.width == train.height and train.side is not None and train.side <= SMALL


def rows(facts: SetFacts) -> list[tuple[str, ...]]:
    """What is known of each split, a column each."""
    of = list(facts.splits.values())
    labels = {
        "images": [f"{split.images:,}" for split in of],
        "looked at": [f"{split.looked_at:,}" for split in of],
        "classes": [str(len(split.classes)) for split in of],
        "images of a class": [_range(split.classes) for split in of],
        "width": [_range_and_median(split.width) for split in of],
        "height": [_range_and_median(split.height) for split in of],
        "mean": [_numbers(split.mean) for split in of],
        "std": [_numbers(split.std) for split in of],
    }
    return [(label, *cells) for label, cells in labels.items()]


def remarks(facts: SetFacts) -> Iterator[str]:
    """What is unusual, a line each, with examples."""
    for name, split in facts.splits.items():
        for kind, words in KINDS.items():
            if count := split.kinds.get(kind):
                yield f"{name}: {count:,} images {words}: {_listed(split.examples[kind], count)}"
        if split.duplicates:
            other = f", {split.two_classes:,} of them in another class" if split.two_classes else ""
            yield f"{name}: {split.duplicates:,} images are copies of others of the split{other}"
        if empty := [each for each, count in split.classes.items() if not count]:
            yield f"{name}: {len(empty)} classes have no image: {_listed(empty, len(empty))}"
    if facts.shared:
        pairs = [f"{one} = {other}" for one, other in facts.shared_examples]
        yield (
            f"{facts.shared:,} validation images are training images, too, so accuracy is overestimated: "
            f"{_listed(pairs, facts.shared)}"
        )


def _listed(names: list[str], count: int) -> str:
    shown = names[:_CLASSES_NAMED]
    return ", ".join([*shown, *([f"… {count - len(shown):,} more"] if count > len(shown) else [])])


def _range(classes: dict[str, int]) -> str:
    low, high = min(classes.values()), max(classes.values())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _range_and_median(values: tuple[int, int, int] | None) -> str:
    """Smallest, median and largest."""
    if values is None:
        return "-"
    return str(values[0]) if values[0] == values[2] else f"{values[0]} to {values[2]}, median {values[1]}"


def _numbers(values: tuple[float, ...] | None) -> str:
    return "-" if values is None else ", ".join(f"{value:.4f}" for value in values)
