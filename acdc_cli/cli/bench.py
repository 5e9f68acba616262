"""`acdc bench`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acdc_cli.cli.eval import Data, Model, Rename, Set, changes

if TYPE_CHECKING:
    from acdc_cli.jobs.bench_run import Benched


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


Runs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN…", help="Run directories or checkpoint files.", show_default=False),
]
Engines = Annotated[
    str | None,
    typer.Option(
        help="On the CPU of torch, ort, mnn, openvino; on a GPU of torch, compiled, bf16, bf16-compiled, 2:4.",
        show_default="those installed",
    ),
]
Batch = Annotated[str, typer.Option(help="Images in a batch, one or more numbers: 1,16.")]
Threads = Annotated[str, typer.Option(help="Threads of an engine, one or more numbers: 1,2.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often every engine has its turn.")]
Random = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="No run: weights at random, with this share of zeros. Needs --model.", show_default=False
    ),
]
ZeroFilters = Annotated[float, typer.Option(min=0, max=1, help="With --random: share of filters that are zero.")]
KeepDense = Annotated[str, typer.Option(help="With --random: layers that are not pruned, as in recipes.")]
InputSize = Annotated[
    int | None, typer.Option(min=1, help="With --random: side of the images.", show_default="the model's")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the results. Default: bench/ of the first run.", show_default=False)
]


def bench(
    runs: Runs = None,
    engines: Engines = None,
    batch: Batch = "1",
    threads: Threads = "1",
    device: Annotated[Device, typer.Option(help="Where the engines run.")] = Device.CPU,
    rounds: Rounds = 10,
    random: Random = None,
    zero_filters: ZeroFilters = 0.0,
    keep_dense: KeepDense = "first,last",
    input_size: InputSize = None,
    model: Model = None,
    rename: Rename = None,
    data: Data = None,
    set_: Set = None,
    out: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time a model, dense, sparse and shrunk, on several engines in turn.

    For example: acdc bench runs/demo, or acdc bench --random 0.95 --model resnet50.
    """
    from acdc_cli import console
    from acdc_cli.errors import RunError
    from acdc_cli.jobs import bench_run
    from acdc_cli.jobs.entrants import Random as Drawn

    names = tuple(_parts(engines)) if engines else ()
    how = bench_run.Setup(
        names, _numbers("batch", batch), _numbers("threads", threads), rounds, device=bench_run.device_of(device.value)
    )
    if random is not None:
        if runs or model is None:
            raise RunError("--random needs --model, and takes no run")
        drawn = Drawn(model, random, zero_filters, tuple(_parts(keep_dense)), input_size=input_size)
        done = bench_run.bench_random(drawn, how, out)
    elif runs:
        done = bench_run.bench_runs(runs, how, out, changes(set_, rename), model, data)
    else:
        raise RunError("name the runs to time, or --random SPARSITY --model NAME")
    if json:
        console.out_json(done.document)
        return
    _print(done, how.base)


def _print(done: Benched, base: str) -> None:
    """The tables, the meaning of their columns, and the files that were written."""
    from acdc_cli import console

    for title, table in done.tables.items():
        console.table(table.columns, table.rows, title)
        console.out("")
    console.say(
        "ms, p90: median and 90th percentile of a batch; MB: the file; peak: MB of memory of the engine's process"
    )
    console.say(f"× own, × base: how many times faster than the dense model on the same engine, and on {base}")
    for file in done.files:
        console.out(str(file))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from acdc_cli.errors import RunError

    numbers = [int(part) if part.isdecimal() else 0 for part in _parts(text)]
    if not numbers or not all(numbers):
        raise RunError(f"--{option} takes whole numbers from 1, separated by commas: --{option} 1,16; not {text!r}")
    return tuple(numbers)
