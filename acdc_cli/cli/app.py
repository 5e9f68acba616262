"""The command line: every command, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
from typing import Any

import typer
from typer.core import TyperGroup

from acdc_cli import __version__, streams
from acdc_cli.cli import (
    advise,
    analyze,
    bench,
    data,
    demo,
    doctor,
    eval,
    export,
    init,
    models,
    plan,
    prune,
    recipes,
    report,
    runs,
    sweep,
    train,
    transfer,
    verify_resume,
    verify_run,
    watch,
)
from acdc_cli.errors import RESUME_ME, AcdcError, Stopped

# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


class _Boundary(TyperGroup):
    """Exit code 2 and one message for errors that the user can fix; anything else is our bug: a traceback and code
    1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AcdcError as error:
            _report(error)
            raise typer.Exit(2) from error
        except Stopped as stopped:
            from acdc_cli import console

            console.say(str(stopped))
            raise typer.Exit(RESUME_ME) from stopped
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        except EOFError as error:
            # click would say "Aborted." of it, as at the end of a prompt's input
            raise RuntimeError("unexpected end of a stream") from error
        except Exception as error:
            from acdc_cli.recipe import code

            # a model's own code is the user's, too
            if (line := code.blame(error)) is None:
                raise
            _report(AcdcError(line))
            raise typer.Exit(2) from error


app = typer.Typer(
    name="acdc",
    cls=_Boundary,
    help="Train, evaluate and study sparse vision models from YAML recipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)
app.command("train", cls=train.Command)(train.train)
app.command("verify-resume")(verify_resume.verify_resume)
app.command("verify-run")(verify_run.verify_run)
app.command("plan")(plan.plan)
app.command("models")(models.models)
app.command("eval")(eval.evaluate)
app.command("analyze")(analyze.analyze)
app.command("prune")(prune.prune)
app.command("transfer")(transfer.transfer)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("watch")(watch.watch)
app.command("sweep", cls=sweep.Command)(sweep.sweep)
app.command("report")(report.report)
app.command("advise")(advise.advise)
app.add_typer(recipes.app, name="recipes", help="List, show and copy the recipes that come with acdc.")
app.add_typer(runs.app, name="runs", help="List, show, compare and remove runs.")
app.add_typer(data.app, name="data", help="List, write and check data sets.")


def _version(asked: bool) -> None:
    if asked:
        from acdc_cli import console

        console.out(f"acdc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    # importing torch creates a million objects that stay alive: Python's default of scanning them after every 700 new
    # ones takes a fifth of a command's start
    gc.set_threshold(50_000)
    _keep_freed_memory()
    # until a training run handles them itself, schedulers' signals end a command like Ctrl-C
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.default_int_handler)
    streams.secure()
    code: Any = 2
    try:
        app()
    except SystemExit as end:
        code = end.code
    except AcdcError as error:
        # of a command's help, which typer prints
        _report(error)
    at_work = [each for each in threading.enumerate() if not each.daemon]
    if isinstance(code, int) and at_work == [threading.main_thread()]:
        _leave(code)
    sys.exit(code)


def _keep_freed_memory() -> None:
    """Lets tensors reuse the memory of tensors before them.

    By default glibc returns every large block to the kernel and fetches it anew, page by page: a third of the CPU time
    of an evaluation on the CPU. The process then keeps the memory of its peak until it ends.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _leave(code: int) -> None:
    """Ends the process at once: unloading torch's modules one by one takes half a second."""
    # the exit code is known: a signal would only print a traceback
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except AcdcError as error:
        _report(error)
        code = code or 2
    os._exit(code)


def _report(error: AcdcError) -> None:
    from acdc_cli import console

    console.error(str(error))
