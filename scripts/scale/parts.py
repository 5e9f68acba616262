"""The parts of a training run on H100s: measured ones from benchmarks/results, assumed ones as fields to set."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from scripts.scale.run import Checkpoint
from scripts.scale.steps import Step

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
IMAGES, VALIDATION_IMAGES = 1_281_167, 50_000
BATCH = 1024
"""P2's, of all GPUs together."""


@dataclass(frozen=True)
class Assumed:
    """Nothing here was measured by acdc. docs/scale.md gives sources and ranges; `--set KEY=VALUE` changes one."""

    flops: float = 90e12
    """Training FLOPs (convention A) of ResNet-50 that an H100 does in a second, batches large enough."""
    launch: float = 0.010
    """Seconds in which a host launches the kernels of a step, however few images it has."""
    noise: float = 0.02
    """Sigma of the lognormal factor on each rank's times."""
    nvlink: float = 370e9
    """Bytes a second of an all-reduce's bus, within a machine."""
    nic: float = 47e9
    """The same of one 400 Gb/s adapter."""
    nics: int = 8
    """Adapters of a machine."""
    machine: int = 8
    """GPUs of a machine."""
    hop_nvlink: float = 2e-6
    hop_network: float = 10e-6
    """Seconds that a message takes at least."""
    hop_host: float = 50e-6
    """The same between two hosts' processes, by gloo."""
    overlap: float = 0.8
    """Share of the backward pass that can hide the exchange."""
    cores: int = 14
    """CPU cores for each GPU."""
    queue: int = 4
    """Batches that a loader draws ahead."""
    device_copy: float = 5e9
    """Bytes a second from the GPU to the host's memory, pageable."""
    failures: float = 419 / (54 * 24 * 2048)
    """Failures of a machine of eight GPUs per hour."""
    detection: float = 60.0
    """Seconds until a lost machine is noticed and another is there."""
    compilation: float = 60.0
    """Seconds of torch.compile after a start."""
    price: float = 3.0
    """Dollars for a GPU-hour."""
    agree_every: int = 1
    """Steps between two agreements on going on; acdc makes one after each."""


@dataclass(frozen=True)
class Measured:
    """On two shared CPU cores."""

    loader: float
    """Core seconds that the FFCV loader takes for an image of 160 pixels."""
    loader_large: float
    """The same for 224 pixels."""
    agreement_hop: float
    """Seconds of one of its 2 (n - 1) hops, where processes share busy cores: an upper bound for `hop_host`."""
    checkpoint_bytes: int
    checkpoint_state: float
    """Seconds until the state is collected."""
    checkpoint_write: float
    """Seconds to serialise, hash and sync it."""
    checkpoint_load: float
    validation_ratio: float
    """An image in validation / in training, at one size."""
    start: float
    """Seconds of a run of two processes that are no epoch's."""


def result(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}-cpu.json").read_text())
    return document


@cache
def measured() -> Measured:
    loader, processes = result("loader"), result("processes")
    each = {line["what"]: line["medians"] for line in loader["comparisons"] if line["ratio_of"].endswith("acdc ffcv")}
    saving = {what: median(seconds) for what, seconds in processes["checkpoint"]["seconds"].items()}
    hops = [int(size) for size in processes["agreement_us"]]
    return Measured(
        loader=each["160 px, CPU"]["acdc ffcv"] / 1000,
        loader_large=each["224 px, CPU"]["acdc ffcv"] / 1000,
        agreement_hop=median(processes["agreement_us"][str(size)] / (2 * (size - 1)) for size in hops) / 1e6,
        checkpoint_bytes=processes["checkpoint"]["bytes"],
        checkpoint_state=saving["state"],
        checkpoint_write=saving["write"],
        checkpoint_load=saving["load"],
        validation_ratio=processes["validation"]["validation_to_training"],
        start=median(run["seconds"] - sum(run["epochs"]) for run in processes["lost_process"]["left_alone"]),
    )


@dataclass(frozen=True)
class Model:
    """What is trained, in numbers that follow from its recipe."""

    gradient_bytes: int
    buckets: int
    flops: dict[int, float] = field(hash=False)
    """Training FLOPs of an image of the dense model, by side."""


@dataclass(frozen=True)
class Machine:
    """Parts put together for `gpus` GPUs that train one run."""

    model: Model
    gpus: int
    assumed: Assumed = Assumed()
    batch: int = BATCH

    @property
    def machines(self) -> int:
        return -(-self.gpus // self.assumed.machine)

    @property
    def per_gpu(self) -> float:
        return self.batch / self.gpus

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return IMAGES // self.batch

    def exchange(self) -> float:
        """Seconds of an all-reduce of all gradients: bytes over the narrowest link, a tree's hops for each bucket."""
        if self.gpus == 1:
            return 0.0
        assumed, volume = self.assumed, 2 * (self.gpus - 1) / self.gpus * self.model.gradient_bytes
        within = min(self.gpus, assumed.machine)
        bandwidth = assumed.nvlink if self.machines == 1 else min(assumed.nvlink, assumed.nics * assumed.nic)
        return volume / bandwidth + self.model.buckets * self._hops(within)

    def _hops(self, within: int) -> float:
        between = 2 * math.ceil(math.log2(self.machines)) * self.assumed.hop_network
        return 2 * (within - 1) * self.assumed.hop_nvlink + between

    def ring_exchange(self) -> float:
        """The same where the hops go round a ring of all GPUs instead."""
        tree = self._hops(min(self.gpus, self.assumed.machine))
        network = 2 * self.machines * self.assumed.hop_network if self.machines > 1 else 0.0
        ring = 2 * (self.gpus - self.machines) * self.assumed.hop_nvlink + network
        return self.exchange() + self.model.buckets * (ring - tree)

    def agreement(self) -> float:
        """Seconds a step: gloo's all-reduce goes round a ring, in 2 (n - 1) hops."""
        return 2 * (self.gpus - 1) * self.assumed.hop_host / self.assumed.agree_every

    def step(self, side: int) -> Step:
        assumed = self.assumed
        device = self.per_gpu * self.model.flops[side] / assumed.flops
        backward = 2 / 3 * max(device, assumed.launch)
        exchange = self.exchange()
        return Step(
            device=device,
            # the last bucket is there only when the backward pass has ended
            exposed=max(exchange / self.model.buckets, exchange - assumed.overlap * backward),
            host=assumed.launch,
            agreement=self.agreement(),
            batch=self.per_gpu * measured().loader / assumed.cores,
            queue=assumed.queue,
            noise=assumed.noise,
        )

    def validation(self) -> float:
        """Seconds, 224 pixels, as the trainer does it: each process takes batches of its part of the training batch."""
        part = max(1, round(self.per_gpu))
        rounds = math.ceil(math.ceil(VALIDATION_IMAGES / part) / self.gpus)
        device = part * measured().validation_ratio * self.model.flops[224] / self.assumed.flops
        loader = part * measured().loader_large / self.assumed.cores
        return rounds * max(device, loader, self.assumed.launch / 3, self.agreement())

    def checkpoint(self, asynchronous: bool) -> Checkpoint:
        copy = measured().checkpoint_bytes / self.assumed.device_copy
        return Checkpoint(measured().checkpoint_state + copy, measured().checkpoint_write, asynchronous)

    def restart(self) -> float:
        """Seconds from a failure to the first step after it."""
        parts = measured()
        return self.assumed.detection + parts.start + parts.checkpoint_load + self.assumed.compilation

    def failures_per_hour(self) -> float:
        return self.gpus / self.assumed.machine * self.assumed.failures
