"""Both loaders draw the same: order, labels, boxes and flips exactly, pixels as far as decoding and resizing agree."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from acdc_cli.data.augment import CENTRED, PADDED, RANDOM_RESIZED, WHOLE, Crop, crop_box, is_flipped
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.order import epoch_order
from acdc_cli.data.torch import MemoryImages, TorchLoader

MakeLoader = Callable[..., Loader]
CPU = torch.device("cpu")


def plan(crop: Crop, size: int, batch_size: int = 16, seed: int = 5, flip: float = 0.5) -> Plan:
    return Plan(batch_size, lambda epoch: size, crop, flip, seed, shuffle=True)


def drawn(loader: Loader, epoch: int, start_step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and indices of an epoch, copied."""
    with loader.epoch(epoch, start_step) as batches:
        parts = [(batch.inputs.clone(), batch.targets.clone(), batch.indices.clone()) for batch in batches]
    images, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return images, labels, indices


def test_an_epoch_has_our_order_and_the_labels_that_belong_to_it(make_loader: MakeLoader, coordinates: Path) -> None:
    loader = make_loader(coordinates, plan(Crop(RANDOM_RESIZED), 32))
    images, labels, indices = drawn(loader, 3)
    assert indices.tolist() == epoch_order(60, 5, 3)[:48].tolist()
    assert labels.tolist() == (59 - indices).tolist()
    assert images[:, 2].float().mean((1, 2)).tolist() == indices.tolist()
    assert labels.dtype == indices.dtype == torch.int64


def test_images_are_uint8_and_channels_last(make_loader: MakeLoader, coordinates: Path) -> None:
    with make_loader(coordinates, plan(Crop(RANDOM_RESIZED), 32)).epoch(0) as batches:
        images = next(batches).inputs
    assert images.shape == (16, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_random_resized_crop_shows_the_drawn_box(make_loader: MakeLoader, coordinates: Path) -> None:
    """Pixels say their column and row, so a crop says where its box lies, to the rounding of a pixel."""
    images, _, indices = drawn(make_loader(coordinates, plan(Crop(RANDOM_RESIZED), 40)), 1)
    for image, index in zip(images.float(), indices.tolist(), strict=True):
        top, left, height, width = crop_box(Crop(RANDOM_RESIZED), 5, 1, index, 200, 240, 40)
        columns, rows = image[0].mean(0), image[1].mean(1)
        if is_flipped(0.5, 5, 1, index):
            columns = columns.flip(0)
        steps = np.arange(40) + 0.5
        assert np.abs(columns.numpy() - (left - 0.5 + steps * width / 40))[2:-2].max() < 1
        assert np.abs(rows.numpy() - (top - 0.5 + steps * height / 40))[2:-2].max() < 1
        assert abs(float(columns.mean()) - (left + (width - 1) / 2)) <= 0.5
        assert abs(float(rows.mean()) - (top + (height - 1) / 2)) <= 0.5


@pytest.mark.parametrize("size", [24, 32, 40])
def test_a_padded_crop_is_exactly_that_part_of_the_padded_image(
    make_loader: MakeLoader, noise: Path, size: int
) -> None:
    crop = Crop(PADDED, padding=4)
    images, _, indices = drawn(make_loader(noise, plan(crop, size)), 2)
    file = BetonFile(noise)
    for image, index in zip(images, indices.tolist(), strict=True):
        top, left, _, _ = crop_box(crop, 5, 2, index, 32, 32, size)
        padded = np.pad(file.decode(index), ((4, 4), (4, 4), (0, 0)))
        expected = padded[top + 4 : top + 4 + size, left + 4 : left + 4 + size]
        if is_flipped(0.5, 5, 2, index):
            expected = expected[:, ::-1]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_whole_images_of_the_right_size_pass_unchanged(make_loader: MakeLoader, noise: Path) -> None:
    images, _, indices = drawn(make_loader(noise, plan(Crop(WHOLE), 32, flip=0)), 0)
    file = BetonFile(noise)
    for image, index in zip(images, indices.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), file.decode(index))


@pytest.mark.parametrize("size", [160, 224])
@pytest.mark.parametrize(
    ("crop", "mean", "largest"),
    [(Crop(RANDOM_RESIZED), 2, 30), (Crop(WHOLE), 2, 30), (Crop(CENTRED, share=224 / 256), 6, 60)],
    ids=["random", "whole", "validation"],
)
def test_pixels_of_both_loaders_differ_by_no_more_than_resampling(
    ffcv: ModuleType, photographs: Path, crop: Crop, mean: float, largest: float, size: int
) -> None:
    """FFCV takes the area mean and libjpeg's fast DCT, torchvision a filtered bilinear and the accurate one.

    In levels of 255, on images with the contrasts of photographs: below two on average over each image, and thirty
    for a single pixel. For validation torchvision resizes before it cuts, FFCV cuts whole pixels before it resizes,
    so that their boxes differ by up to a pixel too. Two pixels, or a flip, make more than either.
    """
    here = plan(crop, size, batch_size=20)
    first = ffcv.FFCVLoader(BetonFile(photographs), here, 2, CPU)
    second = TorchLoader(BetonFile(photographs), here, 0, CPU)
    images, labels, indices = drawn(first, 4)
    others, other_labels, other_indices = drawn(second, 4)
    first.close()
    assert torch.equal(labels, other_labels)
    assert torch.equal(indices, other_indices)
    difference = (images.float() - others.float()).abs()
    assert difference.mean((1, 2, 3)).max() < mean
    assert difference.max() < largest
    for wrong in (others.roll(2, 3), others.roll(2, 2), others.flip(3)):
        assert ((images.float() - wrong.float()).abs().mean((1, 2, 3)) > difference.mean((1, 2, 3))).all()


def test_threads_batch_sizes_and_the_step_begun_with_change_no_pixel(ffcv: ModuleType, photographs: Path) -> None:
    def images(workers: int, batch_size: int, start_step: int = 0) -> Tensor:
        loader = ffcv.FFCVLoader(BetonFile(photographs), plan(Crop(RANDOM_RESIZED), 96, batch_size), workers, CPU)
        result = drawn(loader, 7, start_step)[0]
        loader.close()
        return result

    whole = images(1, 40)
    assert torch.equal(images(2, 40), whole)
    assert torch.equal(images(3, 8), whole)
    assert torch.equal(images(2, 5, start_step=6), whole[30:])


def test_processes_batch_sizes_and_the_step_begun_with_change_no_pixel(photographs: Path) -> None:
    def images(workers: int, batch_size: int, start_step: int = 0) -> Tensor:
        source = BetonFile(photographs)
        loader = TorchLoader(source, plan(Crop(RANDOM_RESIZED), 96, batch_size), workers, CPU)
        result = drawn(loader, 7, start_step)[0]
        loader.close()
        return result

    whole = images(0, 40)
    assert torch.equal(images(2, 8), whole)
    assert torch.equal(images(1, 5, start_step=6), whole[30:])


def test_a_set_in_memory_is_drawn_as_one_that_is_not(noise: Path) -> None:
    images, here = BetonFile(noise), plan(Crop(RANDOM_RESIZED), 20)
    slow, fast = (TorchLoader(source, here, 0, CPU) for source in (images, MemoryImages(images)))
    for one, other in zip(drawn(slow, 3), drawn(fast, 3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_another_process_draws_the_same_pixels(make_loader: MakeLoader, photographs: Path) -> None:
    loader = make_loader(photographs, plan(Crop(RANDOM_RESIZED), 64))
    here = hashlib.sha256(drawn(loader, 9)[0].permute(0, 2, 3, 1).numpy().tobytes()).hexdigest()
    make = {
        "ffcv": "from acdc_cli.data.ffcv import FFCVLoader; loader = FFCVLoader(BetonFile(path), plan, 2, cpu)",
        "torch": "loader = TorchLoader(BetonFile(path), plan, 0, cpu)",
    }[loader.kind]
    program = f"""
import hashlib, sys, torch
from pathlib import Path
from acdc_cli.data.augment import RANDOM_RESIZED, Crop
from acdc_cli.data.batches import Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.torch import TorchLoader
path, cpu = Path(sys.argv[1]), torch.device("cpu")
plan = Plan(16, lambda epoch: 64, Crop(RANDOM_RESIZED), 0.5, 5, True)
{make}
digest = hashlib.sha256()
with loader.epoch(9) as batches:
    for batch in batches:
        digest.update(batch.inputs.permute(0, 2, 3, 1).numpy().tobytes())
print(digest.hexdigest())
"""
    result = subprocess.run([sys.executable, "-c", program, photographs], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == here


def test_epochs_and_seeds_draw_other_pixels(make_loader: MakeLoader, noise: Path) -> None:
    first = drawn(make_loader(noise, plan(Crop(PADDED), 32, 50)), 0)
    for seed, epoch in ((5, 1), (6, 0), (4, 1)):
        images, _, indices = drawn(make_loader(noise, plan(Crop(PADDED), 32, 50, seed)), epoch)
        same = (images[indices.argsort()] == first[0][first[2].argsort()]).flatten(1).all(1)
        # of 81 places and two sides each, a few agree by chance
        assert same.float().mean() < 0.1
        assert not torch.equal(indices, first[2])


def test_a_loader_first_used_for_evaluation_can_be_trained_on(make_loader: MakeLoader, noise: Path) -> None:
    loader = make_loader(noise, plan(Crop(PADDED), 32))
    with torch.inference_mode():
        drawn(loader, 0)
    layer = torch.nn.Conv2d(3, 1, 1)
    with loader.epoch(1) as batches:
        layer(next(batches).inputs.float()).mean().backward()
    assert layer.weight.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_on_the_cpu_even_if_it_lags_behind(
    ffcv: ModuleType, photographs: Path, workers: int
) -> None:
    here, gpu = plan(Crop(RANDOM_RESIZED), 96, 4), torch.device("cuda")
    source = BetonFile(photographs)
    pairs = [
        (
            ffcv.FFCVLoader(BetonFile(photographs), here, workers + 1, gpu),
            ffcv.FFCVLoader(BetonFile(photographs), here, 1, CPU),
        ),
        (TorchLoader(source, here, workers, gpu), TorchLoader(source, here, 0, CPU)),
    ]
    busy = torch.randn(4096, 4096, device=gpu)
    for loader, reference in pairs:
        kept = []
        with loader.epoch(2) as batches:
            for batch in batches:
                busy = (busy @ busy).clamp(-1, 1)
                assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
                kept.append((batch.inputs + 0, batch.targets + 0))
        expected, labels, _ = drawn(reference, 2)
        assert torch.equal(torch.cat([images for images, _ in kept]).cpu(), expected)
        assert torch.equal(torch.cat([labels for _, labels in kept]).cpu(), labels)
        loader.close()
        reference.close()
