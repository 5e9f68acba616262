"""What methods ask of a run while it trains."""

from __future__ import annotations

from pathlib import Path

import torch
from mini_trainer import FewImages, MiniRun
from torch import Tensor

from acdc_cli.schedule.time import Moment
from acdc_cli.training.method_services import MethodServices


def test_forward_passes_show_the_first_images_of_an_epoch_and_no_more(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 2, {"method": "dense"})
    shown: list[tuple[Tensor, bool]] = []
    run.model[0].register_forward_pre_hook(lambda module, given: shown.append((given[0], run.model.training)))
    run.model.train()
    # batches of 4
    assert len(list(MethodServices(run.parts).forward_passes(Moment(1, 3, 2, 3), 6))) == 2
    assert [(len(images), training) for images, training in shown] == [(4, False), (2, False)]
    assert run.model.training
    images = FewImages()
    wanted = images.images[images.order(1)[:6]].float() / 255
    assert torch.allclose(torch.cat([each for each, _ in shown]), (wanted - 0.5) / 0.5, atol=1e-6)
