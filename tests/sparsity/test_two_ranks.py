"""Two processes with images of their own come to the same masks and weights, whatever the method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_method import EPOCHS, RUNS, STEPS, Run
from torch import Tensor, distributed, multiprocessing

from acdc_cli.schedule.time import Moment

RANKS = 2


class Rank(Run):
    """A run on this rank's images, whose gradients are averaged over ranks as soon as they are there, as by DDP."""

    def __init__(self, name: str, averages: bool = True) -> None:
        super().__init__(name)
        self.rank, self.averages = distributed.get_rank(), averages
        self.apart = 0
        """Steps whose gradients were not the same on the other rank."""
        # what is drawn from the global generator is another's on each rank
        torch.manual_seed(self.rank)

    def batch(self, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
        return super().batch(RANKS * seed + self.rank, size)

    def backward(self, moment: Moment) -> None:
        super().backward(moment)
        # of the model's parameters only: a method's own are not DDP's
        local = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        mean = over_ranks(local)
        self.apart += not all(ours.equal(theirs) for ours, theirs in zip(local, mean, strict=True))
        if self.averages:
            torch._foreach_copy_(local, mean)

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        for gradients in super().gradients(moment, batches, batch_size):
            yield dict(zip(gradients, over_ranks(list(gradients.values())), strict=True))

    def forward_passes(self, moment: Moment, images: int) -> Iterator[None]:
        """Those of all ranks on each, as `MethodServices` has them."""
        for buffer in self.model.buffers():
            distributed.broadcast(buffer, 0)
        rank = self.rank
        for self.rank in range(RANKS):
            yield from super().forward_passes(moment, images // RANKS)
        self.rank = rank


def over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over ranks of each."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    parts = (flat / RANKS).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def found_by(run: Rank) -> dict[str, Any]:
    """What a rank has after each epoch of a whole run."""
    masks: list[list[str]] = []
    weights: list[str] = []

    def record(epoch: int) -> None:
        masks.append([digest(run.masked.masks.values()), digest(run.masked.backward_masks.values())])
        weights.append(digest(run.model.parameters()))

    run.train(on_epoch_end=record)
    return {"masks": masks, "weights": weights, "apart": run.apart}


def digest(tensors: Iterable[Tensor]) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        hashed.update(tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", store, timedelta(minutes=3), rank=rank, world_size=RANKS)
    results = {name: found_by(Rank(name)) for name in sorted(RUNS)}
    results["rigl by local gradients"] = found_by(Rank("rigl", averages=False))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of the two ranks found, by method."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["torch"])
    multiprocessing.start_processes(work, (folder,), nprocs=RANKS, start_method="forkserver")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_masks_and_weights_are_the_same_on_two_ranks_fed_different_images(
    name: str, ranks: list[dict[str, dict[str, Any]]]
) -> None:
    first, second = (by_method[name] for by_method in ranks)
    assert first == second
    assert len(first["masks"]) == len(first["weights"]) == EPOCHS
    assert first["apart"] == EPOCHS * STEPS


def test_masks_that_follow_local_gradients_come_out_different(ranks: list[dict[str, dict[str, Any]]]) -> None:
    first, second = (by_method["rigl by local gradients"]["masks"] for by_method in ranks)
    # until the first update, in the second epoch, the masks are the random ones that both ranks draw
    assert first[0] == second[0]
    assert all(ours != theirs for ours, theirs in zip(first[1:], second[1:], strict=True))
