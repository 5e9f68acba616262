"""What one process knows of the others, and how a data set is dealt out to them."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from acdc_cli import console
from acdc_cli.data.augment import WHOLE, Crop
from acdc_cli.data.batches import Plan
from acdc_cli.data.shard import Shard
from acdc_cli.errors import RunError
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.training import distributed
from acdc_cli.training.distributed import ALONE, Ranks, Replica, first_host, is_joining, own_device, process_group
from acdc_cli.training.running import Losses, over_ranks

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def batches(samples: int, rank: int, size: int, batch: int, shuffle: bool) -> list[list[int]]:
    plan = Plan(batch, size=lambda epoch: 8, crop=Crop(WHOLE), seed=5, shuffle=shuffle, shard=Shard(rank, size))
    drawn = [list(map(int, indices)) for indices, _ in plan.batches(samples, 2, 0)]
    assert len(drawn) == plan.steps(samples)
    assert all(len(indices) <= plan.largest_batch for indices in drawn)
    return drawn


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_parts_of_all_processes_in_order_are_the_batch_of_one(size: int) -> None:
    whole = batches(47, 0, 1, 12, shuffle=True)
    parts = [batches(47, rank, size, 12, shuffle=True) for rank in range(size)]
    assert [list(chain.from_iterable(together)) for together in zip(*parts, strict=True)] == whole


def test_a_process_that_goes_on_within_an_epoch_draws_what_it_would_have() -> None:
    plan = Plan(12, size=lambda epoch: 8, crop=Crop(WHOLE), shuffle=True, shard=Shard(1, 3))
    later, all_of_them = plan.batches(47, 0, 2), plan.batches(47, 0, 0)
    assert np.array_equal(later, all_of_them[2:])


@pytest.mark.parametrize("samples", [1, 3, 12, 13, 47])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_validation_image_is_seen_once_by_one_process(samples: int, size: int) -> None:
    dealt = [batches(samples, rank, size, 4, shuffle=False) for rank in range(size)]
    assert sorted(index for own in dealt for indices in own for index in indices) == list(range(samples))
    # nobody does more than a batch less than others
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu7", "gpu7"),
        ("gpu07,gpu12", "gpu07"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("rack[1-2]n[04-08]-ib", "rack1n04-ib"),
        ("a-b.cluster.org", "a-b.cluster.org"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_only_a_step_of_several_tasks_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_joining()
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert is_joining()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not is_joining()
    # what a script of sbatch has, before it calls srun
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with process_group() as ranks:
        assert ranks is ALONE


def test_alone_nothing_is_wrapped_and_nobody_waited_for() -> None:
    model = nn.Linear(2, 2)
    assert Replica(model, model).forward is model
    assert ALONE.gather(3) == [3]
    assert ALONE.largest(2.5) == ALONE.largest_later(2.5)() == 2.5
    assert ALONE.from_first("x") == "x"
    images = torch.zeros(2, 3, 4, 4)
    assert ALONE.whole(images) is images


@pytest.fixture
def one_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torchrun sets for a single process; the group that such a process may leave to its end is undone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    console.mute(False)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_of_torchrun")
def test_a_single_process_of_torchruns_is_a_group_of_one_whose_own_errors_are_its_own() -> None:
    def fail() -> None:
        with process_group() as ranks:
            assert (ranks.rank, ranks.size, ranks.local_size, ranks.watchdog) == (0, 1, 1, None)
            assert torch.distributed.is_initialized()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()


def test_a_meeting_that_fails_is_named_with_its_address() -> None:
    with pytest.raises(RunError, match=r"rank 1 of 2 could not join the others at nowhere://host:1: No rendezvous"):
        distributed._join("nowhere://host:1", 1, 2, 0, None)


@pytest.mark.parametrize("rank", [0, 1])
def test_once_the_process_that_keeps_the_store_has_ended_the_first_rank_reports(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(torch.distributed.Store):
        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("Broken pipe")

    monkeypatch.setattr(distributed, "_ignore_launcher", lambda: None)
    with pytest.raises(RunError), distributed._one_report(Ranks(rank, 2, store=Ended())):
        raise RunError("no images")
    assert console.muted() == (rank != 0)
    console.mute(False)


@dataclass(frozen=True)
class Pair(Ranks):
    """The first of two processes, the other of which always answers the same."""

    rank: int = 0
    size: int = 2
    answer: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.answer(value)]

    def broadcast_(self, tensors: Any, source: int = 0) -> None:
        pass


def test_two_processes_cannot_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: type("Properties", (), {"uuid": "GPU-1"}))
    cuda = torch.device("cuda")
    with pytest.raises(RunError, match="2 GPUs asked for, 1 available; ask for at most 1"):
        own_device(Pair(store=torch.distributed.HashStore(), answer=lambda own: own), cuda)
    apart = Pair(store=torch.distributed.HashStore(), answer=lambda own: own.replace("GPU-1", "GPU-2"))
    assert own_device(apart, cuda) == torch.device("cuda", 0)
    assert own_device(apart, torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("place", [0, 1, 7, 23])
def test_one_bit_of_one_weight_is_told_apart(place: int) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    ours = MaskedParameters({"a": weight})._fingerprints()
    with torch.no_grad():
        weight.view(torch.int32).view(-1)[place] ^= 1
    theirs = MaskedParameters({"a": weight})._fingerprints()
    assert ours["weights of a"] != theirs["weights of a"]
    assert ours["masks of a"] == theirs["masks of a"]


def test_weights_that_have_changed_places_are_told_apart() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    turned = nn.Parameter(weight.detach().t().contiguous())
    assert MaskedParameters({"a": weight})._fingerprints() != MaskedParameters({"a": turned})._fingerprints()


def test_the_layout_in_memory_makes_no_difference() -> None:
    weight = torch.randn(3, 4, 2, 2)
    last = weight.to(memory_format=torch.channels_last)
    ours, theirs = (MaskedParameters({"a": nn.Parameter(each)})._fingerprints() for each in (weight, last))
    assert ours == theirs


def test_masks_that_differ_stop_a_change_before_it_is_made() -> None:
    weight = nn.Parameter(torch.ones(4))
    masked = MaskedParameters({"a": weight}, Pair(answer=lambda own: own | {"masks of a": 0}))
    with pytest.raises(RunError, match=r"rank 1 of 2 .*: its masks of a"):
        masked.set({"a": torch.tensor([True, False, True, True])})
    assert masked.masks["a"].all()
    assert weight.detach().all()


def test_losses_of_equal_parts_are_averaged_and_bad_steps_counted_where_they_are_most() -> None:
    reduced = over_ranks([Losses(1.0, 0.5, 0, 2, 0.5), Losses(2.0, 1.5, 3, 3, 1.5)])
    assert reduced == Losses(1.5, 1.0, 3, 3, 1.0)
