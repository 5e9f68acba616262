"""A forward pass by torch.compile: few graphs, and a line that reports what was compiled and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mode = Literal["default", "reduce-overhead", "max-autotune"]

_MOST_GRAPHS = 64
"""Per function. torch's default is 8, beyond which it only logs and stops compiling; a run may have more image
sizes."""


class Compiled:
    """The inputs of a batch to logits, like the forward pass that it compiles; below, inputs are called images.

    There is one graph for each shape of the images in training, in evaluation, and for gradients in eval mode. Without
    gradients a batch is padded with black images to the largest batch of its image size and their logits are cut off,
    so that the smaller last batch of an evaluation needs no graph of its own. In eval mode images do not affect each
    other's logits, and every image of a split passes through the same kernels.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], model: nn.Module, mode: Mode) -> None:
        """model: the model used by `forward`."""
        from torch._dynamo import config

        config.recompile_limit = max(config.recompile_limit, _MOST_GRAPHS)
        # static shapes: a run has two or three image sizes, and kernels for dynamic shapes are slow for all of them
        self.eager = forward
        """The forward pass as it is, in which hooks run."""
        self._forward = torch.compile(forward, dynamic=False, mode=mode)
        self._model = model
        self._replays = mode != "default"
        self._largest: dict[torch.Size, int] = {}
        LOG.listen()

    def __call__(self, images: Tensor) -> Tensor:
        count = len(images)
        if not torch.is_grad_enabled():
            size = images.shape[1:]
            largest = self._largest[size] = max(count, self._largest.get(size, 0))
            if largest > count:
                images = _filled(images, largest)
        if self._replays:
            self._begin_replay()
        LOG.calls(self._model.training, images.shape)
        logits: Tensor = self._forward(images)
        return logits[:count]

    def _begin_replay(self) -> None:
        """A CUDA graph writes its results to the same memory at every replay.

        Logits are used before the next call. Gradients must survive when a step takes several passes, and torch lets
        `.grad` alias the graph's memory (pytorch issue 169545): copies of them keep out of the replay's way.
        """
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _filled(images: Tensor, count: int) -> Tensor:
    """Pads to this many images, in the same layout; graphs also depend on whether tensors come from inference mode."""
    with torch.inference_mode(images.is_inference()):
        return F.pad(images, (0, 0) * (images.ndim - 1) + (0, count - len(images)))


@dataclass(frozen=True)
class Compilations:
    """What torch has compiled in some period, in words."""

    graphs: int
    seconds: float
    """Includes recording of CUDA graphs."""
    causes: tuple[str, ...]

    def __str__(self) -> str:
        graphs = "1 graph" if self.graphs == 1 else f"{self.graphs} graphs"
        return f"compiled {graphs} in {self.seconds:.0f} s: {', '.join(self.causes)}"


class _Log:
    """Process-wide, because torch calls back for everything that it compiles.

    As text it is the end of a progress bar: empty, or for how long torch has been compiling.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._graphs_before = 0
        self._graphs, self._seconds = 0, 0.0
        self._causes: dict[str, str | None] = {}
        """What was compiled, and torch's number for it if it was a recompilation."""
        self._call = ""
        self._called: set[str] = set()
        self._is_known = False

    def listen(self) -> None:
        from torch._dynamo.callback import callback_handler

        # registered once; `torch.compiler.reset` removes it
        if self._began not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self._began)
            callback_handler.register_end_callback(self._ended)

    def calls(self, training: bool, shape: torch.Size) -> None:
        """Notes that the forward pass is about to be called."""
        kind = "evaluation" if not torch.is_grad_enabled() else "training" if training else "gradients"
        self._call = f"{kind} on {shape[0]} " + (f"images of {shape[2]} px" if len(shape) == 4 else "texts")
        self._is_known = self._call in self._called
        self._called.add(self._call)

    def take(self) -> Compilations:
        """What was compiled since the last call."""
        # torch has the reason of a compilation ready only after its callbacks
        causes = (
            cause if again is None else f"{cause} again ({_reason(again)})" for cause, again in self._causes.items()
        )
        taken = Compilations(self._graphs, self._seconds, tuple(causes))
        self._graphs, self._seconds, self._causes = 0, 0.0, {}
        return taken

    def __str__(self) -> str:
        since = self._since
        return "" if since is None else f" · compiling for {time.perf_counter() - since:.0f} s"

    def _began(self, event: Any) -> None:
        self._since, self._graphs_before = time.perf_counter(), _graphs()

    def _ended(self, event: Any) -> None:
        assert self._since is not None
        self._seconds += time.perf_counter() - self._since
        self._since = None
        if built := _graphs() - self._graphs_before:
            self._graphs += built
            self._causes[self._call] = event.compile_id if self._is_known else None


LOG = _Log()
COMPILING = "{task.fields[compiling]}"
"""Ends a progress bar that has the field `compiling=LOG`."""


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _reason(compilation: str) -> str:
    """What torch's graph for these images assumed that no longer holds, in torch's words."""
    from torch._dynamo.utils import get_compilation_metrics

    for metrics in get_compilation_metrics():
        if metrics.compile_id == compilation and metrics.recompile_reason:
            return metrics.recompile_reason.splitlines()[0].partition(": ")[2]
    return "torch gives no reason"
