"""What readers rely on in the files of a run directory."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from acdc_cli.reading import Count, EpochNumber, Form

_ABSENT: Any = None
"""For keys that a file may lack, but whose value is never null."""
Share = Annotated[float, Field(ge=0, le=1)]


class _Results(Form):
    """Keys that a summary's ends of phases share with records; those that older versions lack have defaults."""

    top1: FiniteFloat | None = None
    train_loss: FiniteFloat | None = None
    train_cross_entropy: FiniteFloat | None = None
    val_loss: FiniteFloat | None = None
    entropy: FiniteFloat | None = None
    accuracy: FiniteFloat | None = None
    uncertainty: FiniteFloat | None = None
    sparsity: Share = 0.0
    sparsity_all: Share = 0.0
    layers: dict[str, Share] = {}


class Record(_Results):
    """A line of metrics.jsonl."""

    epoch: EpochNumber
    phase: str
    train_loss: FiniteFloat | None
    sparsity: Share
    mask_sparsity: Share
    seconds: FiniteFloat
    step: Count = 0
    lr: FiniteFloat = 0.0
    resolution: Count = 0
    train_flops: FiniteFloat = 0.0
    corrupted_true: FiniteFloat | None = None
    corrupted_given: FiniteFloat | None = None


class _Named(Form):
    name: str


class _Method(Form):
    method: str


class Resolved(Form):
    """resolved.yaml, which another version of acdc may have written."""

    epochs: Annotated[EpochNumber, Field(ge=1)]
    seed: int
    model: _Named
    data: _Named
    task: _Named
    sparsity: _Method
    track: dict[str, Any]


class _Data(Form):
    fingerprint: dict[str, Any]
    loader: str


class _End(Form):
    status: Literal["stopped", "failed"]
    why: str


class Entry(Form):
    """An entry of provenance.json."""

    time: str | None = None
    fork: dict[str, Any] | None = None
    end: _End | None = None
    """How this process ended before the run did; None: it finished the run, is training, or died."""


class Start(Form):
    """An entry of provenance.json, as far as a resumption compares it."""

    device: str
    precision: str
    threads: Count
    processes: Count = 1
    data: _Data


class PhaseEnd(_Results):
    layers: dict[str, Share]


class _Flops(Form):
    inference_flops: Count
    train_flops: Count


class _Cost(Form):
    nominal: _Flops | None = None
    measured: _Flops


class Summary(Form):
    """summary.json."""

    seconds: FiniteFloat = 0.0
    sparse: PhaseEnd = _ABSENT
    dense: PhaseEnd = _ABSENT
    cost: _Cost = _ABSENT


class _Speed(Form):
    variant: str
    engine: str
    batch: Count
    threads: Count | None
    latency_ms: FiniteFloat
    file_bytes: Count | None
    speedup_over_own_dense: FiniteFloat | None


class _Speeds(Form):
    rows: list[_Speed]


class BenchRecord(Form):
    """bench.json."""

    results: _Speeds
