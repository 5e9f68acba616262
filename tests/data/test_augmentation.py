"""Policies, erasing and repeats: pure functions of (seed, epoch, repetition, index), with the libraries' pixels."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from drawn import drawn, same
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from acdc_cli.data.augment import PADDED, RANDOM_RESIZED, Crop, crop_box, times_of
from acdc_cli.data.batches import Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.finish import Finish, erased_box, finish_of
from acdc_cli.data.finish import draws as draws_of
from acdc_cli.data.order import epoch_order, repeated
from acdc_cli.data.policies import rand, trivial
from acdc_cli.data.resident import ResidentLoader, can_stay
from acdc_cli.data.shard import Shard
from acdc_cli.data.torch import TorchLoader
from acdc_cli.recipe.blocks.images import AugmentationBlock, ImagesBlock

CPU = torch.device("cpu")
GREY = (128, 100, 90)


def block(**augmentation: Any) -> ImagesBlock:
    return ImagesBlock(name="folder", batch_size=8, augmentation=AugmentationBlock(**augmentation))


def plan(**changes: Any) -> Plan:
    values = {"crop": Crop(PADDED), "flip": 0.5, "seed": 5, "shuffle": True} | changes
    return Plan(12, lambda epoch: 32, **values)


def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (40, 36, 3), np.uint8)


# repeats


def test_a_batch_of_six_repeated_three_times_shows_two_images_by_turns() -> None:
    places, repetition = repeated(8, 3, 6)
    assert places.tolist() == [0, 1, 0, 1, 0, 1, 2, 2]
    assert repetition.tolist() == [0, 0, 1, 1, 2, 2, 0, 1]


@given(st.integers(1, 200), st.integers(1, 7), st.integers(1, 20))
def test_batches_hold_the_images_that_timms_sampler_deals(samples: int, repeats: int, batch: int) -> None:
    from timm.data.distributed_sampler import RepeatAugSampler

    dealt = list(
        RepeatAugSampler(
            range(samples),
            num_replicas=1,
            rank=0,
            shuffle=False,
            num_repeats=repeats,
            selected_round=0,
            selected_ratio=1,
        )
    )
    places, repetition = repeated(samples, repeats, batch)
    for start in range(0, samples // batch * batch, batch):
        assert sorted(places[start : start + batch].tolist()) == sorted(dealt[start : start + batch])
    pairs = list(zip(places.tolist(), repetition.tolist(), strict=True))
    assert len(set(pairs)) == samples
    assert max(repetition.tolist()) < repeats


def test_without_repeats_an_epoch_is_what_it_was() -> None:
    assert [each.indices.tolist() for each in plan().batches(50, 2, 0)] == [
        epoch_order(50, 5, 2)[start : start + 12].tolist() for start in (0, 12, 24, 36)
    ]
    assert all((each.times == 2).all() for each in plan().batches(50, 2, 0))


def test_repeats_leave_the_steps_and_show_the_first_images_of_the_order_that_often() -> None:
    picks = plan(repeats=3).batches(50, 2, 0)
    assert len(picks) == plan().steps(50) == 4
    shown = np.concatenate([each.indices for each in picks])
    assert sorted(shown.tolist()) == sorted(np.repeat(epoch_order(50, 5, 2)[:16], 3).tolist())
    # another third comes in another epoch
    assert set(shown.tolist()) != set(
        np.concatenate([each.indices for each in plan(repeats=3).batches(50, 3, 0)]).tolist()
    )


def test_repetitions_of_an_image_lie_in_the_parts_of_different_ranks() -> None:
    parts = [plan(repeats=3, shard=Shard(rank, 3)).batches(50, 0, 0) for rank in range(3)]
    whole = plan(repeats=3).batches(50, 0, 0)
    for step, one in enumerate(whole):
        together = [part[step].indices for part in parts]
        assert np.concatenate(together).tolist() == one.indices.tolist()
        assert all(len(set(part.tolist())) == 4 for part in together)


def test_each_repetition_has_its_own_crop_and_the_first_has_that_of_an_epoch_without(noise: Path) -> None:
    loader = TorchLoader(BetonFile(noise), plan(repeats=3), 0, CPU)
    plain = {
        index: image
        for images, _, indices in drawn(TorchLoader(BetonFile(noise), plan(), 0, CPU))
        for image, index in zip(images, indices.tolist(), strict=True)
    }
    compared = 0
    for images, _, indices in drawn(loader):
        first, second, third = images.chunk(3)
        assert indices[:4].tolist() == indices[4:8].tolist() == indices[8:].tolist()
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)
        for image, index in zip(first, indices.tolist(), strict=False):
            if index in plain:
                assert torch.equal(image, plain[index])
                compared += 1
    assert compared


def test_times_of_a_million_epochs_and_a_hundred_repetitions_are_distinct() -> None:
    repetitions = np.arange(100)
    times = {time for epoch in (0, 1, 999_999) for time in times_of(epoch, repetitions).tolist()}
    assert len(times) == 300
    assert times_of(999_999, repetitions)[0] == 999_999
    boxes = {crop_box(Crop(RANDOM_RESIZED), 1, time, 9, 500, 400, 224) for time in times_of(3, repetitions).tolist()}
    assert len(boxes) == 100


@pytest.mark.parametrize("repeats", [1, 3])
def test_every_loader_shows_the_same_repetitions(noise: Path, ffcv: ModuleType, repeats: int) -> None:
    file, here = BetonFile(noise), plan(repeats=repeats)
    assert can_stay(file, here, [32])
    expected = drawn(TorchLoader(file, here, 0, CPU))
    assert same(drawn(ResidentLoader(file, here, CPU)), expected)
    loader = ffcv.FFCVLoader(file, here, 2, CPU)
    assert same(drawn(loader), expected)
    loader.close()


# policies and erasing


EVERYTHING = {"policy": "trivial", "erasing": 0.5}


def test_pixels_do_not_depend_on_workers_loaders_or_the_step_to_begin_with(noise: Path, ffcv: ModuleType) -> None:
    file, here = BetonFile(noise), plan(repeats=3, finish=finish_of(block(**EVERYTHING), 5))
    assert not can_stay(file, here, [32])
    expected = drawn(TorchLoader(file, here, 0, CPU))
    assert not same(expected, drawn(TorchLoader(file, plan(repeats=3), 0, CPU)))
    assert not same(expected, drawn(TorchLoader(file, here, 0, CPU), epoch=3))
    for loader in (TorchLoader(file, here, 1, CPU), ffcv.FFCVLoader(file, here, 3, CPU)):
        assert same(drawn(loader), expected)
        assert same(drawn(loader, start_step=2), expected[2:])
        loader.close()


@pytest.mark.parametrize("policy", ["trivial", "rand-m9-n3-mstd0.5-inc1"])
def test_a_draw_neither_uses_nor_changes_what_a_process_shares(policy: str) -> None:
    finish = finish_of(block(policy=policy, erasing=0.5), 5)
    assert finish is not None
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    first = [picture() for _ in range(30)]
    for index, pixels in enumerate(first):
        finish(pixels, index, 4)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    for index in reversed(range(30)):
        pixels = picture()
        finish(pixels, index, 4)
        assert np.array_equal(pixels, first[index])
    assert len({pixels.tobytes() for pixels in first}) > 15
    other = Finish(finish.policy, finish.erasing, finish.fill, seed=6)
    pixels = picture()
    other(pixels, 0, 4)
    assert not np.array_equal(pixels, first[0])


class Scripted:
    """Draws that are written down: `integers` and `random` give what is left, in order."""

    def __init__(self, *values: float) -> None:
        self._left = list(values)

    def __getattr__(self, _: str) -> Any:
        return lambda *arguments, **keywords: self._left.pop(0)


def test_every_operation_of_trivial_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import TrivialAugmentWide

    theirs, ours = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR), trivial.Policy("", GREY)
    image, changed = Image.fromarray(picture()), 0
    for operation, (strengths, is_signed) in enumerate(theirs._AUGMENTATION_SPACE.values()):
        for strength, sign in ((3, 0.2), (17, 0.7), (30, 0.2)):
            asked = [
                operation,
                *([strength] if strengths(31, 40, 36) is not None else []),
                *([sign] if is_signed else []),
            ]
            left = list(asked)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randint", lambda *_, left=left: torch.tensor(left.pop(0)))
                patch.setattr(torch, "rand", lambda *_, left=left: torch.tensor(left.pop(0)))
                expected = np.asarray(theirs(image))
            assert np.array_equal(np.asarray(ours(image, Scripted(*asked))), expected)  # type: ignore[arg-type]
            changed += not np.array_equal(expected, picture())
    assert changed > 30


@pytest.mark.parametrize("policy", ["rand-m7-mstd0.5-inc1", "rand-m9-mstd0.5"])
def test_arguments_of_rands_operations_are_timms(policy: str) -> None:
    operations = rand.Policy(policy.removeprefix("rand-"), GREY)._rand.ops
    draws = draws_of(1, 2, 3, 1)
    for operation in operations:
        for strength in (0.0, 2.4, 7.0, 10.0):
            expected = {
                operation.level_fn(strength, operation.hparams) if operation.level_fn else () for _ in range(40)
            }
            arguments = {rand._arguments(operation, strength, draws) for _ in range(40)}
            ours, theirs = ([value for each in sorted(values) for value in each] for values in (arguments, expected))
            assert ours == pytest.approx(theirs, rel=1e-12), operation.name
            assert len(arguments) == len(expected)
    assert len(operations) == 15


def test_rand_applies_two_operations_each_half_of_the_time_and_clips_the_strength() -> None:
    policy = rand.Policy("m7-mstd0.5-inc1", GREY)
    assert policy._rand.num_layers == 2
    assert {operation.prob for operation in policy._rand.ops} == {0.5}
    draws = draws_of(1, 2, 3, 1)
    strengths = np.array([rand._strength(policy._rand.ops[0], draws) for _ in range(2000)])
    # five standard errors
    assert abs(strengths.mean() - 7) < 5 * 0.5 / 2000**0.5
    assert abs(strengths.std() - 0.5) < 5 * 0.5 / 4000**0.5
    wild = rand.Policy("m10-mstd3", GREY)._rand.ops[0]
    assert max(rand._strength(wild, draws) for _ in range(100)) == 10
    even = rand.Policy("m8-mstd101", GREY)._rand.ops[0]
    strengths = np.array([rand._strength(even, draws) for _ in range(1000)])
    # above 100, timm draws from 0 to m: five standard errors
    assert 0 <= strengths.min() < 0.1 < 7.9 < strengths.max() <= 8
    assert abs(strengths.mean() - 4) < 5 * 8 / 12**0.5 / 1000**0.5
    # the first operation is skipped, the second, AutoContrast, is not
    image = Image.fromarray(np.uint8(64) + picture() // 4)
    once = policy(image, Scripted(np.array([3, 0]), 0.9, 0.1, 0, 7.0, 0.4))  # type: ignore[arg-type]
    from PIL import ImageOps

    assert np.array_equal(np.asarray(once), np.asarray(ImageOps.autocontrast(image)))


def test_what_rand_uncovers_has_the_colour_of_the_mean() -> None:
    policy = rand.Policy("m10-n1-p1-inc1", GREY)
    shift = [operation.name for operation in policy._rand.ops].index("TranslateXRel")
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    # 45 % of 40 pixels come from beyond the right border
    shifted = np.asarray(policy(white, Scripted(np.array([shift]), 0.1, 0, 0.1)))  # type: ignore[arg-type]
    assert (shifted[:, 22:] == GREY).all()
    assert (shifted[:, :22] == 255).all()


def test_an_erased_rectangle_has_the_share_and_shape_that_torchvision_allows() -> None:
    boxes = [erased_box(0.25, draws_of(1, 0, index, 2), 100, 80) for index in range(4000)]
    erased = [each for each in boxes if each[2]]
    assert abs(len(erased) / 4000 - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    for top, left, height, width in erased:
        # rounding a side to a pixel
        assert 0.02 * 8000 - (height + width) / 2 < height * width < 0.33 * 8000 + (height + width) / 2
        assert (height - 0.5) / (width + 0.5) < 3.3
        assert (height + 0.5) / (width - 0.5) > 0.3
        assert 0 <= top <= 100 - height
        assert 0 <= left <= 80 - width
    assert len(set(erased)) == len(erased)


def test_an_image_of_one_row_has_no_room_for_a_rectangle() -> None:
    # of 20 to 330 pixels, at most 3.3 times as wide as high
    assert erased_box(1.0, draws_of(1, 0, 0, 2), 1, 1000) == (0, 0, 0, 0)


def test_a_policy_alone_erases_nothing() -> None:
    class Inverted:
        def __call__(self, image: Image.Image, draws: np.random.Generator) -> Image.Image:
            return Image.fromarray(255 - np.asarray(image))

    pixels = picture()
    Finish(Inverted(), 0.0, GREY, seed=3)(pixels, 11, 4)
    assert np.array_equal(pixels, 255 - picture())


def test_erasing_paints_the_mean_colour_and_nothing_else() -> None:
    finish = Finish(None, 1.0, GREY, seed=3)
    pixels = picture()
    finish(pixels, 11, 4)
    top, left, height, width = erased_box(1.0, draws_of(3, 4, 11, 2), 40, 36)
    inside = np.zeros((40, 36), bool)
    inside[top : top + height, left : left + width] = True
    assert (pixels[inside] == GREY).all()
    assert np.array_equal(pixels[~inside], picture()[~inside])
    assert inside.sum() > 20


def test_nothing_is_done_by_default() -> None:
    assert finish_of(block(), 0) is None
    assert finish_of(block(erasing=0.1), 0) == Finish(None, 0.1, (124, 116, 104), 0)
