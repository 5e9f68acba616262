"""Dense weights behind a sparse model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from acdc_cli.sparsity.latent import LatentWeights
from acdc_cli.sparsity.masked import MaskedParameters


def make(*values: float) -> tuple[nn.Parameter, LatentWeights]:
    weight = nn.Parameter(torch.tensor(values, dtype=torch.float32))
    return weight, LatentWeights(MaskedParameters({"weight": weight}))


def change(weight: nn.Parameter, *values: float) -> None:
    with torch.no_grad():
        weight.copy_(torch.tensor(values))


def test_they_begin_as_the_weights_and_live_apart_from_them() -> None:
    weight, latent = make(1, -2)
    change(weight, 0, 0)
    assert latent.weights["weight"].tolist() == [1, -2]


def test_what_the_optimiser_made_of_them_is_kept_when_the_model_is_sparse_again() -> None:
    weight, latent = make(1, -2)
    change(weight, 1, 0)
    latent.install()
    assert weight.tolist() == [1, -2]
    change(weight, 3, -4)
    latent.store()
    change(weight, 3, 0)
    assert latent.weights["weight"].tolist() == [3, -4]
    assert latent.magnitudes()["weight"].tolist() == [3, 4]


def test_weights_and_their_copies_stay_where_they_are() -> None:
    weight, latent = make(1, -2)
    places = weight.data_ptr(), latent.weights["weight"].data_ptr()
    latent.install()
    latent.store()
    latent.load_state_dict({"weight": torch.ones(2)})
    assert (weight.data_ptr(), latent.weights["weight"].data_ptr()) == places


def test_a_copy_of_the_state_comes_back() -> None:
    weight, latent = make(1, -2)
    assert latent.state_dict()["weight"] is latent.weights["weight"], "as in torch, the state is not a copy"
    state: dict[str, Tensor] = copy.deepcopy(latent.state_dict())
    change(weight, 5, 6)
    latent.store()
    assert state["weight"].tolist() == [1, -2]
    latent.load_state_dict(state)
    assert latent.weights["weight"].tolist() == [1, -2]
    assert weight.tolist() == [5, 6], "the model has its own way into a checkpoint"
