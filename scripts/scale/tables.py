"""The tables of docs/scale.md, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import mean, median
from typing import Any

from scripts.scale import parts
from scripts.scale.parts import Assumed, Machine, measured
from scripts.scale.run import Checkpoint, Failures, Work, simulate
from scripts.scale.steps import joint_steps, mean_step
from scripts.scale.study import cells, first_start, resnet50, run_of, schedule, speed

GPUS = (1, 8, 64, 512)
BATCH = parts.BATCH
ALL = 512
TOLERANCE = 0.15
"""Largest relative error of predictions of what two processes do on a shared machine."""
RANGES: dict[str, tuple[str, str]] = {
    "flops": ("60e12 to 120e12", "FFCV's ResNet-50, 160 to 192 px: 88 epochs in 77.2 min on 8 A100 [1], times 2 [2]"),
    "launch": ("5 to 20 ms", "an estimate; on a V100 a forward pass of up to 16 images takes 13 to 14 ms [3]"),
    "noise": ("0 to 0.05", "an estimate"),
    "nvlink": ("", "what NCCL's ring reaches of 450 GB/s [4]"),
    "nic": ("46 to 48 GB/s", "[5]"),
    "nics": ("1 to 8", "DGX H100: one for each GPU"),
    "machine": ("", "DGX H100"),
    "hop_nvlink": ("", "with the next: 48 µs for a small all-reduce of 16 GPUs; 47 were measured there [6]"),
    "hop_network": ("", ""),
    "hop_host": ("20 µs to what was measured here", "an estimate; the processes measured here share busy cores"),
    "overlap": ("0 to 1", "an estimate"),
    "cores": ("", "DGX H100: 112 cores"),
    "queue": ("", "an estimate"),
    "device_copy": ("", "an estimate"),
    "failures": ("to 100 times", "Llama 3: 419 unexpected interruptions of 2,048 machines in 54 days [7]"),
    "detection": (
        "1 s to 1 h",
        "an estimate; acdc waits 10 minutes for a process that hangs, 30 before the first step",
    ),
    "compilation": ("", "an estimate"),
    "price": ("2 to 4", "clouds' list prices, 2026"),
    "agree_every": ("", "acdc as it is"),
}
"""Range of each assumed part, and where its value is from."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of numbers are set to the right."""
    rows = list(rows)
    numbers = [all(cell[:1] in "0123456789+-–" for cell in column) for column in zip(*rows, strict=True)]
    lines = [head, ["--:" if each else "---" for each in numbers], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def assumed_parts(assumed: Assumed) -> str:
    rows = [
        [f"`{field.name}`", f"{getattr(assumed, field.name):.4g}", *RANGES[field.name]] for field in fields(Assumed)
    ]
    return table(["part", "value", "range", "source"], rows)


def measured_parts(_: Assumed) -> str:
    measures, model = measured(), resnet50()
    hops = parts.result("processes")["agreement_us"]
    rows = [
        ["FFCV loader, 160 px, core time of an image", f"{1000 * measures.loader:.3f} ms", "loader"],
        ["FFCV loader, 224 px", f"{1000 * measures.loader_large:.3f} ms", "loader"],
        ["gradients of ResNet-50, float32", f"{model.gradient_bytes / 1e6:.1f} MB", "counted"],
        ["messages that DistributedDataParallel makes of them", str(model.buckets), "counted"],
        ["training FLOPs of an image, 160 / 192 / 224 px", flops_of(model.flops), "`acdc plan`"],
        [
            f"agreement after a step, {' / '.join(hops)} gloo processes",
            " / ".join(f"{us:.0f}" for us in hops.values()) + " µs",
            "processes",
        ],
        ["… for one of its 2 (n - 1) hops", f"{1e6 * measures.agreement_hop:.0f} µs", "processes"],
        ["checkpoint of ResNet-50 with AC/DC", f"{measures.checkpoint_bytes / 1e6:.1f} MB", "processes"],
        ["… to serialise, hash and sync it", f"{measures.checkpoint_write:.2f} s", "processes"],
        ["… to read it and check its hash", f"{measures.checkpoint_load:.2f} s", "processes"],
        ["an image in validation / in training", f"{measures.validation_ratio:.3f}", "processes"],
        ["start and end of a run of two processes", f"{measures.start:.1f} s", "processes"],
    ]
    return table(["part", "measured", "by benchmark"], rows)


def flops_of(flops: dict[int, float]) -> str:
    return " / ".join(f"{flops[side] / 1e9:.2f}" for side in (160, 192, 224)) + " G"


@dataclass(frozen=True)
class Joint:
    """Steps of two processes, predicted from what each does alone, and measured, in one round. Milliseconds."""

    predicted: float
    measured: float
    one: float
    """A process with the whole batch."""


def joints(steps: dict[str, Any]) -> list[Joint]:
    """By round, so that a busy neighbour slows what is predicted from as much as what is measured."""
    count = steps["steps_per_round"]

    def by_round(what: str) -> list[list[list[float]]]:
        """Rounds × processes × steps."""
        pieces = [[each[at : at + count] for at in range(0, len(each), count)] for each in steps["ms"][what]]
        return [list(processes) for processes in zip(*pieces, strict=True)]

    compared = []
    rounds = (by_round(what) for what in ("one", "apart", "together", "exchange"))
    for one, apart, together, exchange in zip(*rounds, strict=True):
        # the last process to arrive waits for the network only
        sent = [min(rank_seconds) for rank_seconds in zip(*exchange, strict=True)]
        slower = [max(rank_seconds) for rank_seconds in zip(*together, strict=True)]
        compared.append(Joint(mean(joint_steps(apart, sent)), mean(slower), mean(one[0])))
    return compared


def error(joints: Sequence[Joint]) -> float:
    """Relative error of the prediction: the median of the rounds' errors."""
    return median(joint.predicted / joint.measured for joint in joints) - 1


def two_processes(_: Assumed) -> str:
    rows = []
    for case, steps in parts.result("processes")["steps"].items():
        compared, batch = joints(steps), steps["batch"]
        ratios = sorted(joint.predicted / joint.measured - 1 for joint in compared)
        predicted, together = (median(getattr(joint, what) for joint in compared) for what in ("predicted", "measured"))
        rows.append(
            [
                case,
                f"{median(joint.one for joint in compared):.0f}",
                f"{predicted:.0f}",
                f"{together:.0f}",
                f"{1000 * batch / predicted:.1f}",
                f"{1000 * batch / together:.1f}",
                f"{error(compared):+.1%}",
                f"{ratios[0]:+.0%} to {ratios[-1]:+.0%}",
            ]
        )
    head = ["recipe", "1 process, ms", "2 predicted", "2 measured", "img/s predicted", "measured", "error", "by round"]
    return table(head, rows)


@dataclass(frozen=True)
class Loss:
    """A run of which a process was killed. Seconds."""

    predicted: float
    measured: float
    alone: float
    """The run before it, which was left alone."""


def losses(result: dict[str, Any]) -> list[Loss]:
    """Predicted from the run left alone: its epochs again, the part that was lost, and another start."""
    runs = result["lost_process"]
    pairs = zip(runs["left_alone"], runs["process_killed"], strict=True)
    return [
        Loss(_with_loss(alone, killed["killed_after"]), killed["seconds"], alone["seconds"]) for alone, killed in pairs
    ]


def loss_error(losses: Sequence[Loss]) -> float:
    """Relative error of the prediction: the median of the pairs' errors."""
    return median(loss.predicted / loss.measured for loss in losses) - 1


def _with_loss(alone: dict[str, Any], killed_after: float) -> float:
    epochs = alone["epochs"]
    start = alone["seconds"] - sum(epochs)
    work = Work(training=mean(epochs), epochs=len(epochs))
    # after the second checkpoint; what one takes is within `start`, because the runs are short
    failures = Failures(restart=start, at=(2 * mean(epochs) + killed_after,))
    return start + simulate(work, Checkpoint(0.0, 0.0), failures).total


def lost_process(_: Assumed) -> str:
    rows = [
        [
            f"{number}",
            f"{loss.alone:.1f}",
            f"{loss.predicted:.1f}",
            f"{loss.measured:.1f}",
            f"{loss.predicted / loss.measured - 1:+.1%}",
        ]
        for number, loss in enumerate(losses(parts.result("processes")), 1)
    ]
    return table(["pair", "left alone, s", "killed, predicted", "killed, measured", "error"], rows)


def exchange(assumed: Assumed) -> str:
    rows = []
    for gpus in (2, *GPUS[1:]):
        one = Machine(resnet50(), gpus, replace(assumed, nics=1))
        many = Machine(resnet50(), gpus, assumed)
        sent = 2 * (gpus - 1) / gpus * resnet50().gradient_bytes
        network = ["–", "–"] if many.machines == 1 else [f"{1000 * each.exchange():.1f}" for each in (one, many)]
        ring = "–" if many.machines == 1 else f"{1000 * many.ring_exchange():.1f}"
        alone = Machine(resnet50(), gpus, replace(assumed, machine=gpus))
        rows.append(
            [f"{gpus}", f"{sent / 1e6:.0f}", f"{1000 * alone.exchange():.1f}" if gpus <= 8 else "–", *network, ring]
        )
    head = [
        "GPUs",
        "MB sent by each",
        "NVLink, ms",
        "1 × 400 Gb/s, ms",
        f"{assumed.nics} × 400 Gb/s, ms",
        "the same, one flat ring",
    ]
    return table(head, rows)


def _bound(machine: Machine) -> str:
    step = machine.step(160)
    lanes = {
        "images": step.device + step.exposed,
        "launching": step.host,
        "agreement": step.agreement,
        "loader": step.batch,
    }
    return max(lanes, key=lambda name: lanes[name])


def scaling(assumed: Assumed) -> str:
    """One run at a time, with P2's batch."""
    rows, alone = [], 0.0
    for gpus in GPUS:
        machine = Machine(resnet50(), gpus, assumed)
        rates = speed(machine)
        rate = machine.batch / rates.step[160]
        alone = alone or rate
        total = sum(
            run_of(machine, cell.sides, seed=seed).total + first_start(machine) for seed, cell in enumerate(cells())
        )
        hours = total / 3600
        rows.append(
            [
                f"{gpus}",
                f"{machine.per_gpu:g}",
                f"{1000 * rates.step[160]:.1f}",
                _bound(machine),
                f"{rate:,.0f}",
                f"{rate / alone / gpus:.1%}",
                f"{hours:,.1f}",
                f"{gpus * hours:,.0f}",
                f"{gpus * hours * assumed.price:,.0f}",
            ]
        )
    head = [
        "GPUs",
        "images each",
        "step, ms",
        "bound by",
        "images/s",
        "efficiency",
        "study, hours",
        "GPU-hours",
        "dollars",
    ]
    return table(head, rows)


def sensitivity(assumed: Assumed) -> str:
    """Images a second at 160 pixels, without the agreement, over the ranges of the two parts that matter."""
    rows = []
    for flops in (60e12, assumed.flops, 120e12):
        for launch in (0.005, 0.010, 0.020):
            changed = replace(assumed, flops=flops, launch=launch, agree_every=10**9)
            rates = [BATCH / mean_step(Machine(resnet50(), gpus, changed).step(160), gpus) for gpus in GPUS]
            best = max((2**power for power in range(10)), key=lambda gpus: _worth(gpus, changed))
            rows.append(
                [f"{flops / 1e12:.0f} TFLOP/s, {1000 * launch:.0f} ms", *[f"{rate:,.0f}" for rate in rates], f"{best}"]
            )
    return table(["`flops`, `launch`", "1 GPU", *[f"{gpus} GPUs" for gpus in GPUS[1:]], "GPUs at ≥ 80 %"], rows)


def _worth(gpus: int, assumed: Assumed) -> int:
    """The number of GPUs if they train at 80 % of their own speed or more, else 0."""
    one = BATCH / mean_step(Machine(resnet50(), 1, assumed).step(160), 1)
    rate = BATCH / mean_step(Machine(resnet50(), gpus, assumed).step(160), gpus)
    return gpus if rate / one / gpus >= 0.8 else 0


def groups(assumed: Assumed) -> str:
    """The whole study on groups of GPUs, by list scheduling."""
    rows = []
    for total in (8, 64, ALL):
        for size in [each for each in (1, 8, 16, 64, 512) if each <= total]:
            machine = Machine(resnet50(), size, assumed)
            sync, behind = (schedule(machine, total, asynchronous) for asynchronous in (False, True))
            rows.append(
                [
                    f"{total}",
                    f"{total // size} × {size}",
                    f"{sync.makespan / 3600:.2f}",
                    f"{behind.makespan / 3600:.2f}",
                    f"{sync.goodput:.1%}",
                    f"{behind.goodput:.1%}",
                    f"{behind.busy / 3600:,.0f}",
                    f"{behind.busy / 3600 * assumed.price:,.0f}",
                ]
            )
    head = [
        "GPUs",
        "groups",
        "hours, sync",
        "hours, async",
        "goodput, sync",
        "goodput, async",
        "GPU-hours, async",
        "dollars",
    ]
    return table(head, rows)


def _month(machine: Machine) -> Work:
    """30 days of epochs."""
    rates = speed(machine)
    each = rates.epoch[160] + rates.validation
    return Work(rates.epoch[160], round(30 * 24 * 3600 / each), rates.validation)


def goodput(assumed: Assumed) -> str:
    """Long enough that failures show: 512 GPUs for a month, as one run and as 64."""
    rows = []
    for size in (ALL, 64, 8):
        for times in (1, 10, 100):
            machine = Machine(resnet50(), size, replace(assumed, failures=times * assumed.failures))
            work = _month(machine)
            failures = Failures(machine.failures_per_hour(), machine.restart())
            outcomes_by_mode = {
                asynchronous: [simulate(work, machine.checkpoint(asynchronous), failures, seed) for seed in range(5)]
                for asynchronous in (False, True)
            }
            shares = [f"{mean(each.goodput for each in outcomes):.2%}" for outcomes in outcomes_by_mode.values()]
            broken = mean(each.failures for each in outcomes_by_mode[False])
            lost = mean((each.lost + each.restarting) / each.total for each in outcomes_by_mode[True])
            rows.append([f"{ALL // size} × {size}", f"{times} ×", f"{broken:.1f}", *shares, f"{lost:.2%}"])
    head = [
        "runs × GPUs",
        "failure rate",
        "failures of a run",
        "goodput, sync",
        "goodput, async",
        "lost and restarting, async",
    ]
    return table(head, rows)


@dataclass(frozen=True)
class Interval:
    """Seconds of work between two checkpoints, and the goodput of a long run with them."""

    seconds: float
    goodput: float


def young(checkpoint: Checkpoint, failures: Failures) -> float:
    """Young's interval, √(2 C M): C seconds of a checkpoint that steps wait for, M seconds between two failures."""
    stopped = checkpoint.stop + (0 if checkpoint.asynchronous else checkpoint.write)
    return math.sqrt(2 * stopped * 3600 / failures.per_hour)


def tried_intervals(checkpoint: Checkpoint, failures: Failures, failed: int = 150) -> list[Interval]:
    """Quarter, half, once, twice and four times Young's, in the same long run; failed: times that it fails, about."""
    days = failed * 3600 / failures.per_hour
    intervals = []
    for factor in (0.25, 0.5, 1, 2, 4):
        seconds = factor * young(checkpoint, failures)
        intervals.append(Interval(seconds, simulate(Work(days, 1, interval=seconds), checkpoint, failures).goodput))
    return intervals


def intervals(assumed: Assumed) -> str:
    rows = []
    for times in (1, 10, 100):
        machine = Machine(resnet50(), ALL, replace(assumed, failures=times * assumed.failures))
        failures = Failures(machine.failures_per_hour(), machine.restart())
        for asynchronous in (False, True):
            tried = tried_intervals(machine.checkpoint(asynchronous), failures)
            rows.append(
                [
                    f"{times} ×",
                    "async" if asynchronous else "sync",
                    f"{3600 / failures.per_hour:,.0f}",
                    f"{tried[2].seconds:,.0f}",
                    *[f"{each.goodput:.2%}" for each in tried],
                ]
            )
    head = ["failure rate", "checkpoints", "s between failures", "Young's interval, s", *["¼", "½", "1", "2", "4"]]
    return table(head, rows)


def changes(assumed: Assumed) -> str:
    """What would help, by what it gains at 512 GPUs."""
    base = Machine(resnet50(), ALL, assumed)
    agreed = replace(assumed, agree_every=50)
    graphs = replace(agreed, launch=0.002)
    narrow = replace(graphs, nics=1)
    rows = [
        _change("as it is", base),
        _change("agreement every 50 steps", replace(base, assumed=agreed)),
        _change("… and a step launched at once (CUDA graph, 2 ms)", replace(base, assumed=graphs)),
        _change("… and batches of 8,192 (LARS or LAMB)", replace(base, assumed=graphs, batch=8192)),
        _change("… and batches of 32,768", replace(base, assumed=graphs, batch=32768)),
        _change("CUDA graph and batches of 1024, but one adapter for a machine", replace(base, assumed=narrow)),
        _change("… and gradients in bfloat16", _halved(replace(base, assumed=narrow))),
        _change("8 GPUs for each run, as it is", Machine(resnet50(), 8, assumed)),
        _change("… agreement every 50 steps", Machine(resnet50(), 8, agreed)),
    ]
    return table(["change", "images each", "step, ms", "images/s of 512 GPUs", "GPU-hours of the study, async"], rows)


def _halved(machine: Machine) -> Machine:
    model = machine.model
    return replace(machine, model=replace(model, gradient_bytes=model.gradient_bytes // 2))


def _change(what: str, machine: Machine) -> list[str]:
    step = speed(machine).step[160]
    rate = machine.batch / step * ALL / machine.gpus
    study_schedule = schedule(machine, ALL, asynchronous=True)
    return [what, f"{machine.per_gpu:g}", f"{1000 * step:.1f}", f"{rate:,.0f}", f"{study_schedule.busy / 3600:,.0f}"]


def loaders(assumed: Assumed) -> str:
    """A machine of eight GPUs that train one run: what their cores must bring."""
    machine = Machine(resnet50(), 8, assumed)
    demand = machine.batch / speed(machine).step[160]
    medians = {
        line["ratio_of"].partition(" / ")[0]: line["medians"]
        for line in parts.result("loader")["comparisons"]
        if line["what"] == "160 px, CPU" and line["ratio_of"].endswith("acdc ffcv")
    }
    times = {"acdc, FFCV": measured().loader * 1000} | {name: each[name] for name, each in medians.items()}
    rows = []
    for name, milliseconds in times.items():
        rates = [min(demand, 8 * cores / milliseconds * 1000) for cores in (4, 8, assumed.cores)]
        rows.append(
            [
                name,
                f"{milliseconds:.2f}",
                f"{demand * milliseconds / 1000 / 8:.1f}",
                *[f"{rate:,.0f}" for rate in rates],
            ]
        )
    head = ["loader", "ms an image", "cores a GPU needed", "images/s with 4", "with 8", f"with {assumed.cores}"]
    return table(head, rows)


TABLES: dict[str, Callable[[Assumed], str]] = {
    "assumed": assumed_parts,
    "measured": measured_parts,
    "two-processes": two_processes,
    "lost-process": lost_process,
    "exchange": exchange,
    "scaling": scaling,
    "sensitivity": sensitivity,
    "groups": groups,
    "goodput": goodput,
    "intervals": intervals,
    "changes": changes,
    "loaders": loaders,
}
