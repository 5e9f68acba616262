"""Wrong arguments, models that do not fit the images, places that are taken."""

from __future__ import annotations

from pathlib import Path

from bad_checkpoints import begun
from corpus import Case, nothing, removed, wrote

TRAIN = "train small.yaml"

MODELS = [
    Case(
        "CUDA that is absent",
        nothing,
        f"{TRAIN} --set device=cuda",
        "device: cuda is requested, but torch finds no CUDA device; use `--set device=cpu`",
    ),
    Case(
        "CUDA that is absent in eval",
        nothing,
        "eval --checkpoint run --set device=cuda",
        "device: cuda is requested, …",
    ),
    Case(
        "unknown device",
        nothing,
        f"{TRAIN} --set device=tpu",
        '--set device: expected auto, cpu or cuda, found "tpu"; did you mean cpu?',
    ),
    Case(
        "unknown option of a model",
        nothing,
        f"{TRAIN} --set 'model.options={{depth: 3}}'",
        "resnet8 rejects model.options {depth: 3}: …",
    ),
    Case(
        "file without a function",
        nothing,
        f"{TRAIN} --set model.name=nets/net.py",
        "--set model.name: nets/net.py: name the function that makes the model, too: nets/net.py:FUNCTION",
    ),
    Case(
        "new head without weights",
        nothing,
        f"{TRAIN} --set model.new_head=true",
        "--set model.new_head: it is for the weights that a run starts from; set model.weights, or leave it out",
    ),
    Case(
        "option that follows from the data",
        nothing,
        f"{TRAIN} --set 'model.options={{num_classes: 3}}'",
        "model.options.num_classes cannot be set: it follows from the data; leave it out",
    ),
    Case(
        "layer to keep that is none",
        nothing,
        f"{TRAIN} --set 'sparsity.keep_dense=[layer9.*]'",
        "sparsity.keep_dense: 'layer9.*' matches no convolution or linear layer of the model; nearest: "
        "layer3.0.conv2, layer3.0.conv1, layer2.0.conv2",
    ),
    Case(
        "sparsity of a layer that is none",
        nothing,
        f"{TRAIN} --set 'sparsity.layers={{\"layer9.*\": 0.5}}'",
        "sparsity.layers: 'layer9.*' matches no pruned layer; nearest: layer3.0.conv2, …",
    ),
    Case(
        "images too small for the model",
        nothing,
        f"{TRAIN} --set model.name=timm:vit_tiny_patch16_224",
        "the model takes no images of 28 pixels (…); training crops are data.resolution, validation "
        "crops data.val_crop",
    ),
    Case(
        "crop too large for the images",
        nothing,
        f"{TRAIN} --set data.resolution=40",
        "an image's shorter side is 28 pixels: with data.padding 2 no crop of 40 fits. Lower "
        "data.resolution, or use data.augment: random_resized_crop.",
        ("runs",),
    ),
]

PLACES = [
    Case(
        "finished run",
        nothing,
        f"{TRAIN} --out run",
        "run holds a finished run, which is never overwritten; choose another with --out",
    ),
    Case(
        "unfinished run",
        removed("run/summary.json"),
        f"{TRAIN} --out run",
        "run holds an unfinished run; resume it with --resume, or choose another folder with --out",
    ),
    Case(
        "file",
        nothing,
        f"{TRAIN} --out small.yaml",
        "small.yaml exists and is not a run of acdc; choose another folder with --out",
    ),
    Case(
        "below a file",
        nothing,
        f"{TRAIN} --out small.yaml/run",
        "small.yaml/run cannot be written: Not a directory. The previous file is kept.",
    ),
    Case(
        "foreign folder",
        nothing,
        f"{TRAIN} --out photos",
        "photos exists and is not a run of acdc; …",
    ),
    Case(
        "place where nothing can be",
        nothing,
        f"{TRAIN} --out /proc/run",
        "/proc/run cannot be written: No such file or directory. …",
    ),
    Case("finished run to resume", nothing, "train run --resume", "run is finished: there is nothing to resume"),
    Case(
        "nothing to resume",
        nothing,
        f"{TRAIN} --resume",
        "runs/small-0 holds no run to resume; leave out --resume to start it",
    ),
    Case(
        "run of another recipe to resume",
        removed("run/summary.json"),
        "train run --resume --set optim.lr=1",
        "run was started with another recipe (optim.lr: 0.05 there, 1.0 here); use --out for a new run",
    ),
    Case(
        "run to resume on images that are nowhere",
        removed("run/summary.json"),
        "train run --resume --data nowhere",
        "the data set folder has no train and val: …",
    ),
    Case(
        "run of other images to resume",
        removed("run/summary.json", "photos/train/cat/00.png"),
        "train run --resume",
        "the data in photos are not those that run was trained on; restore those, at any "
        "data.path, or use --out for a new run",
    ),
    Case(
        "figures into a file",
        nothing,
        "analyze curves run --out small.yaml",
        "small.yaml cannot be written: File exists. …",
    ),
    Case(
        "plot into nowhere",
        nothing,
        "plan small.yaml --plot nowhere/plan.png",
        "--plot: nowhere/plan.png cannot be written: No such file or directory",
    ),
    Case(
        "plot over a folder",
        lambda: Path("plan.png").mkdir(),
        "plan small.yaml --plot plan.png",
        "--plot: plan.png cannot be written: Is a directory",
    ),
    Case(
        "recipe over another",
        nothing,
        "recipes copy demo small.yaml",
        "small.yaml exists; give another destination or remove it first",
    ),
    Case(
        "recipe into nowhere",
        nothing,
        "recipes copy demo nowhere/demo.yaml",
        "nowhere/demo.yaml cannot be written: No such file or directory",
    ),
]

ARGUMENTS = [
    Case("unknown command", nothing, "trian small.yaml", "No such command 'trian'. Did you mean 'train', 'transfer'?"),
    Case("unknown option", nothing, "plan small.yaml --evry 3", "No such option: --evry (Possible options: --every)"),
    Case(
        "folder to train",
        nothing,
        "train photos",
        "photos is not a run directory: …",
    ),
    Case("no checkpoint", nothing, "eval", "Missing option '--checkpoint'."),
    Case(
        "unknown split",
        nothing,
        "eval --checkpoint run --split tset",
        "Invalid value for '--split': …'tset' is not one of 'val', 'train', 'test'.",
    ),
    Case(
        "a split that images lack",
        nothing,
        "eval --checkpoint run --split test",
        "the data set … has no test: …",
    ),
    Case(
        "pruning by no method",
        nothing,
        "prune run --target 0.5 --out new",
        "name --method (…), --target (0.9 or 0.8,0.9) and --out (a folder)",
    ),
    Case(
        "pruning of nothing",
        nothing,
        "prune nowhere --method oneshot --target 0.5 --out new",
        "nowhere does not exist; …",
    ),
    Case(
        "transfer of a study that is none",
        nothing,
        "transfer --study nowhere --to photos",
        "no study nowhere: …",
    ),
    Case("empty batch", nothing, "eval --checkpoint run --batch-size 0", "Invalid value for '--batch-size': …"),
    Case(
        "data to judge by that are nowhere",
        nothing,
        "eval --checkpoint run --data nowhere",
        "the data set nowhere has no train and val: HOME/data/nowhere has neither …--source "
        "/path/to/nowhere --out data/nowhere`. …",
    ),
    Case(
        "unknown key in eval",
        nothing,
        "eval --checkpoint run --set dta=1",
        "--set dta: unknown key; did you mean data? (allowed: <keys of a recipe>)",
    ),
    Case(
        "unknown convention",
        nothing,
        "plan small.yaml --convention D",
        "Invalid value for '--convention': …'D' is not one of 'A', 'B', 'C'.",
    ),
    Case(
        "unknown format of a plot", nothing, "plan small.yaml --plot plan.xyz", "--plot: plan.xyz must end in one of …"
    ),
    Case(
        "unknown analysis",
        nothing,
        "analyze curve run",
        "there is no analysis curve, only …; did you mean curves?",
    ),
    Case(
        "analysis of no run",
        nothing,
        "analyze curves photos",
        "photos is not a run directory: …",
    ),
    Case(
        "analysis of a run without epochs",
        begun,
        "analyze curves begun",
        "begun: no epoch has ended yet, so there is nothing to analyse",
    ),
    Case(
        "analysis of broken metrics",
        wrote("run/metrics.jsonl", "{\n"),
        "analyze curves run",
        "line 1 of run/metrics.jsonl is damaged (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)); restore a copy, or remove the line",
    ),
    Case(
        "unknown recipe to show",
        nothing,
        "recipes show demmo",
        "no recipe demmo: …; did you mean demo? …",
    ),
    Case(
        "own recipe to copy",
        nothing,
        "recipes copy small.yaml",
        "small.yaml is not a shipped recipe; `acdc recipes copy` takes a name from `acdc recipes list`",
    ),
    Case(
        "unknown recipe to copy",
        nothing,
        "recipes copy demmo",
        "no recipe demmo: …",
    ),
]
