from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from acdc_cli.data import resident
from acdc_cli.data.augment import CENTRED, PADDED, RANDOM_RESIZED, WHOLE, Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile, Sample, write_beton
from acdc_cli.data.resident import ResidentLoader, can_stay, cut, cut_on_host
from acdc_cli.data.shard import Shard
from acdc_cli.data.torch import TorchLoader
from acdc_cli.errors import DataError

CPU = torch.device("cpu")
CROPS = [(Crop(PADDED), 32), (Crop(PADDED), 28), (Crop(PADDED, padding=9), 50), (Crop(WHOLE), 32), (Crop(CENTRED), 32)]


def plan(crop: Crop, size: int, **changes: object) -> Plan:
    values = {"flip": 0.5, "seed": 5, "shuffle": True} | changes
    return Plan(16, lambda epoch: size, crop, **values)  # type: ignore[arg-type]


def drawn(loader: Loader, epoch: int, start_step: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    with loader.epoch(epoch, start_step) as batches:
        return [(batch.inputs.clone(), batch.targets, batch.indices) for batch in batches]


def assert_same(ours: Loader, others: Loader, epoch: int = 3, start_step: int = 0) -> None:
    assert (ours.samples, ours.steps) == (others.samples, others.steps)
    actual, expected = drawn(ours, epoch, start_step), drawn(others, epoch, start_step)
    assert len(actual) == len(expected) == ours.steps - start_step > 0
    for mine, theirs in zip(actual, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert torch.equal(one, other)
        assert mine[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("crop", "size"), CROPS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip": 0.0},
        {"flip": 1.0},
        {"shuffle": False},
        {"images": 33},
        {"only": np.array([40, 3, 17])},
        {"relabelled": (np.array([4, 49]), np.array([70, 80]))},
        {"shard": Shard(1, 2)},
        {"shuffle": False, "shard": Shard(1, 2)},
    ],
)
def test_batches_are_those_of_the_loader_that_draws_one_image_at_a_time(
    noise: Path, crop: Crop, size: int, changes: dict[str, object]
) -> None:
    here = plan(crop, size, **({"shuffle": False} if "only" in changes else {}) | changes)
    file = BetonFile(noise)
    assert can_stay(file, here, [size])
    ours, others = ResidentLoader(file, here, CPU), TorchLoader(file, here, 0, CPU)
    for epoch, start_step in ((0, 0), (3, ours.steps - 1)):
        assert_same(ours, others, epoch, start_step)


def test_an_epoch_that_is_drawn_in_several_goes_is_the_same(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = plan(Crop(PADDED), 32)
    expected = drawn(ResidentLoader(BetonFile(noise), here, CPU), 1)
    monkeypatch.setattr(resident, "_DRAWN_AT_ONCE", 17)
    actual = drawn(ResidentLoader(BetonFile(noise), here, CPU), 1)
    assert len(actual) == 3
    assert all(
        torch.equal(one, other)
        for mine, theirs in zip(actual, expected, strict=True)
        for one, other in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize(("crop", "size"), CROPS)
def test_ffcv_shows_the_same_pixels_of_raw_images(ffcv: ModuleType, noise: Path, crop: Crop, size: int) -> None:
    here, file = plan(crop, size), BetonFile(noise)
    other = ffcv.FFCVLoader(file, here, 1, CPU)
    assert_same(ResidentLoader(file, here, CPU), other)
    other.close()


def test_the_resolution_may_change_from_epoch_to_epoch(noise: Path) -> None:
    sizes = (40, 8, 41)
    loader = ResidentLoader(BetonFile(noise), replace(plan(Crop(PADDED), 32), size=sizes.__getitem__), CPU)
    for epoch in (0, 1):
        with loader.epoch(epoch) as batches:
            assert {batch.inputs.shape for batch in batches} == {(16, 3, sizes[epoch], sizes[epoch])}
    with pytest.raises(DataError, match=r"no crop of 41 fits"), loader.epoch(2):
        pass


def test_batches_do_not_share_memory_with_the_set(noise: Path) -> None:
    loader = ResidentLoader(BetonFile(noise), plan(Crop(WHOLE), 32, shuffle=False, flip=0.0), CPU)
    before = drawn(loader, 0)
    with loader.epoch(0) as batches:
        for batch in batches:
            batch.inputs.zero_()
            batch.targets.zero_()
    assert_same(loader, loader)
    for one, other in zip(before, drawn(loader, 0), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_only_sets_of_one_size_that_are_small_and_never_resized_can_stay(
    noise: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BetonFile(noise)
    assert not can_stay(BetonFile(photographs), plan(Crop(PADDED), 32), [32])
    assert not can_stay(file, plan(Crop(RANDOM_RESIZED), 32), [32])
    assert can_stay(file, plan(Crop(PADDED), 32), [16, 32])
    assert not can_stay(file, plan(Crop(WHOLE), 32), [16, 32])
    # the black border counts, and of the set what is used
    monkeypatch.setattr(resident, "SMALL", 50 * 3 * 40 * 40)
    assert can_stay(file, plan(Crop(PADDED), 32), [32])
    assert not can_stay(file, plan(Crop(PADDED, padding=5), 32), [32])
    assert can_stay(file, plan(Crop(PADDED, padding=5), 32, images=40), [32])


def test_cifar_can_stay() -> None:
    """50,000 images of 32 x 32 with a border of 4."""
    assert resident.SMALL >= 50_000 * 3 * 40 * 40


def test_an_image_that_does_not_decode_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    write_beton(path, [Sample(0, "jpg", 8, 8, b"no JPEG")], 1)
    with pytest.raises(DataError, match=r"train\.beton: image 0 does not decode"):
        ResidentLoader(BetonFile(path), plan(Crop(PADDED), 8), CPU)


def _by_hand(padded: NDArray[np.uint8], places: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    crops = [padded[image, top : top + size, left : left + size] for image, top, left, _ in places.T]
    return np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, places[3], strict=True)])


@given(st.data())
def test_crops_are_cut_alike_on_the_host_and_on_the_device(data: st.DataObject) -> None:
    side = st.integers(1, 9)
    images, height, width = data.draw(st.integers(1, 4)), data.draw(side), data.draw(side)
    size = data.draw(st.integers(1, min(height, width)))
    one = st.tuples(
        st.integers(0, images - 1), st.integers(0, height - size), st.integers(0, width - size), st.integers(0, 1)
    )
    places = np.array(data.draw(st.lists(one, min_size=1, max_size=8)), np.int64).T.copy()
    padded = np.random.default_rng(0).integers(0, 256, (images, height, width, 3), np.uint8)
    expected = torch.from_numpy(_by_hand(padded, places, size))
    for function in (cut, cut_on_host):
        actual = function(torch.from_numpy(padded), torch.from_numpy(places), size)
        assert actual.is_contiguous()
        assert torch.equal(actual, expected)
