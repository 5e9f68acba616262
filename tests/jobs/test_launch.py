"""When processes start again, and with which exit code the command ends."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from acdc_cli.jobs import spawn_ranks

LOST = {-9, 1}


class Agents:
    """Stands for torch's agent: each one's processes end with the next of these codes."""

    def __init__(self, last: Path, ends: Sequence[set[int]], saves: Sequence[bool] = (), asked: bool = False) -> None:
        self.last, self.ends = last, iter(ends)
        self.saves = iter([*saves, *len(ends) * [False]])
        self.asked_to_stop = asked
        self.commands: list[Sequence[str]] = []

    def __call__(self, processes: int, command: Sequence[str]) -> Agents:
        assert processes == 2
        self.commands.append(command)
        return self

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        yield

    def exit_codes(self) -> set[int]:
        if next(self.saves):
            self.last.parent.mkdir(parents=True, exist_ok=True)
            self.last.unlink(missing_ok=True)
            self.last.write_text(str(len(self.commands)))
        return next(self.ends)


Launched = Callable[..., tuple[int, Agents]]


@pytest.fixture
def launched(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Launched:
    def run(*ends: set[int], saves: Sequence[bool] = (), asked: bool = False) -> tuple[int, Agents]:
        agents = Agents(in_tmp / "run" / "checkpoints" / "last.pt", ends, saves, asked)
        monkeypatch.setattr(spawn_ranks, "_Agent", agents)
        code = spawn_ranks.launch(2, "demo", ["device=cpu", "epochs=12"], in_tmp / "run", False)
        return code, agents

    return run


def test_the_processes_get_the_command_and_those_that_follow_go_on(launched: Launched, in_tmp: Path) -> None:
    code, agents = launched(LOST, set())
    assert code == 0
    first, second = agents.commands
    assert first[:4] == ["-m", "acdc_cli", "train", "demo"]
    assert first[4:] == ["--set", "device=cpu", "--set", "epochs=12", "--out", str(in_tmp / "run")]
    assert second == [*first, "--resume", "auto"]


def test_after_three_tries_without_a_new_checkpoint_it_is_over(
    launched: Launched, capsys: pytest.CaptureFixture[str]
) -> None:
    code, agents = launched(LOST, LOST, LOST, LOST, set())
    assert code == 1
    assert len(agents.commands) == 4
    assert "4 times without a new checkpoint" in " ".join(capsys.readouterr().err.split())


def test_a_new_checkpoint_gives_three_tries_more(launched: Launched) -> None:
    code, agents = launched(*6 * [LOST], set(), saves=[False, False, False, True])
    assert code == 0
    assert len(agents.commands) == 7


@pytest.mark.parametrize(("codes", "code"), [({2, 1}, 2), ({2, -15}, 2), ({75}, 75), ({75, -15}, 75)])
def test_what_is_not_a_loss_is_passed_on(launched: Launched, codes: set[int], code: int) -> None:
    exit_code, agents = launched(codes)
    assert exit_code == code
    assert len(agents.commands) == 1


def test_a_run_that_was_asked_to_end_before_it_could_save_does_not_start_again(launched: Launched) -> None:
    code, agents = launched({-10, -15}, asked=True)
    assert code == 130
    assert len(agents.commands) == 1


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.usefixtures("_restored")
def test_every_signal_reaches_the_processes_and_the_agent_waits_for_them(in_tmp: Path) -> None:
    """Two processes that stand in for ranks: to import torch takes seconds."""
    script = in_tmp / "rank"
    script.write_text('trap "exit 75" USR1\ntouch "ready$RANK"\nwhile :; do sleep 0.01; done\n')
    agent = spawn_ranks._Agent(2, ["-c", f"import os; os.execlp('sh', 'sh', {str(script)!r})"])
    handler = signal.getsignal(signal.SIGUSR1)

    def ask() -> None:
        began = time.monotonic()
        while not all(Path(f"ready{rank}").exists() for rank in range(2)):
            assert time.monotonic() < began + 60
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    with ThreadPoolExecutor(1) as pool, agent.forwarding_signals():
        asked = pool.submit(ask)
        codes = agent.exit_codes()
        asked.result()
    assert codes == {75}
    assert agent.asked_to_stop
    assert signal.getsignal(signal.SIGUSR1) == handler
