"""Groups of consecutive input channels: N of M, and blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acdc_cli.sparsity.patterns import block_means, fits, n_of_m, whole_blocks

X, _ = True, False


def test_two_of_four_input_features_stay_in_every_group_of_a_linear_weight() -> None:
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 0.0, 8.0, 7.0], [5.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 1.0]])
    assert n_of_m(scores, 2, 4).tolist() == [[_, X, X, _, X, _, X, _], [X, X, _, _, X, _, _, X]]


def test_groups_of_a_convolution_run_along_input_channels_at_one_kernel_position() -> None:
    # 1 output, 4 inputs, 1 × 2: columns are the two kernel positions
    scores = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0]]).view(1, 4, 1, 2)
    assert n_of_m(scores, 2, 4).view(4, 2).tolist() == [[_, X], [_, X], [X, _], [X, _]]
    assert n_of_m(scores, 1, 2).view(4, 2).tolist() == [[_, X], [X, _], [_, X], [X, _]]


def test_masked_weights_rank_below_zeros() -> None:
    assert n_of_m(torch.tensor([[-1.0, 0.0, -1.0, 0.0]]), 2, 4).tolist() == [[_, X, _, X]]


def test_blocks_are_judged_by_their_mean_at_one_kernel_position() -> None:
    scores = torch.tensor([[4.0, 0.0], [0.0, 3.0], [1.0, 3.0], [1.0, 1.0]]).view(1, 4, 1, 2)
    assert block_means(scores, 2).tolist() == [[[[2.0, 1.5]], [[1.0, 2.0]]]]
    assert block_means(scores, 4).tolist() == [[[[1.5, 1.75]]]]
    mask = torch.tensor([[X, _], [_, X]]).view(1, 2, 1, 2)
    assert whole_blocks(mask, 2).view(4, 2).tolist() == [[X, _], [X, _], [_, X], [_, X]]


def test_a_block_of_one_channel_is_the_weight_itself() -> None:
    scores = torch.rand(2, 3)
    assert block_means(scores, 1) is scores
    assert fits(torch.Size([2, 3]), 1)


@pytest.mark.parametrize(("shape", "whole"), [((8, 3, 7, 7), False), ((8, 1, 3, 3), False), ((5, 12), True)])
def test_a_pattern_fits_whole_groups_of_input_channels_only(shape: tuple[int, ...], whole: bool) -> None:
    assert fits(torch.Size(shape), 4) is whole


@st.composite
def grouped_scores(draw: st.DrawFn) -> tuple[Tensor, int]:
    channels = draw(st.integers(2, 5))
    kernel = draw(st.sampled_from([(), (2,), (1, 1), (3, 2)]))
    shape = (draw(st.integers(1, 3)), channels * draw(st.integers(1, 3)), *kernel)
    count = torch.Size(shape).numel()
    values = draw(st.sampled_from([st.just(0), st.integers(-1, 2), st.integers(0, 1000)]))
    scores = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.float32).view(shape)
    return scores, channels


def groups(tensor: Tensor, channels: int) -> list[list[float]]:
    """Every group of consecutive input channels, by loops."""
    flat = tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)
    return [
        [flat[out, start + member, position].item() for member in range(channels)]
        for out in range(flat.shape[0])
        for start in range(0, flat.shape[1], channels)
        for position in range(flat.shape[2])
    ]


@given(grouped_scores(), st.data())
def test_n_of_m_agrees_with_sorting_each_group(drawn: tuple[Tensor, int], data: st.DataObject) -> None:
    scores, m = drawn
    n = data.draw(st.integers(1, m - 1))
    mask = n_of_m(scores, n, m)
    assert mask.shape == scores.shape
    for values, kept in zip(groups(scores, m), groups(mask, m), strict=True):
        ranked = sorted(range(m), key=lambda member: (-values[member], member))
        assert [member for member in range(m) if kept[member]] == sorted(ranked[:n])


@given(grouped_scores())
def test_block_means_agree_with_adding_up_each_group(drawn: tuple[Tensor, int]) -> None:
    scores, channels = drawn
    means = [mean for [mean] in groups(block_means(scores, channels), 1)]
    assert means == pytest.approx([sum(group) / channels for group in groups(scores, channels)])


def test_nothing_depends_on_the_memory_layout() -> None:
    scores = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    other = scores.to(memory_format=torch.channels_last)
    assert torch.equal(n_of_m(scores, 2, 4), n_of_m(other, 2, 4))
    assert torch.equal(block_means(scores, 4), block_means(other, 4))
