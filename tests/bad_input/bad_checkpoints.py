"""Weights of something else, damaged ones, and files that are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpus import Case, Make, all_of, changed, cut, nothing, removed, wrote
from safetensors.torch import load_file, save_file
from torch import Tensor

Weights = dict[str, Tensor]
FOREIGN = "eval --checkpoint c.pt --model resnet8 --data photos --set data.workers=0"


def saved(change: Callable[[Weights], Any]) -> Make:
    """What is made of the run's dense weights, as c.pt."""
    return lambda: torch.save(change(load_file("run/dense.safetensors")), "c.pt")


def recorded(metadata: str) -> Make:
    """The run's dense weights as c.safetensors that says other things of itself."""
    return lambda: save_file(load_file("run/dense.safetensors"), "c.safetensors", {"acdc": metadata})


def without(weights: Weights, *names: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name not in names}


def of_ten_classes(weights: Weights) -> Weights:
    return weights | {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}


def begun() -> None:
    """A run of which no phase has ended."""
    Path("begun").mkdir()
    shutil.copy("run/resolved.yaml", "begun")


def of_three_classes() -> None:
    shutil.copytree("photos", "three")
    for split in ("train", "val"):
        shutil.copytree(f"photos/{split}/cat", f"three/{split}/eel")


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("opened",)


CHECKPOINTS = [
    Case(
        "missing",
        nothing,
        "eval --checkpoint nowhere",
        "nowhere does not exist; give a run directory or a checkpoint file",
    ),
    Case(
        "folder that is no run",
        nothing,
        "eval --checkpoint photos",
        "photos is not a run directory: it has no resolved.yaml; name one that `acdc train` made",
    ),
    Case(
        "run without a model yet",
        begun,
        "eval --checkpoint begun",
        "begun has no sparse or dense model: no phase of the run has ended yet",
    ),
    Case(
        "run without that model",
        removed("run/sparse.safetensors"),
        "eval --checkpoint run --which sparse",
        "run has no sparse model; it has --which dense",
    ),
    Case(
        "run with a broken recipe",
        wrote("run/resolved.yaml", "{"),
        "eval --checkpoint run",
        "run/resolved.yaml:1: not valid YAML: expected the node content, but found '… in the text that begins "
        "on line 1",
    ),
    Case(
        "run of another acdc",
        changed("seed:", "seeds: 1\nseed:", "run/resolved.yaml"),
        "eval --checkpoint run",
        "run/resolved.yaml:3: seeds: unknown key; …",
    ),
    Case(
        "run and --model",
        nothing,
        "eval --checkpoint run --model resnet8",
        "run is a run directory, whose recipe names the model; leave out --model",
    ),
    Case(
        "our file and --model",
        nothing,
        "eval --checkpoint run/dense.safetensors --model resnet8",
        "run/dense.safetensors records its own architecture, resnet8; leave out --model",
    ),
    Case(
        "file and --which",
        nothing,
        "eval --checkpoint run/dense.safetensors --which dense",
        "--which chooses between the models of a run directory; a file holds one",
    ),
    Case(
        "foreign file without --model",
        saved(dict),
        "eval --checkpoint c.pt --data photos",
        "c.pt was not written by acdc: name its architecture and data with --model and --data",
    ),
    Case(
        "foreign file of an unknown model",
        saved(dict),
        "eval --checkpoint c.pt --model resnet9 --data photos",
        "there is no model 'resnet9'; …",
    ),
    Case(
        "another model",
        saved(dict),
        "eval --checkpoint c.pt --model resnet20 --data photos",
        "c.pt does not fit the model (116 tensors); 60 missing: layer1.1.conv1.weight [16, 16, 3, 3], "
        "layer1.1.bn1.weight [16], layer1.1.bn1.bias [16], … 57 more. Name the model that the file was made "
        "with (timm: and torchvision: may name the same network's weights differently)",
    ),
    Case(
        "another class count",
        saved(of_ten_classes),
        FOREIGN,
        "c.pt is for 10 classes, but the data has 2: choose weights trained on this data, data with 10 classes, or "
        "train a new classifier (--set model.new_head=true)",
    ),
    Case(
        "renaming that matches nothing",
        saved(dict),
        f"{FOREIGN} --rename linear.=fc.",
        "c.pt: renaming linear.=fc. changes none of its 44 names (…, …, …)",
    ),
    Case(
        "renaming that joins two names",
        saved(dict),
        f"{FOREIGN} --rename layer1.=layer2.",
        "c.pt: renaming layer1.=layer2. makes layer2.0… of both layer1.0… and layer2.0…; rename the other one first",
    ),
    Case(
        "renaming in a run",
        nothing,
        "eval --checkpoint run --rename linear.=fc.",
        "run was written by acdc, with the names of its model; leave out --rename",
    ),
    Case(
        "renaming without a new name",
        saved(dict),
        f"{FOREIGN} --rename linear",
        '--set model.rename: model.rename[0]: expected OLD=NEW, found "linear"',
    ),
    Case(
        "model of a file that is not there",
        saved(dict),
        "eval --checkpoint c.pt --model nets/net.py:make --data photos",
        "there is no file nets/net.py; model.name takes FILE.py:FUNCTION",
    ),
    Case(
        "data of another class count",
        of_three_classes,
        "eval --checkpoint run --data three",
        "run/sparse.safetensors is for 2 classes, but the data has 3: …",
    ),
    Case(
        "missing keys",
        saved(lambda weights: without(weights, "conv1.weight", "fc.bias")),
        FOREIGN,
        "c.pt does not fit the model (44 tensors); 2 missing: conv1.weight [16, 3, 3, 3], fc.bias [2]. Name …",
    ),
    Case(
        "extra keys",
        saved(lambda weights: weights | {"head.weight": torch.zeros(2)}),
        FOREIGN,
        "c.pt does not fit the model (44 tensors); 1 unknown: head.weight [2]. Name …",
    ),
    Case(
        "another shape",
        saved(lambda weights: weights | {"conv1.weight": torch.zeros(16, 3, 7, 7)}),
        FOREIGN,
        "c.pt does not fit the model (44 tensors); 1 of another shape: conv1.weight is [16, 3, 7, 7],"
        " not [16, 3, 3, 3]. Name …",
    ),
    Case(
        "numbers for tensors",
        saved(lambda weights: {"conv1.weight": 3, "fc.weight": 4}),
        FOREIGN,
        "c.pt holds no weights of this model: it has no tensors (keys conv1.weight, fc.weight); name a file with the "
        "model's weights",
    ),
    Case(
        "numbers for names",
        saved(lambda weights: dict(enumerate(weights.values()))),
        FOREIGN,
        "c.pt holds no weights of this model: its 44 tensors are 0 [], 1 [], 2 [], … 41 more; name the model that the "
        "file was made with",
    ),
    Case(
        "one name twice",
        saved(lambda weights: {"module.fc.bias": torch.ones(2)} | weights),
        FOREIGN,
        "c.pt: it holds fc.bias twice, with and without a wrapper's prefix; save the one you mean",
    ),
    Case(
        "complex weights",
        saved(lambda weights: weights | {"fc.bias": torch.zeros(2, dtype=torch.cfloat)}),
        FOREIGN,
        "c.pt: fc.bias is sparse, quantised, complex or without data; save it as a dense tensor of numbers",
    ),
    Case(
        "weights without data",
        saved(lambda weights: weights | {"fc.bias": torch.zeros(2, device="meta")}),
        FOREIGN,
        "c.pt: fc.bias is sparse, …",
    ),
    Case(
        "no state dict",
        saved(lambda weights: {"epoch": 3, "loss": 0.1}),
        FOREIGN,
        "c.pt holds no weights of this model: …(keys epoch, loss); …",
    ),
    Case(
        "list of weights",
        saved(lambda weights: list(weights.values())),
        FOREIGN,
        "c.pt holds no weights of this model: …(a list); …",
    ),
    Case(
        "empty",
        wrote("c.pt", ""),
        FOREIGN,
        "cannot read the weights in c.pt (not a torch file, or a damaged one: …); fetch or write the file again",
    ),
    Case(
        "text",
        wrote("c.pt", "hello"),
        FOREIGN,
        "cannot … c.pt (not a torch file, …",
    ),
    Case(
        "recipe",
        nothing,
        "eval --checkpoint small.yaml",
        "cannot … small.yaml (not a torch file, …",
    ),
    Case(
        "truncated",
        all_of(saved(dict), cut("c.pt", 3000)),
        FOREIGN,
        "cannot … c.pt (not a torch file, …",
    ),
    Case(
        "our checkpoint, truncated",
        cut("run/checkpoints/last.pt", 5000),
        "eval --checkpoint run/checkpoints/last.pt",
        "cannot … run/checkpoints/last.pt (not a torch file, …",
    ),
    Case(
        "pickled code",
        saved(lambda weights: {"state_dict": weights, "args": RunsCode()}),
        FOREIGN,
        "c.pt is damaged, or holds objects that are refused because loading them can run code (posix.mkdir). "
        "If you trust the file, save its tensors alone: "
        "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)",
    ),
    Case(
        "safetensors that are none",
        wrote("c.safetensors", "hello"),
        "eval --checkpoint c.safetensors",
        "c.safetensors cannot be read (…); fetch or write the file again",
    ),
    Case(
        "safetensors truncated",
        cut("run/sparse.safetensors", 5000),
        "eval --checkpoint run",
        "cannot … run/sparse.safetensors (not a safetensors file, …",
    ),
    Case(
        "safetensors with broken metadata",
        recorded("{"),
        "eval --checkpoint c.safetensors",
        "c.safetensors cannot be read …",
    ),
    Case(
        "safetensors without our recipe",
        recorded('{"recipe": {"epochs": 2}}'),
        "eval --checkpoint c.safetensors --model resnet8",
        "c.safetensors: name: missing; …\n"
        "c.safetensors: model: missing; …\n"
        "c.safetensors: data: missing; expected a block with at least name, batch_size\n"
        "c.safetensors: optim: missing; expected a block whose name is adamw, lamb, lars or sgd\n"
        "c.safetensors: sparsity: missing; expected a block whose method is <methods>",
    ),
    Case(
        "weights to start from that are missing",
        nothing,
        "train small.yaml --set model.weights=no.pt",
        "there is no weight file no.pt; `model.weights` and `sparsity.from_checkpoint` take a "
        ".safetensors, packed or torch file",
    ),
    Case(
        "weights to start from of another model",
        nothing,
        "train small.yaml --set model.name=resnet20 --set model.weights=run/dense.safetensors",
        "run/dense.safetensors does not fit the model (116 tensors); …",
    ),
    Case(
        "dense model to start from that is missing",
        nothing,
        "train small.yaml --set sparsity.from_checkpoint=photos",
        "photos is not a run directory: …",
    ),
    Case(
        "dense weights to start from that are missing",
        nothing,
        "train small.yaml --set sparsity.from_checkpoint=no.pt",
        "there is no weight file no.pt; …",
    ),
    Case(
        "run without a dense model to start from",
        removed("run/dense.safetensors"),
        "train small.yaml --set sparsity.from_checkpoint=run --out new",
        "sparsity.from_checkpoint: run has no dense model: no dense phase has ended, or its method has none; name "
        "another run or a file",
    ),
    Case(
        "two models to start from",
        nothing,
        "train small.yaml --set sparsity.from_checkpoint=run --set model.weights=c.pt",
        "--set sparsity.from_checkpoint: the run would start from this model and from "
        "`model.weights`; remove one of them",
    ),
]
