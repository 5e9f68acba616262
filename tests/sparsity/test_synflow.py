"""SynFlow: the flow through a network of six weights, worked by hand, and what pruning in rounds changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from acdc_cli.errors import RunError
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.synflow import Config, Method

START = Moment(0, 0, 2, 5)


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, eps=0.0), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model[2].weight.copy_(torch.tensor([[2.0, -1.0]]))
        # whose absolute value counts
        model[1].bias.copy_(torch.tensor([-1.0, 0.0]))
    return model


def pruned(model: nn.Module, **keys: Any) -> Method:
    weights = {name: value for name, value in model.named_parameters() if value.ndim > 1}
    made = Method(Config(method="synflow", **{"target": 0.5} | keys), MaskedParameters(weights), epochs=2)
    training = SimpleNamespace(model=model, input_shape=lambda epoch: (2,))
    made.attach(SGD(model.parameters(), lr=0.1), training)  # type: ignore[arg-type]
    made.on_epoch_start(START)
    return made


def kept(made: Method) -> list[list[bool]]:
    return [mask.flatten().tolist() for mask in made.masked.masks.values()]


def test_one_round_keeps_the_weights_with_the_largest_flow() -> None:
    # units 3 + 1 (bias) and 3.5: scores 1·2, 2·2; 3·1, 0.5·1 and 2·4, 1·3.5, of which the three largest stay
    assert kept(pruned(network(), rounds=1)) == [[False, True, False, False], [True, True]]


def test_rounds_score_anew_what_is_left() -> None:
    # 6 · 0.5^(1/3) = 4.76: 0.5 goes. Scores 2, 4; 3 and 8, 3; 6 · 0.5^(2/3) = 3.78: 2 goes.
    # Scores 4; 3 and 2·3, 3: the last round keeps three, of equal scores the first.
    assert kept(pruned(network(), rounds=3)) == [[False, True, True, False], [True, False]]


def test_the_model_keeps_its_values_its_statistics_and_its_mode() -> None:
    model, untouched = network(), network()
    made = pruned(model)
    for name, value in model.state_dict().items():
        mask = made.masked.masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, untouched.state_dict()[name] * mask)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_the_rounds_are_paid_before_the_first_epoch_only() -> None:
    made = pruned(network(), rounds=7)
    assert [made.cost(epoch, 5).probed_images for epoch in (0, 1)] == [7, 0]


def test_a_flow_that_no_number_holds_is_an_error_in_words() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(9)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(3e38)
    with pytest.raises(RunError, match="exceeds float64"):
        pruned(model)


def test_n_of_m_takes_one_round() -> None:
    with pytest.raises(ValueError, match="set rounds: 1"):
        Config(method="synflow", target=0.5, pattern="2:4")
    assert Config(method="synflow", target=0.5, pattern="2:4", rounds=1).rounds == 1


def test_a_layer_without_flow_is_emptied_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
    pruned(model)
    assert "SynFlow leaves no weight in 1 of 2 layers, 2, so they pass no signal" in " ".join(
        capsys.readouterr().err.split()
    )
