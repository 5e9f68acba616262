"""Sets of images (P2 E)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from acdc_cli.data.image_set import ImageSet, open_set
from acdc_cli.data.known_sets import known_sets
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.schema import Recipe
from acdc_cli.transfer import target

_METRICS = ("top1", "mean_per_class")
_PREPARATION = ("val_resize", "val_crop", "val_interpolation", "mean", "std", "images", "val_images")


@dataclass(frozen=True)
class Target(target.Target):
    data: ImageSet

    @classmethod
    def open(cls, to: str, upstream: Recipe) -> Self:
        folder = Path(to)
        name = "folder" if folder.is_dir() else to
        data = open_set(ImagesBlock(name=name, path=to if folder.is_dir() else None, batch_size=64))
        for split in ("train", "val"):
            data.split(split)
        manifest = data.split("val").manifest
        known = known_sets().get(manifest.name if manifest else name)
        # a folder's own name says more than that it is a folder
        named = known is not None and known.classes is not None and manifest is not None
        metrics = sorted(_METRICS, key=lambda each: each != (known.metric if known else "top1"))
        lr = known.finetuning_lr if known else 0.001
        own = manifest.name if manifest and named else folder.absolute().name
        return cls(own, data, tuple(metrics), target.by_sgd(lr))

    def blocks(self, upstream: Recipe) -> dict[str, dict[str, Any]]:
        block = upstream.data.model_dump(mode="json")
        own = {"name": self.data.block.name, "path": self.data.block.path, "resolution": block["val_crop"]}
        whole = dict.fromkeys(("images", "val_images", "corrupt_labels"))
        return {"task": {}, "data": block | own | whole | {"augmentation": {}}}

    def preparation(self, block: DataBlock) -> dict[str, Any]:
        keys = block.model_dump(mode="json")
        return {key: keys[key] for key in _PREPARATION}

    def used(self, block: DataBlock) -> int:
        assert isinstance(block, ImagesBlock)
        stored = self.data.stored("train")
        return min(stored, block.images or stored)
