"""`acdc init`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc_cli.cli import completion


class Gpu(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Data = Annotated[
    Path | None, typer.Option(help="Folder with train/CLASS/ and val/CLASS/, or a written set.", show_default=False)
]
Model = Annotated[str | None, typer.Option(help="Architecture.", show_default=False)]
Method = Annotated[
    str | None, typer.Option(help="Method of pruning.", show_default=False, autocompletion=completion.methods)
]
Sparsity = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of the weights that is zero at the end.", show_default=False)
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training set.", show_default=False)]
Device = Annotated[Gpu | None, typer.Option("--gpu", help="Where to train.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="The recipe's file.", show_default="NAME.yaml")]


def init(
    data: Data = None,
    model: Model = None,
    method: Method = None,
    sparsity: Sparsity = None,
    epochs: Epochs = None,
    gpu: Device = None,
    out: Out = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take what is proposed, without questions.")] = False,
) -> None:
    """Write a recipe for your own images: measures them, and asks six questions or takes the answers as options."""
    from acdc_cli import console
    from acdc_cli.data.proposal import remarks, rows
    from acdc_cli.jobs import starting

    def ask(question: str, given: Any, proposed: Any, kind: Any = str) -> Any:
        if given is not None or (yes and proposed is not None):
            return proposed if given is None else given
        try:
            return typer.prompt(question, default=proposed, type=kind, err=True)
        except typer.Abort:
            raise typer.BadParameter("no answer; name it as an option, or take what is proposed with --yes") from None

    folder = Path(ask("data: folder with train/CLASS/ and val/CLASS/", data, None))
    facts = starting.measured(folder)
    console.table(("", *facts.splits), rows(facts))
    for remark in remarks(facts):
        console.warn(remark)
    name = ask("model", model, starting.proposed_model(facts))
    chosen = ask("method (acdc recipes list has examples of each)", method, starting.METHOD)
    target = ask("sparsity", sparsity, starting.TARGET, float) if starting.has_target(chosen) else None
    length = ask("epochs", epochs, starting.EPOCHS, int)
    device = ask(f"GPU ({', '.join(starting.devices())})", gpu, Gpu.AUTO, Gpu)
    answers = starting.Answers(folder, name, chosen, target, length, device.value)
    path = out or Path(f"{starting.named(answers)}.yaml")
    for warning in starting.write_recipe(answers, facts, path):
        console.warn(warning)
    console.out(str(path))
    console.say(f"next: acdc plan {path} · acdc train {path}")
