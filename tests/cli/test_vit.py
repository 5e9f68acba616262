"""A vision transformer of timm through `acdc train`: which layers are pruned, and how many of their weights stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Acdc
from safetensors.torch import load_file

MODEL = "model={name: timm:vit_tiny_patch16_224, options: {img_size: 5, patch_size: 5, embed_dim: 32, num_heads: 2}}"
PHASES = "warmup_epochs: 0, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1"
METHODS = {
    "acdc": f"{{method: acdc, target: 0.9, {PHASES}}}",
    "acdc 2:4": f"{{method: acdc, target: 0.5, pattern: '2:4', {PHASES}}}",
    "rigl": "{method: rigl, target: 0.9, distribution: uniform, every: 2}",
}
PRUNED = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (128, 32), "mlp.fc2": (32, 128)}
"""Linear layers of each block and their shapes."""


@pytest.mark.parametrize("name", ["acdc", "acdc 2:4", pytest.param("rigl", marks=pytest.mark.slow)])
def test_a_vision_transformer_of_timm_is_pruned_between_patch_embedding_and_head(
    acdc: Acdc, recipe: Path, name: str
) -> None:
    sets = (
        MODEL,
        "model.options.depth=2",
        "epochs=3",
        "optim={name: adamw, lr: 0.002, weight_decay: 0.05, schedule: {name: cosine, warmup_epochs: 1}}",
        f"sparsity={METHODS[name]}",
        "sparsity.keep_dense=[first, last]",
    )
    result = acdc("train", recipe, *(word for item in sets for word in ("--set", item)))
    assert result.exit_code == 0, result.output
    assert "of 27,296 conv and linear weights 24,576 can be pruned" in " ".join(result.stderr.split())

    # 75 · 32 of the patch embedding and 32 · 10 of the head are not
    shapes = {f"blocks.{block}.{layer}.weight": shape for block in range(2) for layer, shape in PRUNED.items()}
    weights = load_file("runs/small-0/sparse.safetensors")
    assert all(weights[layer].shape == shape for layer, shape in shapes.items())
    masks = load_file("runs/small-0/masks/epoch-0002-sparse.safetensors")
    assert masks.keys() == shapes.keys()
    living = {layer: int(weights[layer].count_nonzero()) for layer in shapes}
    if name == "acdc":
        # of all linear weights between the two, 24576 of them: round(2457.6) stay
        assert sum(living.values()) == 2458
    elif name == "rigl":
        # round(307.2), round(102.4) and round(409.6) of each layer
        counts = {3072: 307, 1024: 102, 4096: 410}
        assert list(living.values()) == [counts[weights[layer].numel()] for layer in shapes]
    else:
        for layer in shapes:
            assert (weights[layer].view(len(weights[layer]), -1, 4).count_nonzero(2) == 2).all()
    # the bias, because it began as zeros
    for kept in ("patch_embed.proj.weight", "head.weight", "head.bias", "pos_embed", "cls_token"):
        assert weights[kept].all()
