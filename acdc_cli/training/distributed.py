"""The processes that train one run together: each takes its part of every batch; the first writes files and output."""

from __future__ import annotations

import inspect
import io
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from acdc_cli import console
from acdc_cli.data.shard import Shard
from acdc_cli.errors import AcdcError, RunError, Stopped
from acdc_cli.training.watchdog import LOST, Watchdog

T = TypeVar("T")

_MEETING = timedelta(minutes=10)
"""How long processes wait for each other at the start."""
_WAITING = timedelta(days=1)
"""How long torch lets them wait during the run: longer than their watchdogs do."""


@dataclass(frozen=True)
class Ranks:
    """All processes of the run, as one of them sees them. A collective call must be made by all, or they wait.

    Values are exchanged between the hosts (gloo): no process waits for its GPU, nor a GPU for another.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1
    store: Store | None = None
    """None for a process that was started alone, without a group."""
    watchdog: Watchdog | None = None
    """None for a process that was started alone."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and output."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.size, self.local_size)

    def waiting(self) -> AbstractContextManager[None]:
        """Around whatever waits for the other ranks: all enter it equally often and in the same order."""
        return self.watchdog.waiting() if self.watchdog else nullcontext()

    def limit_waiting(self, minutes: float) -> None:
        """How long this rank waits for another once it has taken a step, before it ends."""
        if self.watchdog:
            self.watchdog.timeout = 60 * minutes

    def reached(self, epoch: int, step: int) -> None:
        """This rank has taken a step."""
        if self.watchdog:
            self.watchdog.reached(epoch, step)

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        with self.waiting():
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return float(largest)

    def largest_later(self, value: float) -> Callable[[], float]:
        """The largest of all ranks' values, as a function: a rank waits for the others only when it calls it.

        Call it before the next exchange begins.
        """
        largest = torch.tensor(value, dtype=torch.float64)
        if self.size == 1:
            return lambda: float(largest)
        work = distributed.all_reduce(largest, distributed.ReduceOp.MAX, async_op=True)
        assert work is not None

        def answer() -> float:
            with self.waiting():
                work.wait()
            return float(largest)

        return answer

    def wait(self) -> None:
        """Until all ranks are here."""
        self.largest(0)

    def gather(self, value: T) -> list[T]:
        """Every rank's value: a small one, of tensors, numbers, strings and containers of them."""
        if self.size == 1:
            return [value]
        packed = [b""] * self.size
        with self.waiting():
            distributed.all_gather_object(packed, _packed(value))
        return [_unpacked(each) for each in packed]

    def from_first(self, value: T) -> T:
        """The first rank's value, of the same kinds; the other ranks' values are ignored."""
        if self.size == 1:
            return value
        packed = [_packed(value) if self.first else b""]
        with self.waiting():
            distributed.broadcast_object_list(packed)
        return value if self.first else _unpacked(packed[0])

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Raises RunError, on all ranks, if the facts of any rank differ from those of the first."""
        everyone = self.gather(dict(facts))
        for rank, others in enumerate(everyone):
            if differing := [what for what in facts if others[what] != everyone[0][what]]:
                raise RunError(
                    f"the {differing[0]} of rank {rank} of {self.size} differs from that of rank 0: give all "
                    "ranks the same command, recipe and data"
                )

    def broadcast_(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Overwrite the tensors, in place, with those of the rank `source`; one message per dtype."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
        for alike in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            with self.waiting():
                distributed.broadcast(flat, source)
            parts = torch.split(flat, [tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def whole(self, images: Tensor) -> Tensor:
        """The whole batch, from all ranks' parts in order.

        images: (part, channels, height, width), channels_last; or labels: (part,) or (part, outputs).
        """
        if self.size == 1:
            return images
        own = images.movedim(1, -1).contiguous() if images.ndim == 4 else images
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self.waiting():
            distributed.all_gather(parts, own)
        batch = torch.cat(parts)
        return batch.movedim(-1, 1) if images.ndim == 4 else batch


ALONE = Ranks()


class Replica:
    """This process's copy of the model, in training: backward passes leave gradients averaged over ranks.

    Each rank keeps its own buffers while it trains, since a training forward pass does not read the running statistics
    of batch norm. For validation and for a method's gradients, which do, all ranks take the first rank's buffers.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[Tensor], Tensor], ranks: Ranks = ALONE, accumulate: int = 1
    ) -> None:
        """forward: compiled or not. Compiled within, because there torch.compile sees which gradients travel together
        and cuts its graph so that they can while the backward pass still runs.

        accumulate: passes per step, each over a part of the batch.
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
        """Around one of the passes of a step: only the last one's backward exchanges gradients with the other ranks."""
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
def process_group() -> Iterator[Ranks]:
    """All processes that torchrun, srun or `acdc train --gpus` started for this run; ALONE if there is only this one.

    Within, only the first process writes to the terminal; an error is reported by the process where it occurred first.
    If another process dies, this one ends with exit code 1.
    """
    meeting = _meeting(os.environ)
    if meeting is None:
        yield ALONE
        return
    with ExitStack() as stack:
        url, rank, size, local_rank = meeting
        watchdog = stack.enter_context(Watchdog(rank, size)) if size > 1 else None
        ranks = _join(url, rank, size, local_rank, watchdog)
        console.mute(not ranks.first)
        stack.enter_context(_one_report(ranks))
        try:
            yield ranks
        except Stopped:
            _leave_together(ranks)
            raise
        _leave_together(ranks)


@contextmanager
def _one_report(ranks: Ranks) -> Iterator[None]:
    """An error is reported by one of the processes."""
    try:
        yield
    except AcdcError:
        _report_if_first(ranks)
        raise
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        _report_if_first(ranks)
        console.error(f"another of the {ranks.size} processes of this run has died; resume with --resume")
        raise SystemExit(LOST) from error


def own_device(ranks: Ranks, device: torch.device) -> torch.device:
    """This process's GPU, which becomes torch's current one; CPUs are shared.

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
    way_out = f"ask for at most {there}, or train" if there else "train"
    return f"{asked} GPUs asked for, {there} available; {way_out} on CPUs with --set device=cpu"


def is_joining() -> bool:
    """Whether a launcher started this process as one of several."""
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
    # each step of each job has its own port, below the range that systems assign from
    port = 10_000 + (100 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", 0))) % 20_000
    return f"tcp://{host}:{port}", int(environment["SLURM_PROCID"]), size, int(environment["SLURM_LOCALID"])


def first_host(nodes: str) -> str:
    """`gpu07` of Slurm's `gpu[07-09,12],cpu1`."""
    singled = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes)
    return singled.partition(",")[0]


def _join(url: str, rank: int, size: int, local_rank: int, watchdog: Watchdog | None) -> Ranks:
    try:
        with watchdog.waiting() if watchdog else nullcontext():
            store, _, _ = next(rendezvous(url, rank, size, timeout=_MEETING))
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            group = PrefixStore("group", store)
            if watchdog:
                watchdog.announce(store)
            distributed.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=_WAITING)
    except (RuntimeError, TimeoutError) as e:
        raise RunError(f"rank {rank} of {size} could not join the others at {url}: {str(e).splitlines()[0]}") from e
    hosts = Ranks(rank, size, watchdog=watchdog).gather(socket.gethostname())
    if watchdog:
        watchdog.start_exchange()
    return Ranks(rank, size, local_rank, hosts.count(hosts[rank]), store, watchdog)


def _packed(value: object) -> bytes:
    # torch's own format holds tensors of any kind, and reading it runs no code
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)


def _report_if_first(ranks: Ranks) -> None:
    """Only the first process to fail reports its error; the others' errors follow from it, or are the same."""
    assert ranks.store is not None
    _ignore_launcher()
    try:
        console.mute(ranks.store.add("failed", 1) > 1)
    except RuntimeError:
        # the store ended with the process that served it
        console.mute(not ranks.first)


def _is_lost_process(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _leave_together(ranks: Ranks) -> None:
    """End once the first process has written everything: a launcher that sees one process end kills the others."""
    ranks.wait()
    _ignore_launcher()
    distributed.destroy_process_group()


def _ignore_launcher() -> None:
    """This process is about to end by itself, with its own exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
