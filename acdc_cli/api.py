"""acdc from Python: load a recipe, train and evaluate it, open a run, and prune in a training loop of your own.

`import acdc_cli.api` imports no torch; the first call that needs it does. Errors that you can fix are `AcdcError`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from acdc_cli.errors import AcdcError, RecipeError, RunError
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.schedule.time import Moment

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from acdc_cli.jobs.checkpoints import Which

__all__ = ["AcdcError", "Recipe", "RunDir", "SparseTraining", "evaluate", "load_recipe", "open_run", "train"]

_FORWARD = 32
"""Images that a forward pass outside the training steps takes at once."""


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A validated recipe.

    source: a recipe file, or the name of a shipped recipe such as `resnet50_95`.
    overrides: what `--set` takes, such as `["optim.lr=0.25", "sparsity.target=0.9"]`.
    Raises RecipeError with one line for each mistake in the recipe.
    """
    from acdc_cli.recipe.load import load

    return load(source, overrides)


def train(
    source: str | Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: bool | Literal["auto"] = False,
) -> RunDir:
    """Train a recipe as `acdc train` does, with progress on stderr; returns the finished run's directory.

    source, overrides: as in `load_recipe`; to resume, source may be the run directory.
    out: the run's directory. Default: `runs/<name>-<seed>`.
    resume: continue the unfinished run in `out`; `auto` starts one if there is none.
    Raises AcdcError, and Stopped when a signal ended the run after a checkpoint.
    """
    from acdc_cli.jobs import training_run

    return training_run.train(str(source), overrides, out, resume)


def evaluate(
    source: str | Path,
    which: Which | None = None,
    model: str | None = None,
    data: str | None = None,
    split: Literal["train", "val"] = "val",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a run or a checkpoint as `acdc eval --json` does; each image counts once.

    source: a run directory or a checkpoint file.
    which: the model of a run directory, such as `dense`. Default: the sparse model if the run has one.
    model, data: architecture and data set of a checkpoint that acdc did not write; data may be a folder.
    Returns top1, top5, sparsity and sparsity_all in [0, 1], loss and entropy in nats, params, nonzero, flops, samples,
    task, and a list of layers. A multilabel model has accuracy, accuracy/LABEL and uncertainty, in [0, 1], in place of
    top1, top5 and entropy.
    Raises AcdcError.
    """
    from acdc_cli.jobs.evaluation import Options, evaluate_checkpoint

    options = Options(which=which, model=model, data=data, split=split, overrides=tuple(overrides))
    return evaluate_checkpoint(Path(source), options)


def open_run(path: str | Path) -> RunDir:
    """An existing run directory: `records()` has the metrics of each epoch, `model_file("sparse")` the weights.

    Raises RunError if the directory holds no run.
    """
    from acdc_cli.runs import run_dir

    return run_dir.open_run(Path(path))


class SparseTraining:
    """A recipe's sparse training method for a PyTorch loop of your own, in one process.

    Iterate over `epochs()` and call `step()` in place of `optimizer.step()`. Between steps every masked weight, its
    gradient and its optimiser state are exactly zero.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        recipe: Recipe,
        steps_per_epoch: int,
        losses: Callable[[int], Iterator[Tensor]] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        """model: on its final device and in its final memory layout.
        optimizer: without state and without a scheduler yet; STR and Top-KAST regroup its parameters.
        recipe: its `sparsity`, `epochs` and `seed` apply; model, data and optimiser are yours.
        losses: mean losses over training batches of the given size; WoodFisher and OBC need them.
        input_shape: shape of one example without the batch dimension; SynFlow needs it.

        Raises RecipeError if the sparsity block does not fit the model.
        """
        from acdc_cli.jobs import setup
        from acdc_cli.recipe.kinds import measures_of
        from acdc_cli.sparsity.prunable import layers

        self.sparsifier = setup.sparsifier(recipe, layers(model, setup.keep_dense(recipe)))
        self.model, self._optimizer, self._losses, self._input_shape = model, optimizer, losses, input_shape
        self.headline = measures_of(recipe.task.name).headline
        self._epochs, self._steps_per_epoch, self._step = recipe.epochs, steps_per_epoch, 0
        self._metrics: dict[str, float] = {}
        self._regroup()
        self.sparsifier.attach(optimizer, self)

    def epochs(self) -> Iterator[int]:
        """The epochs still to train. The method updates masks before each of them.

        Raises RunError if an epoch's body did not take `steps_per_epoch` steps.
        """
        while self._step < self._epochs * self._steps_per_epoch:
            epoch, done = divmod(self._step, self._steps_per_epoch)
            if not done:
                self.sparsifier.on_epoch_start(self._moment(self._step))
            yield epoch
            if self._step != (epoch + 1) * self._steps_per_epoch:
                taken = self._step - epoch * self._steps_per_epoch
                raise RunError(f"epoch {epoch} took {taken} steps; steps_per_epoch is {self._steps_per_epoch}")
            self.sparsifier.on_epoch_end(self._moment(self._step - 1), self._metrics)
            self._metrics = {}

    def step(self, update: Callable[[], object] | None = None) -> None:
        """Take the optimiser's step with masked gradients, then mask the weights.

        update: takes the optimiser's step. Default: `optimizer.step`; with fp16, unscale first and pass
            `lambda: scaler.step(optimizer)`.
        """
        moment = self._moment(self._step)
        if self.sparsifier.on_gradients(moment):
            (update or self._optimizer.step)()
        self.sparsifier.after_step(moment)
        self._step += 1
        if self._step == self._epochs * self._steps_per_epoch:
            self.sparsifier.finish()

    def validated(self, **metrics: float) -> None:
        """Report an epoch's validation, such as `top1=0.97` (a multilabel recipe's is `accuracy`); AC/DC's
        `last_phase: dense_best` needs it."""
        self._metrics = metrics

    def sparsity(self) -> float:
        """Fraction of the prunable weights that are exactly zero."""
        masked = self.sparsifier.masked
        return sum(masked.zeros().values()) / masked.total

    def state_dict(self) -> dict[str, Any]:
        """Masks, method state and position; save it beside the states of model and optimiser."""
        return {"step": self._step, "sparsifier": self.sparsifier.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume; load model and optimiser first. Within an epoch, skip the batches already trained on yourself."""
        self._step = state["step"]
        self.sparsifier.load_state_dict(state["sparsifier"])

    def input_shape(self, epoch: int) -> tuple[int, ...]:
        """See `sparsity.sparsifier.Training`."""
        if self._input_shape is None:
            raise RecipeError(f"sparsity.method: {self.sparsifier.config.method} needs SparseTraining(input_shape=…)")
        return self._input_shape

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """See `sparsity.sparsifier.Training`."""
        import torch

        if self._losses is None:
            raise RecipeError(f"sparsity.method: {self.sparsifier.config.method} needs SparseTraining(losses=…)")
        weights, was_training = self.sparsifier.masked.parameters, self.model.training
        self.model.eval()
        try:
            for loss in islice(self._losses(batch_size), batches):
                yield dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        finally:
            self.model.train(was_training)

    def forward_passes(self, moment: Moment, images: int) -> Iterator[None]:
        """See `sparsity.sparsifier.Training`."""
        for _ in self.gradients(moment, -(-images // _FORWARD), _FORWARD):
            yield

    def snapshot(self) -> dict[str, Tensor]:
        """See `sparsity.sparsifier.Training`."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """See `sparsity.sparsifier.Training`."""
        self.model.load_state_dict(snapshot)
        self.sparsifier.masked.reset_momentum()

    def _moment(self, step: int) -> Moment:
        return Moment(step // self._steps_per_epoch, step, self._epochs, self._steps_per_epoch)

    def _regroup(self) -> None:
        """Give the optimiser the parameter groups that the method sets up itself."""
        groups = self._optimizer.param_groups
        first = next(iter(self.sparsifier.masked.parameters.values()))
        decay = next((g.get("weight_decay", 0.0) for g in groups if any(w is first for w in g["params"])), 0.0)
        for added in self.sparsifier.parameter_groups(decay):
            taken = set(map(id, added["params"]))
            for group in groups:
                group["params"] = [weight for weight in group["params"] if id(weight) not in taken]
            self._optimizer.add_param_group(added)
