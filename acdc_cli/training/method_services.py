"""What a run computes for its method on request: gradients of training images, and snapshots of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor, nn

from acdc_cli import memory
from acdc_cli.data.batches import Batch
from acdc_cli.errors import RecipeError
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.schedule.time import Moment
from acdc_cli.training.compiling import Compiled
from acdc_cli.training.parts import Parts


class MethodServices:
    """The `Training` of `sparsity.sparsifier`, which documents each service."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def headline(self) -> Quantity:
        return self._parts.task.measures.headline

    @property
    def model(self) -> nn.Module:
        return self._parts.model

    def input_shape(self, epoch: int) -> tuple[int, ...]:
        if self._parts.samples is not ImagesBlock:
            raise RecipeError(f"sparsity.method: {self._parts.sparsifier.config.method} works on images only")
        side = self._parts.resolution(epoch)
        return 3, side, side

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        parts, ranks = self._parts, self._parts.ranks
        ranks.broadcast_(parts.model.buffers())
        was_training = parts.model.training
        parts.model.eval()
        try:
            with memory.disabled(parts.model), self._epoch(moment) as loaded:
                whole = ((ranks.whole(batch.inputs), ranks.whole(batch.targets)) for batch in loaded)
                pieces = islice(_pieces(whole, batch_size), batches)
                while turn := list(islice(pieces, ranks.size)):
                    yield from self._in_turn(turn)
        finally:
            parts.model.train(was_training)

    def forward_passes(self, moment: Moment, images: int) -> Iterator[None]:
        parts, ranks = self._parts, self._parts.ranks
        ranks.broadcast_(parts.model.buffers())
        forward = parts.forward.eager if isinstance(parts.forward, Compiled) else parts.forward
        was_training = parts.model.training
        parts.model.eval()
        try:
            with memory.disabled(parts.model), self._epoch(moment) as loaded:
                for batch in loaded:
                    shown = ranks.whole(batch.inputs)[:images]
                    with torch.no_grad():
                        forward(shown)
                    yield
                    images -= len(shown)
                    if not images:
                        return
        finally:
            parts.model.train(was_training)

    def _epoch(self, moment: Moment) -> AbstractContextManager[Iterator[Batch]]:
        return self._parts.train.epoch(moment.epoch)

    def _in_turn(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The gradients of at most one piece per rank: each rank computes one, and broadcasts it to the others."""
        parts, ranks = self._parts, self._parts.ranks
        weights = parts.sparsifier.masked.parameters
        own: Sequence[Tensor] = ()
        if ranks.rank < len(pieces):
            images, labels = pieces[ranks.rank]
            loss = parts.task.loss(parts.forward(images), labels)
            # copies, because a CUDA graph writes its next gradients to the same memory
            own = [gradient.clone() for gradient in torch.autograd.grad(loss, list(weights.values()))]
        for source in range(len(pieces)):
            shared = own if source == ranks.rank else [torch.empty_like(weight) for weight in weights.values()]
            ranks.broadcast_(shared, source)
            yield dict(zip(weights, shared, strict=True))

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._parts.model.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        parts = self._parts
        parts.model.load_state_dict(snapshot)
        parts.sparsifier.masked.reset_momentum()
        if parts.average:
            parts.average.restart()


def _pieces(batches: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, exactly `size` at a time; the remainder of each batch is dropped."""
    for images, labels in batches:
        for start in range(0, len(labels) - size + 1, size):
            yield images[start : start + size], labels[start : start + size]
