"""A run in miniature: a few random images, learned by a network of a few weights, by the real trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_memory import InMemory
from pydantic import TypeAdapter
from torch import Tensor, nn

from acdc_cli.data.batches import Loader
from acdc_cli.data.inputs.images import normalisation
from acdc_cli.recipe import kinds
from acdc_cli.recipe.blocks.base import epochs_of
from acdc_cli.recipe.blocks.optim import Optim
from acdc_cli.recipe.blocks.run import CheckpointBlock, EMABlock
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines
from acdc_cli.schedule.learning_rate import share_of_peak
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.prunable import layers, pruned
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training.compiling import Compiled, Mode
from acdc_cli.training.ema import Average
from acdc_cli.training.evaluate import Probe, forward_of
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.training.parts import Parts
from acdc_cli.training.precision import Precision
from acdc_cli.training.trainer import Trainer

CPU = torch.device("cpu")
SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 1e-3, "schedule": {"name": "linear"}}
ADAMW = SGD | {"name": "adamw", "lr": 0.01}


class FewImages(InMemory):
    """A loader whose batches follow from (epoch, step) alone: 12 images of 8 pixels and 3 classes, 4 in a batch."""

    def __init__(self, samples: int = 12, batch_size: int = 4) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)
        super().__init__(images, torch.randint(0, 3, (samples,), generator=generator), batch_size)
        self.steps = samples // batch_size

    def order(self, epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng(epoch).permutation(self.samples))


class StopAtCall:
    """A `stop_asked` whose nth call is the first to say yes."""

    def __init__(self, call: int) -> None:
        self._left = call

    def __call__(self) -> bool:
        self._left -= 1
        return self._left == 0


def small_network() -> nn.Sequential:
    """Layers "0" and "6" have 162 and 648 prunable weights; batch norm and dropout are between them."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Linear(216, 3),
    ).to(memory_format=torch.channels_last)


class MiniRun:
    """A trainer over `FewImages`, with everything it is made of at hand."""

    def __init__(
        self,
        folder: Path,
        epochs: int,
        sparsity: Mapping[str, Any],
        *,
        optim: Mapping[str, Any] = SGD,
        checkpoint: Mapping[str, Any] | None = None,
        model: nn.Sequential | None = None,
        keep_dense: Sequence[str] = (),
        train: Loader | None = None,
        val: FewImages | None = None,
        ema: EMABlock | None = None,
        compiled: Mode | None = None,
        probes: Sequence[Probe] = (),
        stop_asked: Callable[[], bool] = lambda: False,
        **parts: Any,
    ) -> None:
        """sparsity, optim, checkpoint: the recipe's blocks; optim's keys without a name change those of `SGD`.

        parts: further fields of `Parts`.
        """
        block = kinds.method_config(sparsity["method"]).model_validate(sparsity)
        optim_block: Any = TypeAdapter(Optim).validate_python(optim if "name" in optim else SGD | dict(optim))
        self.model = model or small_network()
        self.layers = layers(self.model, keep_dense)
        self.sparsifier = kinds.method_class(block.method)(block, MaskedParameters(pruned(self.layers)), epochs)
        groups = self.sparsifier.parameter_groups(optim_block.weight_decay)
        self.optimizer = build_optimizer(self.model, optim_block, groups)
        self.average = None
        if ema:
            self.average = Average(self.model, self.sparsifier.masked, ema.decay, epochs_of(ema.begin, epochs))
        self.train: Any = train or FewImages()
        self.val = val or FewImages()
        self.forward = forward_of(self.model, normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), CPU))
        if compiled is not None:
            self.forward = Compiled(self.forward, self.model, compiled)
        self.directory = RunDir(folder)
        if not self.directory.resolved.exists():
            self.directory.start("", "", {})
        defaults: dict[str, Any] = {
            "learning_rate": lambda at: optim_block.lr * share_of_peak(optim_block.schedule, at, epochs),
            "resolution": lambda epoch: 8,
            "task": Classification(),
        }
        self.parts = Parts(
            model=self.model,
            forward=self.forward,
            optimizer=self.optimizer,
            sparsifier=self.sparsifier,
            layers=self.layers,
            precision=Precision("fp32", CPU),
            train=self.train,
            val=self.val,
            epochs=epochs,
            optim=optim_block,
            checkpoint=CheckpointBlock(**({"every_minutes": None} | dict(checkpoint or {}))),
            probes=probes,
            average=self.average,
            **defaults | parts,
        )
        self._tracker = JsonLines(self.directory.metrics)
        self.trainer = Trainer(self.parts, self.directory, [self._tracker], stop_asked)

    def fit(self) -> dict[str, Any]:
        try:
            return self.trainer.fit()
        finally:
            self._tracker.close()
