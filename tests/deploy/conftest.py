"""A little run of a model that every format can hold, trained once a session by the real command."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from digits import image_folders
from torch.onnx._internal.exporter._registration import ONNXRegistry

from acdc_cli.jobs.export_run import Asked, Exported, export

# torch makes its table of ONNX functions anew at every export, which takes longer than many an export
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

ExportedAs = Callable[[str], Exported]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of static masks at 90 % on 200 digits; 100 more are there for the check."""
    from acdc_cli.jobs.training_run import train

    home = tmp_path_factory.mktemp("run")
    data = ("data.name=folder", f"data.path={image_folders(home)}", "data.loader=torch", "data.workers=0")
    model = ("model.name=timm:test_resnet", "epochs=1", "optim.schedule.warmup_epochs=0", "data.val_batch_size=50")
    return train("demo_static", [*model, *data], out=home / "small").path


@pytest.fixture(scope="session")
def exported_as(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedAs:
    """The run's sparse model in a format, in a new folder of its own: written once a session."""

    @cache
    def exported(name: str) -> Exported:
        return export(run, name, Asked(out=tmp_path_factory.mktemp(name) / "new" / "model"))

    return exported
