"""Whether a checkpoint's content is a state of this run: a seal shows damage, not what was sealed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, InstanceOf
from torch import Tensor
from torch.optim import AdamW

from acdc_cli.errors import CheckpointError
from acdc_cli.reading import Count, EpochNumber, Form, require
from acdc_cli.runs.forms import PhaseEnd
from acdc_cli.training.parts import Parts

Tensors = dict[str, Tensor]
# pydantic's float takes a tensor of one number
Number = InstanceOf[float] | int
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


class _Running(Form):
    losses: Tensor
    images: Count
    learning_rate: Number
    train_seconds: Number
    seconds: Number


class _Process(Form):
    running: _Running
    random: dict[str, Any]
    memory: Tensors = {}


class _Optimizer(Form):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Masks(Form):
    forward: Tensors
    backward: Tensors | None = None


class _Method(Form):
    masks: _Masks


class _Average(Form):
    begun: bool
    average: Tensors


class _Teacher(Form):
    digest: str
    model: Tensors = {}


class _Metadata(Form):
    recipe: dict[str, Any]


class _End(PhaseEnd):
    """The record at the end of a phase, which is always validated."""

    epoch: EpochNumber


class _State(Form):
    """What `Trainer.state_dict` gives."""

    epoch: EpochNumber
    step: Count
    finished: bool
    processes: Annotated[list[_Process], Field(min_length=1)]
    ends: dict[str, _End]
    seconds: Number
    model: Tensors
    optimizer: _Optimizer
    sparsifier: _Method
    ema: _Average | None
    teacher: _Teacher | None = None
    precision: dict[str, Any]
    train_flops: Number | None
    metadata: _Metadata


def require_form(state: Any, folder: Path) -> None:
    """Raises CheckpointError unless it has the keys and types of a state."""
    try:
        require(state, _State)
        # what will be written as JSON, or is compared with it
        json.dumps([state["ends"], state["metadata"]])
    except (ValueError, TypeError) as error:
        raise _refusal(folder, str(error)) from error


def require_fit(state: Mapping[str, Any], parts: Parts, folder: Path) -> None:
    """Raises CheckpointError unless the names and shapes in a state of the right form are those of these parts.

    A copy into a tensor of another shape may succeed, and training would then continue with other numbers.
    """
    shapes = {name: tensor.shape for name, tensor in parts.model.state_dict().items()}
    if misfit := (
        _position(state, parts)
        or _of_model(state["model"], parts.model.state_dict())
        or _of_optimizer(state["optimizer"], parts)
        or _unlike(state["sparsifier"], parts.sparsifier.state_dict(), "sparsifier")
        or _by_name(state["sparsifier"], shapes, parts.sparsifier.masked.parameters.keys(), "sparsifier")
        or _by_name(state["ema"], shapes, (), "ema")
    ):
        raise _refusal(folder, misfit)


@contextmanager
def loading(folder: Path, ranks: int) -> Iterator[None]:
    """A method's own error over a state that it cannot load becomes a CheckpointError."""
    # with several ranks, torch's own may be the loss of another rank
    of_torch = () if ranks > 1 else (RuntimeError,)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, *of_torch) as error:
        raise _refusal(folder, f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _refusal(folder: Path, misfit: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint in {folder} is no state of this run ({misfit}); restore a copy, or start a new run with --out"
    )


def _position(state: Mapping[str, Any], parts: Parts) -> str:
    """Where in the run, and what it cost until there."""
    epoch, step = state["epoch"], state["step"]
    within = (epoch < parts.epochs and step <= parts.train.steps) or (epoch == parts.epochs and step == 0)
    if parts.cost and state["train_flops"] is None:
        return "no train_flops"
    headline = parts.task.measures.headline.key
    for kind, end in state["ends"].items():
        if not (_is_number(end.get(headline)) and _is_number(end.get(f"ema_{headline}", 0))):
            return f"ends.{kind} has no {headline}"
    return "" if within else f"epoch {epoch}, step {step} of {parts.epochs} epochs of {parts.train.steps} steps"


def _of_model(saved: Tensors, own: Tensors) -> str:
    for name in {**own, **saved}:
        before, now = (_kind(tensors.get(name)) for tensors in (saved, own))
        if before != now:
            return f"model.{name} is {before}, not {now}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if _is_number(value):
        return "a number"
    return "missing" if value is None else type(value).__name__


def _of_optimizer(saved: Mapping[str, Any], parts: Parts) -> str:
    own = parts.optimizer.state_dict()
    if [group.get("params") for group in saved["param_groups"]] != [group["params"] for group in own["param_groups"]]:
        return "optimizer: other groups of parameters"
    weights = [weight for group in parts.optimizer.param_groups for weight in group["params"]]
    if not saved["state"] and not own["state"]:
        return ""
    keys = _ADAMW if isinstance(parts.optimizer, AdamW) else {key for each in own["state"].values() for key in each}
    for number, weight in enumerate(weights):
        state = saved["state"].get(number, {})
        if not keys <= state.keys():
            return f"optimizer: parameter {number} lacks {min(keys - state.keys())}"
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
                return f"optimizer: {key} of parameter {number} is {_kind(value)}, not {list(weight.shape)}"
    return ""


def _unlike(saved: Any, own: Any, place: str) -> str:
    """Where a method's state has other keys and types than that of a new run; it may have more."""
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        # a method's tensors may come and go, and all at once
        if not saved and place != "sparsifier":
            return ""
        return next((text for key in own if (text := _unlike(saved.get(key), own[key], f"{place}.{key}"))), "")
    return "" if own is None or _kind(saved) == _kind(own) else f"{place} is {_kind(saved)}, not {_kind(own)}"


def _by_name(saved: Any, shapes: Mapping[str, torch.Size], prunable: Any, place: str) -> str:
    """Where tensors under the names of weights do not have their shapes, or some weights are missing."""
    if not isinstance(saved, Mapping):
        return ""
    if saved.keys() & set(prunable) and (missing := set(prunable) - saved.keys()):
        return f"{place} lacks {min(missing)}"
    for key, value in saved.items():
        # or one value for each filter
        if isinstance(value, Tensor) and key in shapes and value.shape not in (shapes[key], shapes[key][:1]):
            return f"{place}.{key} is {_kind(value)}, not {list(shapes[key])}"
    return next((text for key in saved if (text := _by_name(saved[key], shapes, prunable, f"{place}.{key}"))), "")
