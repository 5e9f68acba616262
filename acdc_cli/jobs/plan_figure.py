"""One figure of a run before it starts: sparsity, learning rate and resolution over epochs (P1, Figure 1)."""

from __future__ import annotations

from pathlib import Path

from acdc_cli.analysis.curves import shade, steps
from acdc_cli.errors import RunError
from acdc_cli.jobs.run_plan import Plan


def draw(plan: Plan, file: Path) -> None:
    """Raises RunError if matplotlib does not support the file's extension, or if its folder does not exist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    formats = sorted(FigureCanvasAgg.get_supported_filetypes())
    if file.suffix.removeprefix(".") not in formats:
        raise RunError(f"--plot: {file} must end in one of {', '.join(formats)}")
    epochs = plan.as_dict()["epochs"]
    figure = Figure(figsize=(7, 6), layout="constrained")
    sparsity, rate, resolution = panels = figure.subplots(3, sharex=True)
    for panel in panels:
        shade(panel, epochs, named=panel is sparsity)
        panel.grid(axis="y", alpha=0.3)
    if all(epoch["sparsity"] is not None for epoch in epochs):
        steps(sparsity, epochs, "sparsity_all", label="all conv and linear weights", color="tab:orange")
        steps(sparsity, epochs, "sparsity", label="pruned layers", color="tab:blue")
    else:
        sparsity.annotate("learned", (0.5, 0.5), xycoords="axes fraction", ha="center")
    ends = [(epoch["epoch"] + side, epoch[key]) for epoch in epochs for side, key in ((0, "lr_start"), (1, "lr_end"))]
    rate.plot(*zip(*ends, strict=True), color="tab:blue")
    steps(resolution, epochs, "resolution", scale=1, color="tab:blue")
    sparsity.set(ylabel="zero weights (%)", ylim=(-3, 103))
    sparsity.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False)
    rate.set(ylabel="learning rate", ylim=(0, None))
    largest = max(epoch["resolution"] for epoch in epochs)
    resolution.set(ylabel=f"{plan.samples.size_key} ({plan.samples.size_unit})", ylim=(0, 1.1 * largest))
    resolution.set(xlabel="epochs trained", xlim=(0, len(epochs)))
    figure.suptitle(plan.name)
    try:
        figure.savefig(file, dpi=120)
    except OSError as e:
        raise RunError(f"--plot: {file} cannot be written: {e.strerror}") from e
