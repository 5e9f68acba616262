import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.data.augment import (
    CENTRED,
    PADDED,
    RANDOM_RESIZED,
    WHOLE,
    Augmentation,
    Crop,
    crop_box,
    is_flipped,
    nearest,
    only_shifts,
    philox,
    shifts,
)

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10_000)
INDICES = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_answers_that_its_authors_publish(counter: str, key: str, words: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    assert philox(*(int(word, 16) for word in counter.split()), seed=low | high << 32) == tuple(
        int(word, 16) for word in words.split()
    )


@given(SEEDS, EPOCHS, INDICES, SIDES, SIDES)
def test_a_random_resized_box_lies_inside_the_image(seed: int, epoch: int, index: int, height: int, width: int) -> None:
    top, left, box_height, box_width = crop_box(Crop(RANDOM_RESIZED), seed, epoch, index, height, width, 224)
    assert 0 <= top < top + box_height <= height
    assert 0 <= left < left + box_width <= width


def test_random_resized_boxes_have_the_areas_and_aspect_ratios_of_torchvisions() -> None:
    crop = Crop(RANDOM_RESIZED, 0.25, 0.5, 0.8, 1.25)
    boxes = np.array([crop_box(crop, 0, 0, index, 2000, 2000, 224) for index in range(4000)])
    share = boxes[:, 2] * boxes[:, 3] / 2000**2
    log_aspect = np.log(boxes[:, 3] / boxes[:, 2])
    # uniform, on [0.25, 0.5] and on [ln 0.8, ln 1.25]: mean and standard deviation (width / sqrt 12)
    assert share.min() > 0.249
    assert share.max() < 0.501
    assert share.mean() == pytest.approx(0.375, abs=0.004)
    assert share.std() == pytest.approx(0.25 / math.sqrt(12), abs=0.003)
    assert log_aspect.mean() == pytest.approx(0, abs=0.01)
    assert log_aspect.std() == pytest.approx(2 * math.log(1.25) / math.sqrt(12), abs=0.005)
    # every place is as likely as any other
    assert (boxes[:, 0] / (2000 - boxes[:, 2])).mean() == pytest.approx(0.5, abs=0.02)
    assert (boxes[:, 1] / (2000 - boxes[:, 3])).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (10, 1000, (0, 493, 10, 13)),  # too wide: 4/3 of the height, in the middle
        (1000, 10, (493, 0, 13, 10)),  # too high: 4/3 of the width
    ],
)
def test_an_image_that_no_box_fits_gives_the_largest_allowed_one_in_its_middle(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    assert crop_box(Crop(RANDOM_RESIZED, 1.0, 1.0), 0, 0, 0, height, width, 224) == box


def test_padded_boxes_reach_every_offset_equally_often() -> None:
    boxes = [crop_box(Crop(PADDED, padding=4), 1, 2, index, 32, 32, 32) for index in range(8100)]
    places, counts = np.unique([box[:2] for box in boxes], axis=0, return_counts=True)
    assert len(places) == 9 * 9
    assert places.min() == -4
    assert places.max() == 4
    assert counts.min() > 60
    assert {box[2:] for box in boxes} == {(32, 32)}


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (Crop(WHOLE), (0, 62, 375, 375)),  # the largest square: (500 - 375) // 2 = 62
        (Crop(CENTRED, share=224 / 256), (23, 86, 328, 328)),  # 375 * 7/8 = 328.1
    ],
)
def test_centred_boxes_are_squares_in_the_middle(crop: Crop, box: tuple[int, int, int, int]) -> None:
    assert crop_box(crop, 0, 0, 0, 375, 500, 224) == box


def test_halves_are_rounded_up() -> None:
    assert [nearest(value) for value in (0.5, 1.5, 2.5, 2.4999)] == [1, 2, 3, 2]


def test_flips_have_their_probability_and_differ_from_epoch_to_epoch() -> None:
    first = [is_flipped(0.3, 0, 0, index) for index in range(10_000)]
    second = [is_flipped(0.3, 0, 1, index) for index in range(10_000)]
    assert np.mean(first) == pytest.approx(0.3, abs=0.02)
    assert np.mean(np.equal(first, second)) == pytest.approx(0.3**2 + 0.7**2, abs=0.02)
    assert not any(is_flipped(0.0, 0, 0, index) for index in range(1000))
    assert all(is_flipped(1.0, 0, 0, index) for index in range(1000))


def test_neither_seeds_epochs_nor_samples_share_their_draws() -> None:
    draws = {
        philox(index, epoch, 0, 0, seed) for seed in (0, 1, 2**32, 2**40) for epoch in range(20) for index in range(100)
    }
    assert len(draws) == 4 * 20 * 100


@pytest.mark.parametrize("draws", [200, pytest.param(8000, marks=pytest.mark.slow)])
def test_compiled_and_plain_functions_draw_the_same_boxes_and_flips(ffcv: ModuleType, draws: int) -> None:
    random = np.random.default_rng(0)
    crops = [Crop(RANDOM_RESIZED), Crop(RANDOM_RESIZED, 0.5, 2.0, 0.3, 0.4), Crop(PADDED), Crop(CENTRED, share=0.875)]
    for number in range(draws):
        seed, epoch, index = (int(random.integers(bound)) for bound in (2**63, 10_000, 2**32))
        height, width = (int(side) for side in random.integers(1, 1000, 2))
        crop = crops[number % len(crops)]
        size = min(height, width)
        assert ffcv.crop_box(crop, seed, epoch, index, height, width, size) == crop_box(
            crop, seed, epoch, index, height, width, size
        )
        assert ffcv.is_flipped(0.5, seed, epoch, index) == is_flipped(0.5, seed, epoch, index)


@given(SEEDS, EPOCHS, st.lists(INDICES, min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 1))
def test_philox_draws_the_same_words_for_many_samples_at_once(
    seed: int, epoch: int, indices: list[int], block: int, purpose: int
) -> None:
    words = philox(np.array(indices, np.uint64), epoch, block, purpose, seed)  # type: ignore[arg-type]
    assert list(zip(*(word.tolist() for word in words), strict=True)) == [  # type: ignore[attr-defined]
        philox(index, epoch, block, purpose, seed) for index in indices
    ]


@given(
    st.tuples(SEEDS, EPOCHS, st.lists(INDICES, min_size=1, max_size=20), st.floats(0, 1)),
    st.integers(0, 300),
    st.integers(1, 300),
    st.integers(1, 300),
    st.data(),
)
def test_shifts_of_many_samples_are_the_boxes_and_flips_of_each(
    drawn: tuple[int, int, list[int], float], padding: int, height: int, width: int, data: st.DataObject
) -> None:
    seed, epoch, indices, flip = drawn
    padded = (Crop(PADDED, padding=padding), height, width, data.draw(st.integers(1, min(height, width) + 2 * padding)))
    square = (height, height, height)
    for crop, rows, columns, size in (padded, (Crop(WHOLE), *square), (Crop(CENTRED, padding=padding), *square)):
        border = padding if crop is padded[0] else 0
        assert only_shifts(crop, rows, columns, size)
        top, left, flipped = shifts(Augmentation(crop, flip, seed), epoch, np.array(indices), rows, columns, size)
        boxes = [crop_box(crop, seed, epoch, index, rows, columns, size) for index in indices]
        assert list(zip((top - border).tolist(), (left - border).tolist(), strict=True)) == [box[:2] for box in boxes]
        assert {box[2:] for box in boxes} == {(size, size)}
        assert flipped.tolist() == [is_flipped(flip, seed, epoch, index) for index in indices]
        assert (top.dtype, left.dtype, flipped.dtype) == (np.int64, np.int64, np.bool_)


@pytest.mark.parametrize(
    ("crop", "size", "shifts_only"),
    [
        (Crop(RANDOM_RESIZED), 32, False),
        (Crop(PADDED), 40, True),
        (Crop(WHOLE), 32, True),
        (Crop(WHOLE), 28, False),
        (Crop(CENTRED), 32, True),
        (Crop(CENTRED), 28, False),  # the whole image is made smaller
        (
            Crop(CENTRED, share=0.875),
            28,
            False,
        ),  # not resized, but its loaders round the middle of odd sides differently
        (Crop(CENTRED, share=0.875), 32, False),
    ],
)
def test_crops_that_are_resized_are_told_from_those_that_are_not(crop: Crop, size: int, shifts_only: bool) -> None:
    assert only_shifts(crop, 32, 32, size) is shifts_only
