"""Images: uint8 from 0 to 255, normalised on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acdc_cli.data.data_set import Preparation
from acdc_cli.data.image_set import expected_set as expected_set
from acdc_cli.data.image_set import fingerprints as fingerprints
from acdc_cli.data.image_set import open_set as open_set
from acdc_cli.recipe.blocks.images import ImagesBlock


def vocabulary(block: ImagesBlock) -> None:
    return None


def blank(size: int, device: torch.device) -> Tensor:
    return torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)


def output_shape(size: int, outputs: int) -> tuple[int, ...]:
    return 1, outputs


def preparation(block: ImagesBlock, device: torch.device, layout: torch.memory_format) -> Preparation:
    return normalisation(block.mean, block.std, device, layout)


engine_inputs_are = "float32 RGB / 255, less mean, over std"


def deployed(model: nn.Module) -> nn.Module:
    return model


def engine_inputs(inputs: Tensor, block: ImagesBlock) -> Tensor:
    """uint8 (n, 3, height, width) to float32, normalised as in training."""
    return normalised(inputs, block).contiguous()


def normalised(images: Tensor, block: ImagesBlock) -> Tensor:
    shift, scale = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (block.mean, block.std))
    return (images - shift) / scale


def normalisation(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
) -> Preparation:
    """Runs on the device, where torch.compile fuses it.

    layout: memory format of the images that the model sees. Loaders give channels_last, and convolutions keep the
    format.
    """
    shift = 255 * torch.tensor(mean, device=device).view(1, 3, 1, 1)
    scale = 1 / (255 * torch.tensor(std, device=device).view(1, 3, 1, 1))

    def normalised(inputs: Tensor, training: bool) -> tuple[Tensor | None, ...]:
        return (((inputs - shift) * scale).contiguous(memory_format=layout),)

    return normalised
