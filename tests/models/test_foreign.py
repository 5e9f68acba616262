"""Checkpoints of others, in files that are written here in each project's layout."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from acdc_cli.errors import ModelError
from acdc_cli.models import build
from acdc_cli.models.weights import load_weights, plain_state_dict


def small(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return build.find("resnet8")(num_classes=classes)


def state(seed: int = 1) -> dict[str, Tensor]:
    return small(seed).state_dict()


def saved(content: Any, tmp_path: Path, **keys: Any) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(content, path, **keys)
    return path


def loaded(content: Any, tmp_path: Path, **keys: Any) -> dict[str, Tensor]:
    model = small(2)
    load_weights(model, saved(content, tmp_path, **keys))
    return dict(model.state_dict())


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model_state_dict": weights, "epoch": 3},
        lambda weights: {"net": weights, "acc": 91.2},
        lambda weights: {"state_dict_ema": weights},
        lambda weights: {"state_dict": prefixed("model.", weights), "hyper_parameters": {"lr": 0.1}},
        lambda weights: {"state_dict": prefixed("model.", weights) | {"criterion.weight": torch.ones(10)}},
        lambda weights: prefixed("model._orig_mod.module.", weights),
        lambda weights: prefixed("module.", weights) | {"n_averaged": torch.tensor(7)},
        lambda weights: weights | {"conv1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
        lambda weights: {"state": {"network": {"backbone": weights}}},
    ],
    ids=["ACDC", "net", "EMA alone", "Lightning", "with a loss", "nested", "averaged", "thop", "unheard of"],
)
def test_weights_are_found_wherever_they_lie(wrap: Any, tmp_path: Path) -> None:
    assert_equal(loaded(wrap(state()), tmp_path), state())


def test_of_a_model_and_its_average_the_model_is_taken_and_the_other_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(loaded({"ema": state(3), "model": state(1)}, tmp_path), state(1))
    said = " ".join(capsys.readouterr().err.split())
    assert "model is taken; the file also holds ema" in said


def test_the_optimisers_tensors_are_no_weights(tmp_path: Path) -> None:
    model = small(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"optimizer": optimizer.state_dict(), "state_dict": model.state_dict()}
    assert_equal(loaded(content, tmp_path), dict(model.state_dict()))


class Recorder:
    """A class of the project that wrote the file."""

    def __init__(self) -> None:
        self.best = 91.2


@pytest.mark.parametrize("layout", [True, False], ids=["zip", "torch before 1.6"])
def test_objects_of_others_are_neither_imported_nor_in_the_way(layout: bool, tmp_path: Path) -> None:
    content = {
        "state_dict": state(),
        "args": argparse.Namespace(lr=0.1, arch="resnet8"),
        "best": np.float64(91.2),
        "recorder": Recorder(),
        "optimizer": {"type": torch.optim.SGD, "state_dict": {}},
    }
    assert_equal(loaded(content, tmp_path, _use_new_zipfile_serialization=layout), state())


def mask(weight: Tensor) -> Tensor:
    return (torch.rand(weight.shape, generator=torch.Generator().manual_seed(4)) < 0.3).float()


def masked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * mask(tensor) if tensor.ndim > 1 else tensor for name, tensor in weights.items()}


def test_the_authors_wrapped_layers_get_their_masks(tmp_path: Path) -> None:
    wrapped: dict[str, Tensor] = {}
    for name, tensor in state().items():
        layer, _, leaf = name.rpartition(".")
        is_wrapped = tensor.ndim > 1 or layer == "fc"
        wrapped[f"module.{layer}._layer.{leaf}" if is_wrapped else f"module.{name}"] = tensor
        if is_wrapped:
            wrapped[f"module.{layer}._{leaf}_mask"] = mask(tensor) if tensor.ndim > 1 else torch.ones_like(tensor)
    content = {"epoch": 99, "model_config": {"arch": "resnet8"}, "model_state_dict": wrapped}
    assert_equal(loaded(content, tmp_path), masked(state()))


@pytest.mark.parametrize("name", ["conv1._weight_mask", "conv1.weight_mask", "conv1.mask"])
def test_a_mask_of_another_shape_than_its_weight_is_refused(name: str, tmp_path: Path) -> None:
    shape = list(state()["conv1.weight"].shape)
    with pytest.raises(ModelError, match=re.escape(f"the mask {name} has shape [16, 1], its weight {shape}; apply")):
        loaded(state() | {name: torch.ones(16, 1)}, tmp_path)


def test_torchs_pruning_is_applied(tmp_path: Path) -> None:
    source = small(1)
    prune.custom_from_mask(source.conv1, "weight", mask(source.conv1.weight))
    expected = state() | {"conv1.weight": state()["conv1.weight"] * mask(state()["conv1.weight"])}
    assert_equal(loaded(source.state_dict(), tmp_path), expected)


def test_strs_weights_lie_above_their_threshold(tmp_path: Path) -> None:
    weights = state()
    weights["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    weights["conv1.weight"][0, 0, 0] = torch.tensor([0.75, -0.6, 0.2])
    weights["conv1.sparseThreshold"] = torch.zeros(1, 1)
    weights["fc.weight"] = weights["fc.weight"].view(10, 64, 1, 1)
    del weights["fc.bias"]
    done = loaded({"state_dict": prefixed("module.", weights)}, tmp_path)
    # sigmoid(0) = 0.5
    assert done["conv1.weight"][0, 0, 0].tolist() == pytest.approx([0.25, -0.1, 0.0])
    assert int(done["conv1.weight"].count_nonzero()) == 2
    assert torch.equal(done["fc.weight"], state()["fc.weight"])
    assert not done["fc.bias"].any()


@pytest.mark.parametrize(
    "more", [{"conv1.sparseThreshold": torch.zeros(16, 1)}, {"gone.sparseThreshold": torch.zeros(1, 1)}]
)
def test_thresholds_of_another_kind_are_refused(more: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"1 unknown: .*sparseThreshold"):
        load_weights(small(), saved(state() | more, tmp_path))


@pytest.mark.parametrize("name", ["downsample", "shortcut"])
def test_a_file_with_convolutions_in_its_shortcuts_asks_for_them(name: str, tmp_path: Path) -> None:
    source = build.find("resnet8")(num_classes=10, shortcut="conv")
    weights = {key.replace("downsample", name): tensor for key, tensor in source.state_dict().items()}
    path = saved({"net": prefixed("module.", weights)}, tmp_path)
    assert build.options_for("resnet8", path) == {"shortcut": "conv"}
    assert build.options_for("resnet8", saved(state(), tmp_path)) == {}
    model = build.find("resnet8")(num_classes=10, shortcut="conv")
    load_weights(model, saved({"net": prefixed("module.", weights)}, tmp_path))
    assert_equal(dict(model.state_dict()), dict(source.state_dict()))


def test_rigls_masks_beside_masked_weights_change_nothing(tmp_path: Path) -> None:
    content = {"model": masked(state()), "pruner": {"step": 7, "backward_masks": [torch.ones(16, 3, 3, 3)]}}
    assert_equal(loaded(content, tmp_path), masked(state()))


def test_a_classifier_of_another_name_is_matched_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {name.replace("fc.", "linear."): tensor for name, tensor in state().items()}
    assert_equal(loaded(weights, tmp_path), state())
    assert "linear is fc here" in capsys.readouterr().err


def test_names_that_shapes_leave_open_are_refused_with_the_nearest(tmp_path: Path) -> None:
    weights = {name.replace("layer1.0.conv2", "layer1.0.conv3"): tensor for name, tensor in state().items()}
    weights |= {"layer1.0.extra.weight": torch.zeros(16, 16, 3, 3)}
    with pytest.raises(ModelError, match=r"1 unknown: layer1\.0\.extra\.weight \[16, 16, 3, 3\]"):
        load_weights(small(), saved(weights, tmp_path))


def test_only_a_classifiers_missing_bias_is_zero(tmp_path: Path) -> None:
    weights = state()
    del weights["bn1.bias"]
    with pytest.raises(ModelError, match=r"1 missing: bn1\.bias \[16\]"):
        load_weights(small(), saved(weights, tmp_path))


def test_another_network_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        load_weights(small(), saved({"weights": {"first.w": torch.zeros(3, 2)}}, tmp_path))
    assert "holds no weights of this model: its 1 tensors are weights.first.w [3, 2]" in str(refused.value)


def test_a_whole_model_in_a_file_is_named_as_that(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"an object of class .*Sequential; save its state_dict\(\) instead"):
        load_weights(small(), saved(nn.Sequential(nn.Linear(2, 2)), tmp_path))


def test_a_file_of_acdc_from_before_the_shortcuts_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    save_file(plain_state_dict(small()), path, {"acdc": "{}"})
    with pytest.raises(ModelError, match=r"was written by acdc 0\.1\.0; since 0\.2\.0 this model computes"):
        load_weights(small(), path)
    save_file(plain_state_dict(small()), path, {"acdc": "{}", "acdc version": "0.2.0"})
    load_weights(small(), path)
    save_file(plain_state_dict(small()), path, {"acdc": "{}", "acdc version": "new"})
    with pytest.raises(ModelError, match=r"is damaged \(acdc version: .*new.*\); fetch or write the file again"):
        load_weights(small(), path)
