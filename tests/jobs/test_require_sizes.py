"""A model is shown its image sizes before a run starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acdc_cli.data.inputs.images import normalisation
from acdc_cli.errors import ModelError
from acdc_cli.jobs.setup import ReadyModel, _require_known_tokens, require_sizes
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training.evaluate import forward_of
from acdc_cli.training.precision import Precision

CPU = torch.device("cpu")


class Caching(nn.Module):
    """Takes images of 4 or 8 pixels, and keeps a tensor that it builds at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.kept: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] not in (4, 8):
            raise ValueError(f"no images of {images.shape[-1]}")
        if self.kept is None:
            self.kept = torch.full((3,), 2.0)
        return images.mean((2, 3)) * (self.weight * self.kept)


def bench(model: nn.Module) -> ReadyModel:
    forward = forward_of(model, normalisation((0, 0, 0), (1, 1, 1), CPU))
    return ReadyModel(model, forward, [], Classification(), Precision("fp32", CPU), CPU)


def test_a_size_that_does_not_fit_is_told_with_the_models_own_words() -> None:
    with pytest.raises(ModelError, match=r"takes no images of 6 pixels \(no images of 6\)"):
        require_sizes(bench(Caching()), [4, 6])


def test_an_error_that_no_size_explains_is_not_taken_for_a_misfit() -> None:
    class Broken(Caching):
        def forward(self, images: Tensor) -> Tensor:
            raise KeyError("scale")

    with pytest.raises(KeyError, match="scale"):
        require_sizes(bench(Broken()), [4])


def test_what_the_model_keeps_of_it_can_be_trained_with() -> None:
    model = Caching()
    require_sizes(bench(model), [4, 8])
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_model_of_more_tokens_than_the_tokenizer_has_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    model = Caching()
    model.vocabulary_size = 1200  # type: ignore[assignment]
    _require_known_tokens(model, 1200)
    assert capsys.readouterr().err == ""
    _require_known_tokens(model, 1100)
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("warning: the tokenizer has 1,100 tokens, and the model 1,200: some models have spare ones")
