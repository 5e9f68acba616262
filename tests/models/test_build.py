from pathlib import Path

import pytest
import torch
from torch import nn

from acdc_cli.errors import ModelError
from acdc_cli.models import build
from acdc_cli.recipe.schema import ModelBlock


def test_the_local_models_are_listed() -> None:
    assert build.names() == [
        "mobilenet_v1",
        "resnet101",
        "resnet110",
        "resnet152",
        "resnet18",
        "resnet20",
        "resnet32",
        "resnet34",
        "resnet44",
        "resnet50",
        "resnet50_half",
        "resnet56",
        "resnet8",
        "transformer_xl",
        "transformer_xl_base",
        "transformer_xl_large",
        "wideresnet16_4",
        "wideresnet16_8",
        "wideresnet22_2",
        "wideresnet28_10",
        "wideresnet28_10_biased",
    ]


def test_a_new_file_is_a_new_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
        "MODELS = {'tiny': tiny}\n"
    )
    from acdc_cli import models

    paths = [*models.__path__, str(tmp_path)]
    monkeypatch.setattr(models, "__path__", paths)
    monkeypatch.setattr(models.__spec__, "submodule_search_locations", paths)
    assert "tiny" in build.names()
    assert build.build(ModelBlock(name="tiny"), 3)(torch.zeros(1, 3, 2, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("resnet50", "acdc_cli"),
        ("densenet121", "torchvision"),
        ("torchvision:resnet50", "torchvision"),
        ("timm:resnet50", "timm"),
        ("vit_tiny_patch16_224", "timm"),
        ("resnet20", "acdc_cli"),
        ("local:resnet20", "acdc_cli"),
    ],
)
def test_a_name_is_looked_up_here_then_in_torchvision_then_in_timm(name: str, library: str) -> None:
    with torch.device("meta"):
        model = build.build(ModelBlock(name=name), 5)
    assert type(model).__module__.split(".")[0] == library
    assert [module for module in model.modules() if isinstance(module, nn.Linear)][-1].out_features == 5


def test_all_resnet50_have_the_same_parameters() -> None:
    with torch.device("meta"):
        models = [build.build(ModelBlock(name=f"{source}:resnet50"), 5) for source in ("local", "timm", "torchvision")]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet_50", "did you mean resnet50 (local, torchvision, timm)"),
        ("ResNet20", "did you mean resnet20 (local)"),
        ("torchvision:vit_small_patch16_224", "did you mean vit_small_patch16_224 (timm)"),
        ("timm:resnet50.a1_in1k", "resnet50 (local, torchvision, timm)"),
        ("keras:resnet50", "resnet50 (local, torchvision, timm)"),
        ("zzzzzzzz", "there is no model 'zzzzzzzz'; Local models: mobilenet_v1, "),
    ],
)
def test_an_unknown_name_suggests_the_nearest_of_all_sources(name: str, suggestion: str) -> None:
    with pytest.raises(ModelError) as caught:
        build.find(name)
    message = str(caught.value)
    assert suggestion in message
    assert "resnet8" in message
    assert "timm.list_models" in message


def test_detection_models_are_no_classifiers() -> None:
    with pytest.raises(ModelError, match="there is no model"):
        build.find("torchvision:fasterrcnn_resnet50_fpn")


def test_options_reach_the_constructor() -> None:
    model = build.build(ModelBlock(name="wideresnet22_2", options={"dropout": 0.3}), 10)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}
    model = build.build(ModelBlock(name="torchvision:resnet18", options={"zero_init_residual": True}), 10)
    assert model.get_submodule("layer1.0.bn2").weight.count_nonzero() == 0


@pytest.mark.parametrize("name", ["resnet8", "torchvision:resnet18", "timm:resnet18"])
def test_a_wrong_option_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=r"rejects model.options \{drop_pat: 0.1\}: .*'drop_pat'"):
        build.build(ModelBlock(name=name, options={"drop_pat": 0.1}), 10)


@pytest.mark.parametrize(
    "option", [{"num_classes": 5}, {"pretrained": True}, {"weights": "DEFAULT"}, {"checkpoint_path": "a.pt"}]
)
def test_the_class_count_and_the_weights_are_no_options(option: dict[str, bool | int | str]) -> None:
    with pytest.raises(ModelError, match=rf"model.options.{next(iter(option))} cannot be set"):
        build.build(ModelBlock(name="torchvision:resnet18", options=option), 10)


def test_auxiliary_classifiers_are_refused_with_the_way_out() -> None:
    with torch.device("meta"):
        with pytest.raises(ModelError, match="aux_logits: false"):
            build.build(ModelBlock(name="torchvision:googlenet", options={"init_weights": False}), 10)
        build.build(ModelBlock(name="torchvision:googlenet", options={"init_weights": False, "aux_logits": False}), 10)


def test_weights_of_a_plain_model_start_a_blurred_one(tmp_path: Path) -> None:
    source = build.build(ModelBlock(name="resnet8"), 10)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = build.build(ModelBlock(name="resnet8", blurpool=True, weights=str(tmp_path / "weights.pt")), 10)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    images = torch.rand(1, 3, 16, 16)
    assert not torch.allclose(model.eval()(images), source.eval()(images))
