"""Finds the recipe and the weights of a run directory or of any checkpoint file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from acdc_cli import console, files
from acdc_cli.data.image_loaders import first_size
from acdc_cli.data.image_set import open_set as open_images
from acdc_cli.errors import CheckpointError, RunError
from acdc_cli.jobs import setup
from acdc_cli.models import build as models
from acdc_cli.models import hub_weights, torch_file, weights
from acdc_cli.models.packed_file import is_packed
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.task import is_task
from acdc_cli.recipe.load import from_dict, load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.overview import is_run
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.training.checkpoint import read_metadata

Which = Literal["sparse", "dense", "sparse-ema", "dense-ema"]


def located(source: Path) -> Path:
    """The source itself, or the weight file of the hub that it names: hf-hub:OWNER/NAME, timm:TAG, or a hub's folder.

    Raises ModelError if it cannot be fetched.
    """
    return source if is_run(source) or not hub_weights.is_hub(source) else hub_weights.weight_file(source)


def recipe_of(
    source: Path,
    which: Which | None = None,
    model: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a run or checkpoint; for a foreign file, a minimal recipe to evaluate it with.

    which: only checked here.  model, data: architecture and data set of a foreign file.
    Raises CheckpointError or RunError if they do not fit the source.
    """
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a run directory or a checkpoint file")
    if source.is_dir():
        run = open_run(source)
        if model is not None:
            raise RunError(f"{source} is a run directory, whose recipe names the model; leave out --model")
        _refuse_renaming(source, overrides)
        return load(run.resolved, overrides)
    if which is not None:
        raise RunError("--which chooses between the models of a run directory; a file holds one")
    recipe = _recorded_recipe(source)
    if recipe is not None:
        _refuse_renaming(source, overrides)
        recorded = from_dict(recipe, str(source), overrides)
        if recorded.model.code is not None and not _has_code(recipe, source):
            return _with_code(recorded, source, model)
        if model is not None:
            raise RunError(f"{source} records its own architecture, {recorded.model.name}; leave out --model")
        return recorded
    model = model or hub_weights.architecture_of(source)
    if model is None or data is None:
        raise CheckpointError(
            f"{source} was not written by acdc: name its architecture and data with --model and --data"
        )
    return _foreign(source, model, data, overrides)


def _refuse_renaming(source: Path, overrides: Sequence[str]) -> None:
    if any(override.startswith("model.rename=") for override in overrides):
        raise RunError(f"{source} was written by acdc, with the names of its model; leave out --rename")


def names_its_model(source: Path) -> bool:
    """Whether it is a run directory or a file written by acdc, so that --model is not needed.

    It is needed for a file alone, outside its run directory, whose model is made by code of its own."""
    if source.is_dir() or not source.exists():
        return source.is_dir()
    recipe = _recorded_recipe(source)
    return recipe is not None and _has_code(recipe, source)


def _has_code(recipe: Mapping[str, Any], file: Path) -> bool:
    """Whether the code of a recorded model is at hand, if it has any: in the run directory where the file lies."""
    block = recipe.get("model")
    name, digest = (block.get(key) for key in ("name", "code")) if isinstance(block, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(digest, str):
        return True
    code.find_copy(name, file)
    return code.at_hand(digest)


def _with_code(recipe: Recipe, source: Path, model: str | None) -> Recipe:
    """The recipe of a file outside its run directory, with the code that the user names."""
    if model is None:
        raise CheckpointError(
            f"{source} is of a model made by {recipe.model.name}, and does not contain that file: name it with --model "
            f"FOLDER/{recipe.model.name}, or evaluate its run directory"
        )
    named = code.named(model)
    if named.get("code") != recipe.model.code:
        console.warn(f"{model} is not the code that {source} was trained with, so its numbers may differ")
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"code": None, **named})})


def weights_of(source: Path, which: Which | None = None) -> Path:
    """The file with the weights: for a run, that of `which`, or by default the sparse model if it exists."""
    return _model_of(open_run(source), which) if source.is_dir() else source


def dense_first(source: Path) -> Path:
    """As `weights_of`, but a run's dense model if it has one: its sparse model has lost what others start from."""
    if source.is_dir() and open_run(source).model_file("dense").exists():
        return weights_of(source, "dense")
    return weights_of(source)


def judged(recipe: Recipe, file: Path, data: str | None = None) -> Recipe:
    """The same recipe with these weights, without what only training needs.

    data: another data set, by its name or folder.
    """
    block, model = recipe.data, recipe.model.starting_from(str(file))
    if recipe.model.weights == str(file):
        # a foreign file, whose names and classes may be others
        model = recipe.model
    if data is not None:
        is_folder = Path(data).is_dir()
        block = block.model_copy(update={"path": data} if is_folder else {"name": data, "path": None})
    return setup.without_start(recipe).model_copy(update={"model": model, "data": block, "compile": "off"})


def classes_of(recipe: Recipe) -> int:
    """The number of classes of the weights that the recipe starts from."""
    assert recipe.model.weights is not None
    # any number: names and other shapes do not depend on it
    return weights.classes_in(setup.without_weights(recipe, 10), Path(recipe.model.weights), recipe.model.rename)


def _model_of(run: RunDir, which: Which | None) -> Path:
    wanted: tuple[Which, ...] = ("sparse", "dense") if which is None else (which,)
    for kind in wanted:
        if run.model_file(kind).exists():
            return run.model_file(kind)
    there = [kind for kind in get_args(Which) if run.model_file(kind).exists()]
    raise CheckpointError(
        f"{run.path} has no {' or '.join(wanted)} model"
        + (f"; it has --which {there[0]}" if there else ": no phase of the run has ended yet")
    )


def header_of(file: Path) -> dict[str, Any] | None:
    """The metadata in a file written by acdc: the recipe and, for a model, its metrics; None for a foreign file."""
    metadata: Any
    if file.suffix == ".safetensors" or is_packed(file):
        metadata = read_metadata(file)
    else:
        try:
            files.open_regular(file).close()
            state = torch_file.load(file, mmap=True)
        except Exception:
            # torch's old format cannot be memory-mapped; for any other file `read` explains the problem
            state = weights.read(file)
        metadata = state.get("metadata") if isinstance(state, dict) else None
    return metadata if isinstance(metadata, dict) else None


def _recorded_recipe(file: Path) -> dict[str, Any] | None:
    recipe = (header_of(file) or {}).get("recipe")
    return recipe if isinstance(recipe, dict) else None


def _foreign(source: Path, model: str, data: str, overrides: Sequence[str]) -> Recipe:
    """A minimal recipe to evaluate a foreign checkpoint with."""
    least = {
        "name": "eval",
        "epochs": 1,
        "model": {**code.named(model), "weights": str(source)},
        "optim": {"name": "sgd", "lr": 1.0, "schedule": {"name": "linear"}},
        "sparsity": {"method": "dense"},
    }
    of_inputs = _of_sentences if models.source(model) == "hf" else _of_images
    return of_inputs(least, source, model, data, overrides)


def _of_sentences(least: dict[str, Any], source: Path, model: str, data: str, overrides: Sequence[str]) -> Recipe:
    """The recipe for an encoder, whose tokenizer lies beside its weights."""
    block = {"name": "sentences", "path": data} if Path(data).is_dir() else {"name": data.removeprefix("glue/")}
    glue = f"glue/{block['name']}"
    rest = {"tokenizer": str(source.parent), "length": 128, "batch_size": 32}
    task = glue if is_task(glue) else "sentence_class"
    return from_dict(least | {"task": {"name": task}, "data": block | rest}, "acdc eval", overrides)


def _of_images(least: dict[str, Any], source: Path, model: str, data: str, overrides: Sequence[str]) -> Recipe:
    """The recipe with the preprocessing of published weights."""
    # imported here because it imports torchvision and timm
    from acdc_cli.models.preprocessing import preprocessing

    shown = preprocessing(model, source)
    block = {"name": "folder" if Path(data).is_dir() else data, "batch_size": 128, "loader": "torch"}
    block |= {"path": data} if Path(data).is_dir() else {}
    least = least | {"data": block}
    asked = from_dict(least, "acdc eval", overrides)
    least["model"]["options"] = dict(models.options_for(model, source, asked.model.rename))
    side = min(first_size(open_images(asked.images)))
    block |= {
        "val_resize": shown.resize or side,
        "val_crop": shown.crop or side,
        "val_interpolation": shown.interpolation,
        "mean": list(shown.mean),
        "std": list(shown.std),
    }
    recipe = from_dict(least, "acdc eval", overrides)
    _say_preprocessing(recipe, shown.origin, side)
    return recipe


def _say_preprocessing(recipe: Recipe, origin: str, side: int) -> None:
    """side: size of the first image."""
    block, options = recipe.images, recipe.model.options
    if options:
        console.say(f"built with {options}, which the file's tensor names require")
    console.say(
        f"preprocessing: {block.val_resize} pixels, crop {block.val_crop}, {block.val_interpolation}, mean "
        f"{list(block.mean)}, std {list(block.std)} ({origin}); to change it: --set data.val_resize=…, data.val_crop, "
        "data.val_interpolation, data.mean, data.std"
    )
    if block.val_resize > 2 * side:
        console.warn(
            f"images of {side} pixels are enlarged to {block.val_resize}: name a model for small images, or --set "
            f"data.val_resize={side} --set data.val_crop={side}"
        )
