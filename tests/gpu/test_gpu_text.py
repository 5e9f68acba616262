"""A language model on the device: a run, its memory in a compiled graph, steps without a host that waits."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_device
import pytest
import torch
from command import run_acdc
from gpu_device import DEVICE, NAME, host_may_wait, host_never_waits

from acdc_cli.data.inputs.text import preparation
from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.data.segments import Segments, equal_rows
from acdc_cli.models.transformer_xl import TransformerXL
from acdc_cli.recipe.blocks.text import TextBlock
from acdc_cli.tasks.causal_lm import Task
from acdc_cli.training.compiling import Compiled
from acdc_cli.training.evaluate import forward_of

pytestmark = gpu_device.marks

VOCABULARY, ROWS, LENGTH = 40, 4, 8
BLOCK = TextBlock(name="text", batch_size=ROWS, length=LENGTH)


def model(cutoffs: str = "") -> TransformerXL:
    torch.manual_seed(0)
    options = {"layers": 2, "d_model": 16, "heads": 2, "inner": 32, "memory": 12, "dropout": 0.0, "cutoffs": cutoffs}
    return TransformerXL(VOCABULARY, **options).to(DEVICE)


def segments() -> Segments:
    tokens = torch.randint(VOCABULARY, (600,), generator=torch.Generator().manual_seed(1)).numpy().astype("<u2")
    return Segments(tokens, "text", VOCABULARY, LENGTH, (equal_rows(600, ROWS),), DEVICE, whole=True)


def losses(network: TransformerXL, compiled: bool) -> list[float]:
    forward = forward_of(
        network, preparation(TextBlock(name="t", batch_size=ROWS, length=LENGTH), DEVICE, torch.strided)
    )
    shown = Compiled(forward, network, "default") if compiled else forward
    values = []
    with segments().epoch(0) as batches:
        for batch, _ in zip(batches, range(5), strict=False):
            loss = Task().loss(shown(batch.inputs), batch.targets)
            loss.backward()
            values.append(loss.item())
    return values


# what the compiler has to say about this device and this Python
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("cutoffs", ["", "10,20"])
def test_a_compiled_model_remembers_as_it_does_without_compiling(cutoffs: str) -> None:
    assert losses(model(cutoffs), compiled=True) == pytest.approx(losses(model(cutoffs), compiled=False), rel=1e-4)


def test_a_step_makes_no_host_wait() -> None:
    network, task = model(), Task()
    forward = forward_of(network, preparation(BLOCK, DEVICE, torch.contiguous_format))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    before, taken = [weight.detach().clone() for weight in network.parameters()], 0
    with segments().epoch(0) as batches:
        for number, batch in zip(range(5), batches, strict=False):
            # the first steps allocate
            with host_never_waits() if number > 2 else host_may_wait():
                task.loss(forward(batch.inputs), batch.targets).backward()
                optimizer.step()
                optimizer.zero_grad()
            taken += 1
    # none of the five steps raised, and each was one
    assert taken == 5
    assert not any(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_a_run_trains_there_and_resumes_there(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(200 * "the cat saw the dog and then ran\n")
    (tmp_path / "valid.txt").write_text(20 * "the cat saw the dog and then ran\n")
    write_set("text", WriteOptions(source=tmp_path, out=tmp_path / "set"))
    out = tmp_path / "run"
    settings = (
        f"data.path={tmp_path / 'set'}", "data.batch_size=4", "data.length=8", "data.val_rows=2", f"device={NAME}",
        "sparsity.last_sparse_epochs=1", "epochs=6", "checkpoint.keep_states=[2]",
        "model.options={layers: 2, d_model: 16, heads: 2, inner: 32, memory: 8}",
    )  # fmt: skip
    arguments = [part for each in settings for part in ("--set", each)]
    assert run_acdc("train", "language/kjv_90", "--out", out, *arguments).exit_code == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["perplexity"] < records[0]["perplexity"]
    assert records[-1]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    fork = run_acdc("train", "language/kjv_90", "--fork", f"{out}@2", "--out", tmp_path / "fork", *arguments)
    assert fork.exit_code == 0, fork.output
