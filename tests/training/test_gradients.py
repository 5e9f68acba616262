"""The gradients that a method may ask the trainer for, and what asking leaves as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_trainer import MiniRun
from torch import Tensor
from torch.nn import functional as F

from acdc_cli.schedule.time import Moment

ONESHOT = {"method": "oneshot", "target": 0.5, "at": 1}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., MiniRun]]:
    """Makes runs, each in a folder of its own."""
    runs: list[MiniRun] = []

    def make(sparsity: dict[str, Any] = ONESHOT, **settings: Any) -> MiniRun:
        runs.append(MiniRun(tmp_path / str(len(runs)), 3, sparsity, **settings))
        return runs[-1]

    yield make
    for run in runs:
        run._tracker.close()


def moment(epoch: int) -> Moment:
    return Moment(epoch, 3 * epoch, 3, 3)


def by_hand(run: MiniRun, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Through batch norm's running statistics, without dropout."""
    model = run.model
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    norm = model[1]
    shown = ((images / 255) - 0.5) / 0.5
    hidden = F.conv2d(shown, model[0].weight, model[0].bias)
    hidden = F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False)
    hidden = F.adaptive_avg_pool2d(hidden.relu(), 6).flatten(1)
    logits = F.linear(hidden, model[6].weight, model[6].bias)
    loss = F.cross_entropy(logits, labels)
    conv, linear = torch.autograd.grad(loss, [model[0].weight, model[6].weight])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept.items())
    return {"0.weight": conv, "6.weight": linear}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_gradient_is_that_of_the_mean_loss_in_eval_mode_masks_or_not(made: Callable[..., MiniRun], size: int) -> None:
    run = made()
    run.fit()
    assert run.sparsifier.masked.sparsity() == 0.5
    with run.train.epoch(2) as batches:
        first = next(batches)
    gradients = list(run.sparsifier.training.gradients(moment(2), 4 // size, size))
    assert len(gradients) == 4 // size
    for number, gradient in enumerate(gradients):
        part = slice(number * size, (number + 1) * size)
        expected = by_hand(run, first.inputs[part], first.targets[part])
        assert gradient.keys() == expected.keys() == run.sparsifier.masked.parameters.keys()
        torch.testing.assert_close(gradient, expected)
        assert all(gradient[name][~mask].any() for name, mask in run.sparsifier.masked.masks.items())


@pytest.mark.parametrize(
    ("asked", "size", "count"), [(5, 4, 3), (3, 4, 3), (2, 4, 2), (99, 3, 3), (99, 1, 12), (1, 5, 0)]
)
def test_there_are_no_more_than_the_epoch_has(made: Callable[..., MiniRun], asked: int, size: int, count: int) -> None:
    # 12 images in batches of 4, each of which gives whole pieces only
    run = made()
    assert len(list(run.sparsifier.training.gradients(moment(0), asked, size))) == count


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("taken", [1, 99], ids=["left early", "all"])
def test_asking_leaves_no_trace(made: Callable[..., MiniRun], training: bool, taken: int) -> None:
    run = made()
    run.fit()
    run.model.train(training)
    for parameter in run.model.parameters():
        parameter.grad = torch.full_like(parameter, 3)
    model = {name: value.clone() for name, value in run.model.state_dict().items()}
    generator = torch.get_rng_state()
    stream = run.sparsifier.training.gradients(moment(2), 6, 2)
    for gradient in islice(stream, taken):
        assert not run.model.training
        assert not any(part.requires_grad for part in gradient.values())
    stream.close()  # type: ignore[attr-defined]
    assert run.model.training == training
    assert all(module.training == training for module in run.model.modules())
    assert all(torch.equal(value, model[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is not None and (parameter.grad == 3).all() for parameter in run.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_images_are_those_that_the_epoch_begins_with(made: Callable[..., MiniRun]) -> None:
    run = made()
    [gradient] = run.sparsifier.training.gradients(moment(1), 1, 4)
    with run.train.epoch(1) as batches:
        first = next(batches)
    run.model.eval()
    torch.testing.assert_close(gradient, by_hand(run, first.inputs, first.targets))


def test_the_training_afterwards_is_as_if_nobody_had_asked(
    made: Callable[..., MiniRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def trained(asks: bool) -> MiniRun:
        run = made({"method": "dense"})
        if asks:
            monkeypatch.setattr(
                run.sparsifier,
                "on_epoch_start",
                lambda at: asked.append(len(list(run.sparsifier.training.gradients(at, 2, 4)))),
            )
        torch.manual_seed(1)
        run.fit()
        return run

    quiet, asking = trained(False), trained(True)
    assert asked == [2, 2, 2]
    for name, value in quiet.model.state_dict().items():
        assert torch.equal(value, asking.model.state_dict()[name]), name
