from __future__ import annotations

import re

import pytest
import torch
from in_memory import InMemory
from torch import nn

from acdc_cli.data.inputs.images import normalisation
from acdc_cli.errors import RunError
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training.evaluate import Forward, evaluate, forward_of
from acdc_cli.training.precision import Precision

CPU = torch.device("cpu")


def plain(net: nn.Module) -> Forward:
    return forward_of(net, normalisation((0, 0, 0), (1, 1, 1), CPU))


def fixed(batch_size: int) -> InMemory:
    """Seven images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return InMemory(images, torch.tensor([0, 1, 2, 0, 1, 2, 0]), batch_size)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10])
def test_metrics_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    net = model()
    forward = forward_of(net, normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU))
    measures = evaluate(net, forward, fixed(batch_size), Classification(), Precision("fp32", CPU))
    whole = evaluate(net, forward, fixed(7), Classification(), Precision("fp32", CPU))
    assert measures == pytest.approx(whole, rel=1e-6)
    assert measures["samples"] == 7


def test_the_model_is_judged_in_eval_mode_and_left_as_it_was() -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    evaluate(net, plain(net), fixed(3), Classification(), Precision("fp32", CPU))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_loader_that_loses_an_image_is_found_out() -> None:
    net, loader = model(), fixed(3)
    loader.samples = 8
    with pytest.raises(AssertionError, match="evaluated 7 of 8"):
        evaluate(net, plain(net), loader, Classification(), Precision("fp32", CPU))


def test_out_of_memory_names_the_batch_that_was_tried() -> None:
    def full(images: torch.Tensor) -> torch.Tensor:
        # more than any machine has
        return torch.empty(2**55, dtype=torch.float32)

    said = "out of memory with a batch of 4 images of 4 pixels: lower data.val_batch_size (--batch-size of acdc eval)"
    with pytest.raises(RunError, match=re.escape(said)):
        evaluate(model(), full, fixed(4), Classification(), Precision("fp32", CPU))


def test_images_are_normalised_as_floats_between_zero_and_one() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = forward_of(nn.Identity(), normalisation((0.5, 0.5, 0.0), (0.5, 0.25, 0.1), CPU))(images)
    assert normalised.flatten().tolist() == pytest.approx([-1.0, 2.0, 2.0])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_model_sees_images_in_the_layout_that_was_asked_for(layout: torch.memory_format) -> None:
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    conv = nn.Conv2d(3, 5, 3).to(memory_format=layout)
    logits = forward_of(conv, normalisation((0, 0, 0), (1, 1, 1), CPU, layout))(images)
    assert logits.is_contiguous(memory_format=layout)
