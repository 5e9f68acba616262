"""A forward pass by torch.compile: few graphs, and a line that says what is compiled and why."""

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
"""Per function, where torch gives up after 8 and says so in a log only: a run may have more image sizes."""


class Compiled:
    """uint8 images (batch, 3, height, width) to logits (batch, classes), like the forward pass that it is made of.

    There is one graph for each shape of the images, in training, in evaluation and where gradients are asked for in
    eval mode. Without gradients a batch is filled up with black images to the largest one of its image size, and their
    logits are cut off: the smaller last batch of an evaluation needs no graph of its own. In eval mode no image bears
    on the logits of another one, and every image of a split passes through the same kernels.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], model: nn.Module, mode: Mode) -> None:
        """model: the one within `forward`."""
        from torch._dynamo import config

        config.recompile_limit = max(config.recompile_limit, _MOST_GRAPHS)
        # static shapes: a run has two or three image sizes, and a kernel that fits all of them fits none well
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
        """A CUDA graph writes its results where its last replay wrote them.

        Logits are used up before the next call. Gradients are not where a step takes several passes, and torch lets
        `.grad` be the graph's own memory (pytorch issue 169545): copies of them stay out of the replay's way.
        """
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _filled(images: Tensor, count: int) -> Tensor:
    """As many images, of the same layout; a graph also relies on whether tensors come from inference mode."""
    with torch.inference_mode(images.is_inference()):
        return F.pad(images, (0, 0, 0, 0, 0, 0, 0, count - len(images)))


@dataclass(frozen=True)
class Compilations:
    """What torch has compiled in some time, in words for a person."""

    graphs: int
    seconds: float
    """Recording of CUDA graphs included."""
    causes: tuple[str, ...]

    def __str__(self) -> str:
        graphs = "1 graph" if self.graphs == 1 else f"{self.graphs} graphs"
        return f"compiled {graphs} in {self.seconds:.0f} s: {', '.join(self.causes)}"


class _Log:
    """Of the whole process, because torch calls back for all that it compiles.

    As text it is what a progress bar ends with: nothing, or for how long torch has been compiling.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._graphs_before = 0
        self._graphs, self._seconds = 0, 0.0
        self._causes: dict[str, str | None] = {}
        """What was compiled, and torch's number for it where it had been compiled before."""
        self._call = ""
        self._called: set[str] = set()
        self._is_known = False

    def listen(self) -> None:
        from torch._dynamo.callback import callback_handler

        # once; `torch.compiler.reset` forgets it
        if self._began not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self._began)
            callback_handler.register_end_callback(self._ended)

    def calls(self, training: bool, shape: torch.Size) -> None:
        """The forward pass is about to be called."""
        kind = "evaluation" if not torch.is_grad_enabled() else "training" if training else "gradients"
        self._call = f"{kind} on {shape[0]} images of {shape[2]} px"
        self._is_known = self._call in self._called
        self._called.add(self._call)

    def take(self) -> Compilations:
        """Since it was last asked for."""
        # torch has a compilation's reason ready after its callbacks
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
"""What a progress bar with the field `compiling=LOG` ends with."""


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _reason(compilation: str) -> str:
    """What torch's graph for these images relied on and no longer holds, in its own words."""
    from torch._dynamo.utils import get_compilation_metrics

    for metrics in get_compilation_metrics():
        if metrics.compile_id == compilation and metrics.recompile_reason:
            return metrics.recompile_reason.splitlines()[0].partition(": ")[2]
    return "torch gives no reason"
