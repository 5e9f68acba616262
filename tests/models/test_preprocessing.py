from pathlib import Path

import pytest

from acdc_cli.models.preprocessing import IMAGENET, preprocessing


@pytest.mark.parametrize(
    ("model", "file", "origin", "resize", "crop", "interpolation"),
    [
        ("resnet50", "mine.pth", "ResNet50_Weights.IMAGENET1K_V1", 256, 224, "bilinear"),
        ("resnet50", "resnet50-11ad3fa6.pth", "ResNet50_Weights.IMAGENET1K_V2", 232, 224, "bilinear"),
        ("torchvision:efficientnet_b3", "mine.pth", "EfficientNet_B3_Weights.IMAGENET1K_V1", 320, 300, "bicubic"),
        ("timm:resnet50", "mine.pth", "timm's resnet50", 235, 224, "bicubic"),
        ("resnet50", "resnet50.a1_in1k.safetensors", "timm's resnet50.a1_in1k", 235, 224, "bicubic"),
        ("mobilenet_v1", "mine.pth", "ImageNet's usual", 256, 224, "bilinear"),
        ("resnet20", "mine.pth", "takes images as they are", None, None, "bilinear"),
        ("wideresnet16_4", "mine.pth", "takes images as they are", None, None, "bilinear"),
    ],
)
def test_a_checkpoint_sees_what_it_was_trained_to_see(
    model: str, file: str, origin: str, resize: int | None, crop: int | None, interpolation: str
) -> None:
    shown = preprocessing(model, Path(file))
    assert origin in shown.origin
    assert (shown.resize, shown.crop, shown.interpolation) == (resize, crop, interpolation)
    assert (shown.mean, shown.std) == IMAGENET


def test_a_vision_transformer_has_its_own_mean_and_deviation() -> None:
    shown = preprocessing("timm:vit_small_patch16_224", Path("mine.pth"))
    assert (shown.resize, shown.crop, shown.mean, shown.std) == (248, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
