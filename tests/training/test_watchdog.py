"""A process that waits for one that hangs says so, obeys signals and ends at its deadline, inside a collective."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch import multiprocessing
from torch.distributed import TCPStore

from acdc_cli.training import watchdog
from acdc_cli.training.distributed import Ranks, process_group
from acdc_cli.training.stopping import StopSignals

LAST_STEP = 3


def stop(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(rank: int) -> None:
    time.sleep(1000)


HANGS = {"stopped": stop, "asleep": sleep}


def tell_the_step(ranks: Ranks) -> None:
    """Until two more beats of this process have been published."""
    assert ranks.watchdog
    beats = ranks.watchdog._own.number + 2
    while ranks.watchdog._own.number < beats:
        time.sleep(0.02)


def work(rank: int, port: int, how: str, minutes: float, folder: Path) -> None:
    """Two processes take steps together; after three the second hangs."""
    error = os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT)
    os.dup2(error, 2)
    watchdog.FIRST_WORD, watchdog.GRACE, watchdog.BEAT, watchdog.SILENT = 1.0, 1.0, 0.1, 3.0
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    with process_group() as ranks, StopSignals():
        ranks.limit_waiting(minutes)
        for step in range(1, 100):
            ranks.wait()
            ranks.reached(2, step)
            if step == LAST_STEP:
                (folder / f"{rank}.ready").touch()
                if rank == 1:
                    tell_the_step(ranks)
                    HANGS[how](rank)


class Hung:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair: list[BaseProcess] = []
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def start(self, how: str, minutes: float) -> None:
        multiprocessing.set_forkserver_preload(["acdc_cli.training.distributed"])
        context = multiprocessing.get_context("forkserver")
        for rank in range(2):
            arguments = (rank, self._store.port, how, minutes, self.folder)
            self.pair.append(context.Process(target=work, args=arguments))
            self.pair[-1].start()
        while not all((self.folder / f"{rank}.ready").exists() for rank in range(2)):
            assert all(process.is_alive() for process in self.pair), self.said()
            time.sleep(0.02)
        # the first is now waiting for the second
        time.sleep(1)

    def said(self) -> str:
        return " ".join((self.folder / "0.err").read_text().split())

    def ends_with(self) -> int | None:
        """Exit code of the process that waits."""
        self.pair[0].join(timeout=60)
        return self.pair[0].exitcode


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Hung]:
    two = Hung(tmp_path)
    yield two
    for process in two.pair:
        process.kill()
        process.join()


@pytest.mark.parametrize(("how", "state"), [("stopped", ", silent for "), ("asleep", ")")])
def test_the_missing_process_is_named_and_at_the_deadline_the_other_ends_to_be_restarted(
    hung: Hung, how: str, state: str
) -> None:
    hung.start(how, 4 / 60)
    assert hung.ends_with() == 1
    said = hung.said()
    named = f"waiting for process 1 of 2 (process {hung.pair[1].pid} on "
    assert f"warning: {named}" in said
    assert f"after step {LAST_STEP} of epoch 2{state}" in said
    assert "the limit is 0.0667 minutes" in said
    assert f"error: {named}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGUSR1], [signal.SIGINT] * 3])
def test_a_signal_ends_a_process_that_waits_for_one_that_hangs(hung: Hung, signals: list[signal.Signals]) -> None:
    hung.start("stopped", 10)
    for each in signals:
        assert hung.pair[0].pid
        os.kill(hung.pair[0].pid, each)
        time.sleep(0.1)
    assert hung.ends_with() == 130
    assert f"error: {signals[0].name} received while waiting for process 1 of 2" in hung.said()


def test_waits_that_were_longer_before_are_allowed_after_a_signal() -> None:
    waits = watchdog.Watchdog(0, 2)
    waits._longest = 30.0
    waits._note(bytes([signal.SIGTERM]))
    assert waits._asked is not None
    waits._judge_wait(waits._asked + 59, waits._asked)
    ended: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", ended.append)
        waits._judge_wait(waits._asked + 61, waits._asked)
    assert ended == [130]
