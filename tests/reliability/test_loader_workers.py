"""A process that loads images ends with the one it works for, and leaves the signals that end a run to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killing import WORKERS_END_WITHIN, alive_after
from PIL import Image

LOAD = """
import multiprocessing
import sys
from pathlib import Path

import torch

from acdc_cli.data.augment import WHOLE, Crop
from acdc_cli.data.batches import Plan
from acdc_cli.data.image_folder import folder_source
from acdc_cli.data.torch import FolderImages, TorchLoader

if __name__ == "__main__":
    images = FolderImages(folder_source("folder", "train", Path.cwd()))
    plan = Plan(batch_size=1, size=lambda epoch: 8, crop=Crop(WHOLE))
    with TorchLoader(images, plan, 1, torch.device("cpu")).epoch(0) as batches:
        for _ in batches:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            input()
"""


@pytest.mark.slow
def test_a_loaders_process_outlives_ctrl_c_but_not_the_one_it_works_for(tmp_path: Path) -> None:
    (tmp_path / "train" / "class").mkdir(parents=True)
    for index in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "class" / f"{index}.png")
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, script], cwd=tmp_path, env=environment, start_new_session=True, **pipes
    ) as process:
        assert process.stdin
        assert process.stdout
        worker = process.stdout.readline()
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(int(worker), number)
        # more than it has drawn ahead
        for _ in range(8):
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == worker
        process.kill()
    assert not alive_after(WORKERS_END_WITHIN, process.pid)
