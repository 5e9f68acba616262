"""The processes that train one run together: each takes its part of every batch, and the first writes and speaks."""

from __future__ import annotations

import inspect
import io
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from acdc_cli import console
from acdc_cli.data.batches import Shard
from acdc_cli.errors import AcdcError, RunError, Stopped

T = TypeVar("T")

_MEETING = timedelta(minutes=10)
"""How long the processes wait for one another to start."""
_WAITING = timedelta(minutes=60)
"""How long they wait within the run: while the first saves to a slow disk, or one compiles."""
_LOST = 1
"""Exit code of a process that ends because another did."""


@dataclass(frozen=True)
class Ranks:
    """All processes of the run, as one of them sees them. What they do together is done by all of them, or they wait.

    Agreements are made between the hosts (gloo): no process waits for its GPU, nor a GPU for another.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    local_size: int = 1
    store: Store | None = None
    """None where there is no group: one process that was started alone."""

    @property
    def first(self) -> bool:
        """Is this the process that writes and speaks?"""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.size, self.local_size)

    def most(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return float(found)

    def most_later(self, value: float) -> Callable[[], float]:
        """The largest of all ranks' values, as a function: a rank waits for the others only when it calls it.

        At most one answer may be outstanding.
        """
        found = torch.tensor(value, dtype=torch.float64)
        if self.size == 1:
            return lambda: float(found)
        work = distributed.all_reduce(found, distributed.ReduceOp.MAX, async_op=True)
        assert work is not None

        def answer() -> float:
            work.wait()
            return float(found)

        return answer

    def wait(self) -> None:
        """Until all ranks are here."""
        self.most(0)

    def gather(self, value: T) -> list[T]:
        """Every rank's value: a small one, of tensors, numbers, strings and containers of them."""
        if self.size == 1:
            return [value]
        found = [b""] * self.size
        distributed.all_gather_object(found, _packed(value))
        return [_unpacked(each) for each in found]

    def from_first(self, value: T) -> T:
        """The first rank's value, of the same kinds; that of the others is not looked at."""
        if self.size == 1:
            return value
        found = [_packed(value) if self.first else b""]
        distributed.broadcast_object_list(found)
        return value if self.first else _unpacked(found[0])

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Raises RunError, on all ranks, where one knows something else than the first."""
        everyone = self.gather(dict(facts))
        for rank, theirs in enumerate(everyone):
            if differing := [what for what in facts if theirs[what] != everyone[0][what]]:
                raise RunError(
                    f"process {rank} of {self.size} has another {differing[0]} than process 0: give all of them the "
                    "same command, recipe and data"
                )

    def broadcast_(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """They become those of the rank `source`, in place and in one message for each dtype."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
        for alike in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            distributed.broadcast(flat, source)
            parts = torch.split(flat, [tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def whole(self, images: Tensor) -> Tensor:
        """All ranks' parts of a batch, in order. images: (part, channels, height, width), channels_last; or labels."""
        if self.size == 1:
            return images
        own = images.movedim(1, -1).contiguous() if images.ndim == 4 else images
        parts = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(parts, own)
        joined = torch.cat(parts)
        return joined.movedim(-1, 1) if images.ndim == 4 else joined


ALONE = Ranks()


class Replica:
    """This process's copy of the model, in training: backward passes leave gradients averaged over ranks.

    Buffers are each rank's own while steps are taken, since a training forward pass reads none of batch norm's running
    statistics. Where buffers count, in validation and in a method's gradients, all ranks take the first rank's.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[Tensor], Tensor], ranks: Ranks = ALONE, accumulate: int = 1
    ) -> None:
        """forward: compiled or not. Compiled within, because there torch.compile sees which gradients travel together
        and cuts its graph so that they can while the backward pass still runs.

        accumulate: passes over a batch.
        """
        self._parallel: DistributedDataParallel | None = None
        self.forward = forward
        if ranks.store is not None:
            # torch renamed it after 2.11
            known = inspect.signature(DistributedDataParallel).parameters
            sync: dict[str, Any] = {
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
            }
            self._parallel = DistributedDataParallel(
                _Module(model, forward),
                gradient_as_bucket_view=True,
                # a static graph whose first pass does not synchronise waits for ever
                static_graph=accumulate == 1,
                **sync,
            )
            self.forward = self._parallel

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Of a batch that takes several passes: only the last one's backward waits for the other ranks."""
        if last or self._parallel is None:
            return nullcontext()
        return self._parallel.no_sync()


class _Module(nn.Module):
    """DistributedDataParallel takes a module; the model's own names stay as they are."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(images)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun, srun or `acdc train --gpus` has started beside this one; ALONE if it is one by
    itself.

    Within, only the first writes to the terminal; of an error, the process where it came first.
    Where another process is lost, this one ends with exit code 1.
    """
    meeting = _meeting(os.environ)
    if meeting is None:
        yield ALONE
        return
    ranks = _join(*meeting)
    console.mute(not ranks.first)
    try:
        try:
            yield ranks
        except Stopped:
            _leave_together(ranks)
            raise
        _leave_together(ranks)
    except AcdcError:
        _speak_if_first(ranks)
        raise
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        _speak_if_first(ranks)
        console.error(f"another of the {ranks.size} processes of this run has ended; go on with --resume")
        raise SystemExit(_LOST) from error


def own_device(ranks: Ranks, device: torch.device) -> torch.device:
    """This process's GPU, which from now on is torch's current one; the CPU is everybody's.

    Raises RunError if two processes of a machine would have to share a GPU.
    """
    if ranks.store is None or device.type != "cuda":
        return device
    # a launcher may show each process its own GPU only
    device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    taken = ranks.gather(f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}")
    if len(set(taken)) < ranks.size:
        raise RunError(too_few_gpus(ranks.size, len(set(taken))))
    return device


def too_few_gpus(asked: int, there: int) -> str:
    way_out = f"ask for {there} at most, or train" if there else "train"
    return f"{asked} GPUs asked for, {there} there; {way_out} on CPUs by --set device=cpu"


def is_joining() -> bool:
    """Has a launcher started this process as one of several?"""
    return _meeting(os.environ) is not None


def _meeting(environment: Mapping[str, str]) -> tuple[str, int, int, int] | None:
    """(address, rank, size, local rank) from torchrun's variables, or srun's."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return "env://", rank, size, int(environment.get("LOCAL_RANK", 0))
    # only srun numbers steps and counts their tasks: within a bare sbatch script there is one process
    size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1 or "SLURM_PROCID" not in environment:
        return None
    host = first_host(environment["SLURM_STEP_NODELIST"])
    # a port of its own for each step of each job, below those that systems give away by themselves
    port = 10_000 + (100 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", 0))) % 20_000
    return f"tcp://{host}:{port}", int(environment["SLURM_PROCID"]), size, int(environment["SLURM_LOCALID"])


def first_host(nodes: str) -> str:
    """`gpu07` of Slurm's `gpu[07-09,12],cpu1`."""
    singled = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes)
    return singled.partition(",")[0]


def _join(url: str, rank: int, size: int, local_rank: int) -> Ranks:
    try:
        store, _, _ = next(rendezvous(url, rank, size, timeout=_MEETING))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        group = PrefixStore("group", store)
        distributed.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=_WAITING)
    except (RuntimeError, TimeoutError) as e:
        raise RunError(f"process {rank} of {size} could not join the others at {url}: {str(e).splitlines()[0]}") from e
    hosts = Ranks(rank, size).gather(socket.gethostname())
    return Ranks(rank, size, local_rank, hosts.count(hosts[rank]), store)


def _packed(value: object) -> bytes:
    # torch's own format, which holds tensors of any kind, and whose reading runs no code
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(found: bytes) -> Any:
    return torch.load(io.BytesIO(found), map_location="cpu", weights_only=True)


def _speak_if_first(ranks: Ranks) -> None:
    """Only the first process that fails says why; the others' errors follow from it, or are the same."""
    assert ranks.store is not None
    _ignore_launcher()
    try:
        console.mute(ranks.store.add("failed", 1) > 1)
    except RuntimeError:
        # the store has ended with the process that keeps it
        console.mute(not ranks.first)


def _is_loss(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _leave_together(ranks: Ranks) -> None:
    """Once the first has written all it has to: a launcher that sees one process gone ends the others."""
    ranks.wait()
    _ignore_launcher()
    distributed.destroy_process_group()


def _ignore_launcher() -> None:
    """This process is about to end by itself, with an exit code of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
