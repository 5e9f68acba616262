"""A data set of a few random images, learned by a network of a few weights: enough for every claim about the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from acdc_cli.data.batches import Batch
from acdc_cli.recipe import kinds
from acdc_cli.recipe.schema import AdamWBlock, EMABlock, LinearSchedule, SGDBlock, epochs_of
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines
from acdc_cli.schedule.learning_rate import share_of_peak
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.prunable import layers, pruned
from acdc_cli.tasks.classification import Classification
from acdc_cli.training.compiling import Compiled, Mode
from acdc_cli.training.ema import Average
from acdc_cli.training.evaluate import Probe, forward_of
from acdc_cli.training.optim import build_optimizer
from acdc_cli.training.precision import Precision
from acdc_cli.training.trainer import Parts, Settings, Trainer

CPU = torch.device("cpu")


class Tiny:
    """A loader that keeps the protocol: what it gives follows from (epoch, step) alone."""

    def __init__(self, samples: int = 12, batch_size: int = 4) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, 3, (samples,), generator=generator)
        self.samples, self.batch_size, self.steps = samples, batch_size, samples // batch_size
        self.resolutions: list[int | None] = []

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0, resolution: int | None = None) -> Iterator[Iterator[Batch]]:
        self.resolutions.append(resolution)
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(self.samples))
        parts = order.split(self.batch_size)[start_step : self.steps]
        yield (Batch(self.images[part], self.labels[part], part) for part in parts)

    def prepare(self, epoch: int, resolution: int | None = None) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class AfterAsking:
    """Asks for the end when it is asked for the nth time."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


class Bench:
    """A trainer over `Tiny`, with everything it is made of at hand."""

    def __init__(
        self,
        folder: Path,
        epochs: int,
        sparsity: dict[str, Any],
        adamw: bool = False,
        stop_asked: Callable[[], bool] = lambda: False,
        probes: Sequence[Probe] = (),
        compiled: Mode | None = None,
        val: Tiny | None = None,
        ema: EMABlock | None = None,
        **settings: Any,
    ) -> None:
        block = kinds.method_config(sparsity["method"]).model_validate(sparsity)
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(6),
            nn.Flatten(),
            nn.Linear(216, 3),
        ).to(memory_format=torch.channels_last)
        schedule = LinearSchedule(name="linear")
        optim: SGDBlock | AdamWBlock = SGDBlock(name="sgd", lr=0.05, weight_decay=1e-3, schedule=schedule)
        if adamw:
            optim = AdamWBlock(name="adamw", lr=0.01, weight_decay=1e-3, schedule=schedule)
        found = layers(self.model, [])
        self.sparsifier = kinds.method_class(block.method)(block, MaskedParameters(pruned(found)), epochs)
        self.optimizer = build_optimizer(self.model, optim, self.sparsifier.parameter_groups(optim.weight_decay))
        self.average = None
        if ema:
            self.average = Average(self.model, self.sparsifier.masked, ema.decay, epochs_of(ema.begin, epochs))
        self.train, self.val = Tiny(), val or Tiny()
        self.forward = forward_of(self.model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), CPU)
        if compiled is not None:
            self.forward = Compiled(self.forward, self.model, compiled)
        self.run = RunDir(folder)
        if not self.run.resolved.exists():
            self.run.start("", "", {})
        parts = Parts(
            model=self.model,
            forward=self.forward,
            optimizer=self.optimizer,
            sparsifier=self.sparsifier,
            layers=found,
            task=Classification(),
            precision=Precision("fp32", CPU),
            train=self.train,
            val=self.val,
            probes=probes,
            average=self.average,
        )
        defaults: dict[str, Any] = {
            "epochs": epochs,
            "learning_rate": lambda progress: optim.lr * share_of_peak(optim.schedule, progress, epochs),
            "resolution": lambda epoch: 8,
        }
        self._tracker = JsonLines(self.run.metrics)
        self.trainer = Trainer(parts, Settings(**defaults | settings), self.run, [self._tracker], stop_asked)

    def fit(self) -> dict[str, Any]:
        try:
            return self.trainer.fit()
        finally:
            self._tracker.close()
