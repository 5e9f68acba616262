"""What 2:4 kernels are given on a GPU; that they compute the same there is for tests/gpu/test_gpu_bench.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acdc_cli.deploy.on_gpu import is_two_of_four, run, runners, with_sparse_products
from acdc_cli.deploy.parity import difference
from acdc_cli.errors import RunError
from acdc_cli.sparsity.patterns import n_of_m

CPU = torch.device("cpu")


def two_of_four(*shape: int) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return weight * n_of_m(weight.abs(), 2, 4)


def network() -> nn.Sequential:
    """A 1x1 convolution with a stride and a bias, a 3x3 one, one of groups, a dense one, and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(64, 32, 1, stride=2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.Conv2d(64, 64, 1, groups=2, bias=False),
        nn.Conv2d(64, 32, 1, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
    )
    with torch.no_grad():
        for at in (0, 1, 2, 6):
            model[at].weight.copy_(two_of_four(*model[at].weight.shape))
    return model.double().eval().requires_grad_(False)


def test_two_nonzeros_in_each_four_and_the_kernels_sides() -> None:
    assert is_two_of_four(two_of_four(32, 64))
    assert is_two_of_four(two_of_four(32, 64, 1, 1))
    assert not is_two_of_four(two_of_four(16, 64))
    assert not is_two_of_four(two_of_four(32, 96))
    three = two_of_four(32, 64)
    three[5, 8:12] = torch.tensor([1.0, 2.0, 3.0, 0.0])
    assert not is_two_of_four(three)


def test_products_take_the_place_of_what_has_a_kernel_and_compute_the_same() -> None:
    model, given = network(), []

    def compress(weight: Tensor) -> Tensor:
        given.append(tuple(weight.shape))
        return weight

    replaced, count = with_sparse_products(model, compress)
    assert (count, given) == (2, [(32, 64), (32, 128)])
    assert not any(isinstance(model[at], type(replaced[0])) for at in (0, 6)), "the model itself stays"
    images = torch.randn(3, 64, 7, 5, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(replaced(images.to(memory_format=layout)), model(images))


def test_without_a_layer_for_the_kernels_there_is_no_such_engine() -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
    assert list(runners(dense, ("torch", "2:4"), CPU)) == ["torch"]
    with pytest.raises(RunError, match=r"there is no engine bf61 on a GPU, only torch, .*did you mean bf16"):
        runners(dense, ("bf61",), CPU)


def test_a_model_in_memory_is_timed_in_turns_on_its_device() -> None:
    """On the CPU here, by its full name: `cpu` alone is for the engines that run files."""
    model, images = network().float(), torch.randn(3, 64, 7, 5)
    outcome = run({"sparse": model}, ("torch", "bf16", "2:4"), images, (2, 1), range(2), 1e-9, torch.device("cpu:0"))
    for each, logits in outcome.logits.items():
        # bfloat16 has 8 bits
        assert difference(model(images), torch.from_numpy(logits)) < (1e-6 if each.engine == "torch" else 0.02)
    assert [(each.engine, batch) for each, batch in outcome.records] == [
        (engine, batch) for engine in ("torch", "bf16", "2:4") for batch in (1, 2)
    ]
    for record in outcome.records.values():
        assert record.peak_bytes == 0
        assert [len(turn.walls) for turn in record.turns] == [1, 1]
