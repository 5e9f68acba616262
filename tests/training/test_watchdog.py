"""A process that waits for one that hangs says so, obeys signals and ends at its deadline, inside a collective."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch import multiprocessing
from torch.distributed import Store, TCPStore

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
    named = f"waiting for rank 1 of 2 (process {hung.pair[1].pid} on "
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
    assert f"error: {signals[0].name} received while waiting for rank 1 of 2" in hung.said()


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


def waiting(rank: int, size: int, **missing: watchdog._Beat) -> watchdog.Watchdog:
    """The watchdog of a process that has waited since time 0, as do the others of which it always hears.

    missing: the last of those that do not wait, by the name `rank_N`.
    """
    waits = watchdog.Watchdog(rank, size)
    waits._own.waits = 1
    others = {each: watchdog._Beat(waits=1, heard=math.inf) for each in range(size) if each != rank}
    waits._others = others | {int(name[5:]): beat for name, beat in missing.items()}
    return waits


def judged(waits: watchdog.Watchdog, capsys: pytest.CaptureFixture[str], *times: float) -> list[str]:
    """What it says at each of these times, and the exit code if it ends the process."""
    said = []
    for now in times:
        waits._beaten = now
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "_exit", lambda code: said.append(str(code)))
            waits._judge_wait(now, 0.0)
        said.append(" ".join(capsys.readouterr().err.split()))
    return said


def test_the_missing_are_named_after_half_a_minute_and_then_each_minute(capsys: pytest.CaptureFixture[str]) -> None:
    waits = waiting(0, 3, rank_1=watchdog._Beat(epoch=2, step=5, process="process 7 on b", heard=85))
    named = "warning: waiting for rank 1 of 3 (process 7 on b, after step 5 of epoch 2"
    limit = "the limit is 30 minutes"
    assert judged(waits, capsys, 29, 31, 89, 92) == [
        "", f"{named}), for 31 s; {limit}", "", f"{named}), for 92 s; {limit}"
    ]  # fmt: skip


def test_one_of_those_that_wait_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    missing = {f"rank_{rank}": watchdog._Beat(process="p", heard=31) for rank in (0, 2)}
    first, other = waiting(1, 4, **missing), waiting(3, 4, **missing)
    assert "waiting for rank 0 of 4 (p, before its first step); 2 of 4 (p" in judged(first, capsys, 31)[0]
    assert judged(other, capsys, 31, 1801) == ["", str(watchdog.LOST), ""]


def test_of_many_missing_some_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    missing = {f"rank_{rank}": watchdog._Beat(process=f"p{rank}", heard=10) for rank in range(1, 7)}
    (said,) = judged(waiting(0, 8, **missing), capsys, 31)
    assert "; 4 of 8 (p4, before its first step, silent for 21 s) and 2 others, for 31 s" in said


def test_at_the_deadline_the_process_ends_and_says_for_whom_it_waited(capsys: pytest.CaptureFixture[str]) -> None:
    waits = waiting(0, 2)
    code, said = judged(waits, capsys, 1801)
    assert code == str(watchdog.LOST)
    assert said.startswith("error: all 2 ranks are waiting for each other, for 30 minutes: this process ends")
    # the deadline of the recipe holds once a step was taken
    waits.reached(0, 1)
    waits.timeout = 60
    assert judged(waits, capsys, 59) == [""]
    assert judged(waits, capsys, 61)[0] == str(watchdog.LOST)


def test_without_its_launcher_a_process_stops_waiting_and_the_first_request_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "FIRST_WORD", 0.01)

    def asked_by() -> str:
        with watchdog.Watchdog(0, 2) as waits:
            waits._launcher = -1
            while not waits._asked:
                time.sleep(0.01)
            waits._note(bytes([signal.SIGTERM]))
        return waits._asked_by

    # in a thread, which may set up no signals
    with ThreadPoolExecutor() as pool:
        assert pool.submit(asked_by).result(timeout=60) == "its launcher has died"


def test_a_process_whose_store_has_ended_hears_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Store):
        def set(self, key: str, value: str) -> None:
            raise RuntimeError("Broken pipe")

    monkeypatch.setattr(watchdog, "BEAT", 0.0)
    waits = watchdog.Watchdog(0, 2)
    waits._store, heard = Ended(), waits._beaten  # type: ignore[assignment]
    waits._exchange_beats()
    assert waits._beaten == heard
    assert waits._names_missing(heard + watchdog.SILENT) == "waiting for the process that connects all others"
