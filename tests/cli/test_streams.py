"""stdout and stderr that are full, closed, or a pipe whose reader is gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command import run_acdc

from acdc_cli import streams
from acdc_cli.cli import app
from acdc_cli.jobs import model_list
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.streams import OutputError, Stream

FAILING = {"full": "{}>/dev/full", "closed": "{}>&-", "broken": "{}>{pipe}"}


def acdc(*arguments: str | Path, redirected: str) -> subprocess.CompletedProcess[str]:
    """redirected: in the shell's words; {pipe} stands for a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    shell = ["bash", "-c", f'exec "$@" {redirected.format(pipe=f"&{write}")}', "bash"]
    try:
        return subprocess.run(
            [*shell, sys.executable, "-m", "acdc_cli", *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            pass_fds=[write],
            timeout=300,
        )
    finally:
        os.close(write)


def failing(kind: str, number: int) -> str:
    return FAILING[kind].replace("{}", str(number))


PRINTING = [("recipes", "list"), ("recipes", "list", "--json"), ("train", "--help")]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        # all write by the same function: each kind of failure and each command is met once
        pytest.param(kind, arguments, marks=() if number == PRINTING.index(arguments) else pytest.mark.slow)
        for number, kind in enumerate(FAILING)
        for arguments in PRINTING
    ],
)
def test_a_command_that_only_prints_ends_with_code_2_and_a_message(kind: str, arguments: tuple[str, ...]) -> None:
    done = acdc(*arguments, redirected=failing(kind, 1))
    assert done.returncode == 2
    assert done.stderr.startswith("error: stdout cannot be written: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("closed", "broken"))]
)
def test_lost_commentary_does_not_change_the_data(kind: str) -> None:
    done = acdc("recipes", "list", redirected=failing(kind, 2))
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["name", "description"])


@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("closed", "broken"))]
)
def test_a_lost_error_does_not_change_the_code(kind: str) -> None:
    assert acdc("recipes", "show", "unknown", redirected=failing(kind, 2)).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["broken", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("full", "closed"))]
)
def test_a_run_outlives_the_streams_that_it_writes_to(kind: str, recipe: Path) -> None:
    dense = ("--set", "sparsity={method: dense}", "--set", "epochs=2")
    done = acdc("train", recipe, *dense, redirected=f"{failing(kind, 1)} {failing(kind, 2)}")
    assert done.returncode == 0
    run = RunDir(Path("runs/small-0"))
    assert run.finished
    assert len(run.records()) == 2


def test_a_closed_stream_has_nothing_to_flush_and_loses_what_is_written_once() -> None:
    closed = io.StringIO()
    closed.close()
    stream = Stream("stdout", closed)
    stream.flush()
    with pytest.raises(OutputError, match="stdout cannot be written"):
        stream.write("data")
    stream.flush()
    assert stream.write("more") == 4


def test_an_end_of_a_file_is_our_error_and_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(word: str | None) -> None:
        raise EOFError

    monkeypatch.setattr(model_list, "matching", ended)
    done = run_acdc("models")
    assert done.exit_code == 1
    assert str(done.exception) == "unexpected end of a stream"
    assert "Aborted" not in done.output


@pytest.mark.parametrize(("code", "expected"), [(0, 2), (75, 75)])
def test_what_the_last_flush_loses_is_an_error_unless_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, expected: int
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(app.os, "_exit", ends.append)
    monkeypatch.setattr(app.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(app.signal, "signal", lambda number, handler: None)
    with open("/dev/full", "w") as full:
        full.write("data")
        monkeypatch.setattr(app.sys, "stdout", streams.Stream("stdout", full))
        app._leave(code)
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()
    assert ends == [expected]
    assert capsys.readouterr().err.startswith("error: stdout cannot be written: No space left on device")


def test_a_command_ends_by_itself_while_a_thread_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """To end the process at once would cut the thread off."""
    monkeypatch.setattr(app.sys, "argv", ["acdc", "--version"])
    monkeypatch.setattr(app, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr(app, "_leave", lambda code: pytest.fail("the thread was cut off"))
    monkeypatch.setattr(app.gc, "set_threshold", lambda count: None)
    monkeypatch.setattr(app.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(streams, "secure", lambda: None)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(SystemExit) as ended:
            app.main()
    finally:
        done.set()
        thread.join()
    assert ended.value.code == 0
