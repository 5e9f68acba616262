"""`acdc demo`: the whole way from data to a figure, in two minutes on two cores."""

from __future__ import annotations

from pathlib import Path

from acdc_cli import console
from acdc_cli.data.inventory import write_demo
from acdc_cli.jobs.analysis_run import analyze
from acdc_cli.jobs.checkpoints import Which
from acdc_cli.jobs.evaluation import Options, evaluate_checkpoint
from acdc_cli.jobs.training_run import train
from acdc_cli.runs.run_dir import RunDir

_MODELS: tuple[Which, ...] = ("sparse", "dense")


def demo(out: Path) -> None:
    """Write the demo set, train, evaluate both models, draw the run; finished parts are skipped."""
    write_demo()
    run = RunDir(out)
    if run.finished:
        console.say(f"{out} is trained already; remove it to train again")
    else:
        train("demo", out=out, resume=run.resolved.exists())
    columns = ("model", "top-1", "loss", "entropy", "sparsity", "of all weights", "images")
    rows = []
    for which in _MODELS:
        metrics = evaluate_checkpoint(out, Options(which=which))
        shares = [f"{metrics[key]:.2%}" for key in ("sparsity", "sparsity_all")]
        numbers = [f"{metrics['top1']:.2%}", f"{metrics['loss']:.4f}", f"{metrics['entropy']:.4f}"]
        rows.append((which, *numbers, *shares, str(int(metrics["samples"]))))
    console.out("")
    console.table(columns, rows)
    curves = analyze("curves", [out])
    console.out("")
    console.out(f"figure  {curves.figure}")
    console.out(f"models  {run.model_file('sparse')}  {run.model_file('dense')}")
    console.out(f"next    acdc export {out} --format onnx · acdc recipes list · acdc train demo_gmp")
