"""`acdc bench`: how fast engines run dense, sparse and shrunk models, beside their accuracy."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from acdc_cli import __version__, console
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.deploy import contest, contract, engines, on_gpu
from acdc_cli.deploy.contest import Contestant, Record
from acdc_cli.deploy.parity import difference
from acdc_cli.errors import RunError
from acdc_cli.jobs.entrants import Entrant, Random, drawn, opened
from acdc_cli.quantities import ACCURACY, Quantity
from acdc_cli.reading import plain
from acdc_cli.runs.provenance import command_line, cpu_model, describe
from acdc_cli.runs.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEM = "bench"
"""Stem of the names of the files that are written."""
_COLUMNS = ("variant", "engine", "ms", "p90", "img/s", "MB", "peak", "× own", "× base", "differs")
_HEADS = (
    "model", "variant", "engine", "batch", "threads", "accuracy", "latency_ms", "latency_p90_ms", "cpu_ms",
    "images_per_second", "file_bytes", "peak_memory_bytes", "logit_difference", "speedup_over_own_dense",
    "speedup_over_own_dense_cpu", "speedup_over_base", "speedup_over_base_cpu",
)  # fmt: skip
Row = dict[str, Any]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    engines: tuple[str, ...] = ()
    """None given: all that are installed."""
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 10
    turn_seconds: float = 0.3
    """A turn of an engine takes one pass, or as many as fit."""
    device: torch.device = _CPU

    @property
    def base(self) -> str:
        """The engine whose dense model all are compared with."""
        return "ort" if self.device == _CPU else "torch"

    def checked(self) -> Setup:
        """With the engines by name. Raises RunError for one that does not exist or is not installed."""
        if self.device == _CPU:
            names = self.engines or tuple(engines.installed())
            for name in names:
                contract.find(engines.find(name).format)
        else:
            names = self.engines or on_gpu.ENGINES
        return replace(
            self, engines=names, batches=tuple(sorted(set(self.batches))), threads=tuple(sorted(set(self.threads)))
        )


def device_of(name: str) -> torch.device:
    """Raises RunError for `cuda` where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch finds no CUDA device; leave --device out to bench on the CPU")
    return torch.device(name)


@dataclass
class Benched:
    document: dict[str, Any]
    """What bench.json holds."""
    tables: dict[str, Table]
    """What a person reads, by title: texts, in at most 80 columns of a terminal."""
    files: list[Path] = field(default_factory=list)


def bench_runs(
    sources: Sequence[Path],
    how: Setup | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    model: str | None = None,
    data: str | None = None,
) -> Benched:
    """Writes into `out`, or `bench/` of the first run, and each run's own rows into the run once it has been timed.

    model, data: the architecture of files that acdc did not write, and another data set.
    Raises what `open_model` raises, RunError for an engine that is not there, and ModelError for one that fails.
    """
    how = (how or Setup()).checked()
    entrants = [opened(source, model, data, max(how.batches), overrides) for source in sources]
    if len({each.name for each in entrants}) < len(entrants):
        entrants = [replace(each, name=str(source)) for each, source in zip(entrants, sources, strict=True)]
    first = sources[0] if sources[0].is_dir() else sources[0].parent
    return _bench(entrants, how, out or first / "bench")


def bench_random(random: Random, how: Setup | None = None, out: Path | None = None) -> Benched:
    """Writes nothing without `out`."""
    how = (how or Setup()).checked()
    return _bench([drawn(random, max(how.batches))], how, out)


def _bench(entrants: Sequence[Entrant], how: Setup, out: Path | None) -> Benched:
    about = _about(how)
    rows: list[Row] = []
    files: list[Path] = []
    for each in entrants:
        own = _rows(each, how)
        rows += own
        if each.run is not None:
            findings = Findings({"rows": own}, Table((), ()))
            files += findings.write(each.run, RunDir(each.run).bench.stem, {**about, "load_after": _load()})
    about["load_after"] = _load()
    headlines = list(dict.fromkeys(each.headline.common for each in entrants))
    # values of different kinds have no axis in common
    figure = _figure(rows, headlines[0]) if len(headlines) == 1 else None
    heads = [name for head in _HEADS for name in ([each.key for each in headlines] if head == "accuracy" else [head])]
    findings = Findings(
        {"rows": rows},
        Table((), ()),
        {"": Table(heads, [[row.get(head) for head in heads] for row in rows])},
        {} if figure is None else {"": figure},
    )
    if out is not None:
        files = findings.write(out, _STEM, about) + files
    return Benched(plain({**about, "results": {"rows": rows}}), _tables(rows), files)


def _rows(entrant: Entrant, how: Setup) -> list[Row]:
    """One entrant's contestants alternate; entrants and numbers of threads come one after the other."""
    expected = {name: _logits(entrant, name) for name in entrant.variants}
    rows = []
    with tempfile.TemporaryDirectory(prefix="acdc-bench-") as folder:
        contestants = _exported(entrant, how, Path(folder)) if how.device == _CPU else []
        for threads in how.threads if how.device == _CPU else (None,):
            with console.progress("bench") as bar:
                described = entrant.name if threads is None else f"{entrant.name}, threads {threads}"
                rounds = bar.track(range(how.rounds), description=described)
                if threads is None:
                    outcome = on_gpu.run(
                        entrant.variants, how.engines, entrant.inputs, how.batches, rounds, how.turn_seconds, how.device
                    )
                else:
                    outcome = contest.run(
                        contestants, entrant.inputs.numpy(), how.batches, threads, rounds, how.turn_seconds
                    )
            for (each, batch), record in outcome.records.items():
                rows.append(
                    {
                        "model": entrant.name,
                        "variant": each.variant,
                        "engine": each.engine,
                        "batch": batch,
                        "threads": threads,
                        entrant.headline.common.key: entrant.accuracy.get(each.variant),
                        "file_bytes": each.file.stat().st_size if each.file else None,
                        "logit_difference": difference(expected[each.variant], torch.from_numpy(outcome.logits[each])),
                        **_speed(record, batch),
                        **_speedups(each, batch, outcome.records, how.base),
                    }
                )
    return rows


def _exported(entrant: Entrant, how: Setup, folder: Path) -> list[Contestant]:
    """Each variant in each format that an engine reads."""
    contestants = []
    for name, model in entrant.variants.items():
        written: dict[str, Path] = {}
        for engine in how.engines:
            format = engines.ENGINES[engine].format
            if format not in written:
                writer, schema = contract.find(format)
                out = written[format] = folder / f"{name}{writer.SUFFIX}"
                console.say(f"{entrant.name}: writing the {name} model as {format}")
                if source := written.get(getattr(writer, "SOURCE", "")):
                    cast(contract.Converted, writer).convert(source, entrant.facts, out)
                else:
                    writer.write(model, entrant.facts, schema(), out)
            contestants.append(Contestant(name, engine, written[format]))
    return contestants


@torch.inference_mode()
def _logits(entrant: Entrant, variant: str) -> torch.Tensor:
    return torch.cat([entrant.variants[variant](part) for part in torch.split(entrant.inputs, 16)])


def _speed(record: Record, batch: int) -> Row:
    seconds = median(record.walls)
    return {
        "latency_ms": 1e3 * seconds,
        "latency_p90_ms": 1e3 * float(np.quantile(record.walls, 0.9)),
        "cpu_ms": 1e3 * median(turn.cpu for turn in record.turns),
        "images_per_second": batch / seconds,
        "peak_memory_bytes": record.peak_bytes,
    }


def _speedups(contestant: Contestant, batch: int, records: Mapping[tuple[Contestant, int], Record], base: str) -> Row:
    """Over the dense model on the same engine, and on the engine `base`; None where that was not timed."""
    speedups: Row = {}
    for name, engine in (("own_dense", contestant.engine), ("base", base)):
        bases = [each for each, size in records if (each.variant, each.engine, size) == ("dense", engine, batch)]
        ratios = records[contestant, batch].ratio_to(records[bases[0], batch]) if bases else (None, None)
        speedups[f"speedup_over_{name}"], speedups[f"speedup_over_{name}_cpu"] = ratios
    return speedups


def _about(how: Setup) -> dict[str, Any]:
    packages = {engines.ENGINES[engine].package for engine in how.engines if how.device == _CPU} - {"torch"}
    return {
        "acdc": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "device": describe(how.device)},
        "load_before": _load(),
        "versions": {"torch": torch.__version__} | {package: metadata.version(package) for package in sorted(packages)},
        "rounds": how.rounds,
        "base": f"the dense model on {how.base}",
    }


def _load() -> float:
    """Processes that wanted a core over the last minute."""
    return round(os.getloadavg()[0], 2)


def _tables(rows: Sequence[Row]) -> dict[str, Table]:
    cells: dict[str, list[list[str]]] = {}
    for row in rows:
        title = f"{row['model']}, batch {row['batch']}"
        title += "" if row["threads"] is None else f", threads {row['threads']}"
        cells.setdefault(title, []).append(_cells(row))
    return {title: Table(_COLUMNS, rows) for title, rows in cells.items()}


def _cells(row: Row) -> list[str]:
    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return [
        row["variant"],
        row["engine"],
        *(_short(row[key]) for key in ("latency_ms", "latency_p90_ms", "images_per_second")),
        "-" if row["file_bytes"] is None else _short(row["file_bytes"] / 1e6),
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
        times(row["speedup_over_own_dense"]),
        times(row["speedup_over_base"]),
        f"{row['logit_difference']:.0e}",
    ]


def _short(value: float) -> str:
    """Three digits or all before the point: 0.123, 12.3, 1234."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _figure(rows: Sequence[Row], headline: Quantity) -> Figure | None:
    """The headline over latency with the smallest batch and fewest threads; None where no value is known."""
    key, scale = headline.key, headline.scale
    least = min((row["threads"] or 0, row["batch"]) for row in rows)
    known = [row for row in rows if row[key] is not None and (row["threads"] or 0, row["batch"]) == least]
    if not known:
        return None
    figure = plotting.new(7, 4.5)
    axes = figure.subplots()
    names = list(dict.fromkeys((row["engine"], row["variant"]) for row in known))
    for (engine, variant), style in zip(names, plotting.styles(), strict=False):
        points = [row for row in known if (row["engine"], row["variant"]) == (engine, variant)]
        axes.plot(
            [row["latency_ms"] for row in points],
            [scale * row[key] for row in points],
            label=f"{variant}, {engine}",
            **{**style, "linestyle": "", "markersize": 7},
        )
    front = _pareto(known, headline)
    axes.plot(
        [row["latency_ms"] for row in front],
        [scale * row[key] for row in front],
        drawstyle="steps-post", color="0.6", linewidth=1, zorder=0, label="Pareto front",
    )  # fmt: skip
    if len({row["model"] for row in known}) > 1:
        for row in front:
            place = row["latency_ms"], scale * row[key]
            axes.annotate(row["model"], place, xytext=(4, 4), textcoords="offset points")
    threads = f", threads {least[0]}" if least[0] else ""
    axes.set(xlabel=f"latency of a batch of {least[1]}{threads} (ms)", ylabel=headline.axis)
    plotting.log(axes, "x")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _pareto(rows: Sequence[Row], headline: Quantity = ACCURACY) -> list[Row]:
    """Those that none beats in both headline and latency, the fastest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["latency_ms"], -headline.rank(row[headline.key]))):
        if not front or headline.gain(row[headline.key], front[-1][headline.key]) > 0:
            front.append(row)
    return front
