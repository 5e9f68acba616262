"""A first recipe for somebody's own images: `acdc init`, and `acdc train MODEL --data FOLDER`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from acdc_cli import files
from acdc_cli.data.describe import SetFacts
from acdc_cli.data.inventory import describe_folder
from acdc_cli.data.proposal import is_small, proposed_keys
from acdc_cli.errors import RecipeError
from acdc_cli.jobs.run_plan import plan
from acdc_cli.models import build
from acdc_cli.recipe import code, shipped
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.optim import CosineSchedule, SGDBlock
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.recipe.kinds import method_config, methods
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.recipe.syntax import dump

Device = Literal["auto", "cpu", "cuda"]
EPOCHS, METHOD, TARGET = 100, "acdc", 0.9
"""What is proposed."""
_LOOKED_AT = 2000
"""Images of each split that decide sizes, mean and deviation."""
_FEWEST_STEPS = 20
"""Steps of an epoch below which the batch is made smaller."""
_MARGIN = 34
_WIDTH = 120
_LONGEST = 80


@dataclass(frozen=True)
class Answers:
    data: Path
    model: str
    method: str = METHOD
    target: float | None = TARGET
    """None for a method that has no target."""
    epochs: int = EPOCHS
    device: Device = "auto"


def measured(data: Path) -> SetFacts:
    """Facts from a share of the images. Raises DataError if the folder holds no set."""
    return describe_folder(data, _LOOKED_AT)


def proposed_model(facts: SetFacts) -> str:
    return "resnet20" if is_small(facts.splits.get("train") or next(iter(facts.splits.values()))) else "resnet50"


def has_target(method: str) -> bool:
    """Raises RecipeError for an unknown method."""
    if method not in methods():
        raise RecipeError(f"there is no method {method}, only {', '.join(methods())}{did_you_mean(method, methods())}")
    return issubclass(method_config(method), TargetBlock)


def recipe_text(answers: Answers, facts: SetFacts) -> str:
    """A commented recipe. Raises an AcdcError for answers that no recipe can have."""
    build.source(answers.model)
    if "train" not in facts.splits:
        raise RecipeError(f"{answers.data} has no training images: expected {answers.data}/train/CLASS/*.jpg")
    values = _values(answers, facts)
    train = facts.splits["train"]
    pruned = "" if answers.target is None else f", {100 * answers.target:g} % sparse"
    head = [
        f"# {answers.model} on {answers.data.resolve().name}: {answers.method}{pruned}",
        "#",
        f"# Measured on {train.looked_at:,} of {train.images:,} training images of {len(train.classes)} classes.",
        "# `acdc recipes show FILE --resolved` has every other key with its default.",
        "",
    ]
    blocks: dict[str, type[BaseModel]] = {
        "model": ModelBlock,
        "data": ImagesBlock,
        "optim": SGDBlock,
        "schedule": CosineSchedule,
        "sparsity": method_config(answers.method),
    }
    return "\n".join([*head, *_lines(values, Recipe, blocks, "")]) + "\n"


def _values(answers: Answers, facts: SetFacts) -> dict[str, Any]:
    train = facts.splits["train"]
    small = is_small(train)
    batch = 128 if small else 256
    while batch > 8 and train.images // batch < _FEWEST_STEPS:
        batch //= 2
    size = RunSize(answers.epochs, train.images // batch, batch)
    target = {} if answers.target is None else {"target": answers.target}
    sparsity = method_config(answers.method).proposed(size, answers.target or 0.0)
    # before the first phase in which weights are pruned
    warmup = min(5, answers.epochs // 20) if not small else 0
    return {
        "name": named(answers),
        "epochs": answers.epochs,
        "device": answers.device,
        "model": {"name": answers.model},
        "data": {"name": "folder", "path": str(answers.data), "batch_size": batch} | proposed_keys(facts),
        "optim": {
            "name": "sgd",
            "lr": 0.1 * batch / (128 if small else 256),
            "lr_batch": batch,
            "weight_decay": 5e-4 if small else 1e-4,
            "schedule": {"name": "cosine", "warmup_epochs": warmup},
        },
        "sparsity": {"method": answers.method} | target | sparsity,
    }


def named(answers: Answers) -> str:
    """A name for the recipe and its runs."""
    # a file's folder is no part of a name
    parts = [answers.data.resolve().name, answers.model.rpartition("/")[2], answers.method]
    parts += [] if answers.target is None else [f"{100 * answers.target:g}"]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).lstrip("._-")[:100]


def _lines(
    values: Mapping[str, Any], block: type[BaseModel], blocks: Mapping[str, type[BaseModel]], indent: str
) -> Iterator[str]:
    """YAML; the comment on a key is the beginning of its documentation."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ([""] if not indent else [])
            yield f"{indent}{key}:"
            yield from _lines(value, blocks[key], blocks, f"{indent}  ")
            continue
        line = f"{indent}{key}: {_written(value)}"
        commented = f"{line:<{_MARGIN}}{_comment(block.model_fields[key].description or '')}".rstrip()
        yield commented if len(commented) <= _WIDTH else line


def _comment(documentation: str) -> str:
    """The first sentence, or its beginning; empty if that is too long, too."""
    sentence = re.split(r"\. |\.$", " ".join(documentation.split()))[0].replace("`", "")
    short = next((each for each in (sentence, *re.split(r"[:,;] | \(", sentence)[:1]) if len(each) < _LONGEST), "")
    return f"  # {short}" if short else ""


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return dump({"key": value}).removeprefix("key:").strip()


def without_recipe(
    model: str, data: Path, folder: Path, method: str = METHOD, target: float | None = None, epochs: int = EPOCHS
) -> Path:
    """Writes the recipe of `acdc train MODEL --data` into this folder, under its name, and returns the file.

    target: None: the usual one, if the method has a target.
    Raises RecipeError for a recipe instead of a model, and for a target that the method does not have.
    """
    if model in shipped.names() or (not code.is_own(model) and Path(model).is_file()):
        raise RecipeError(
            f"{model} is a recipe, which names its data, method and epochs: change them with --set data.path={data}; "
            "--data is for a model's name"
        )
    if not has_target(method) and target is not None:
        raise RecipeError(f"method {method} has no target sparsity; leave out --target")
    answers = Answers(data, model, method, (target or TARGET) if has_target(method) else None, epochs)
    path = folder / f"{named(answers)}.yaml"
    files.write_text(path, recipe_text(answers, measured(data)), RecipeError)
    return path


def write_recipe(answers: Answers, facts: SetFacts, out: Path) -> list[str]:
    """Writes the recipe, and returns the warnings of its plan. Raises RecipeError if the file exists, and an AcdcError,
    without writing, for a recipe that cannot be trained."""
    if out.exists():
        raise RecipeError(f"{out} exists; choose another file with --out")
    text = recipe_text(answers, facts)
    files.write_text(out, text, RecipeError)
    try:
        return plan(load(out)).warnings
    except BaseException:
        out.unlink()
        raise


def devices() -> tuple[str, ...]:
    return get_args(Device)
