"""What `Loader.prepare` begins early is what the epoch gives, or is dropped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from drawn import drawn, same
from numpy.typing import NDArray

from acdc_cli.data.augment import PADDED, RANDOM_RESIZED, Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.resident import ResidentLoader
from acdc_cli.data.torch import TorchLoader
from acdc_cli.errors import DataError

CPU = torch.device("cpu")
LARGEST = 40
"""Side of the largest crops that fit."""


class Logged(BetonFile):
    """Makes a file for each image that is decoded, whichever process does it."""

    def __init__(self, path: Path, log: Path) -> None:
        super().__init__(path)
        self.log = log

    def __reduce__(self) -> tuple[type[BetonFile], tuple[Path, ...]]:
        return Logged, (self.path, self.log)

    def decode(self, index: int) -> NDArray[np.uint8]:
        (self.log / f"{index} {time.monotonic_ns()}").touch()
        return super().decode(index)


def plan(crop: int = PADDED) -> Plan:
    return Plan(4, [*range(24, 30), LARGEST + 1].__getitem__, Crop(crop), 0.5, seed=1, shuffle=True)


@pytest.fixture(params=["ffcv", "torch", "torch, no workers", "resident"])
def make(request: pytest.FixtureRequest, noise: Path) -> Iterator[Callable[[], Loader]]:
    made: list[Loader] = []

    def loader() -> Loader:
        file = BetonFile(noise)
        if request.param == "ffcv":
            made.append(request.getfixturevalue("ffcv").FFCVLoader(file, plan(), 2, CPU))
        elif request.param == "resident":
            made.append(ResidentLoader(file, plan(), CPU))
        else:
            made.append(TorchLoader(file, plan(), 2 if request.param == "torch" else 0, CPU))
        return made[-1]

    yield loader
    for each in made:
        each.close()


def test_prepared_epochs_are_the_same(make: Callable[[], Loader]) -> None:
    loader, plain = make(), make()
    for epoch in range(4):
        loader.prepare(epoch)
        assert same(drawn(loader, epoch), drawn(plain, epoch))
    # not prepared, and drawn anew after it was
    assert same(drawn(loader, 3), drawn(plain, 3))


@pytest.mark.parametrize("asked", [(2, 0), (1, 2)])
def test_an_epoch_that_was_not_prepared_drops_the_one_that_was(
    make: Callable[[], Loader], asked: tuple[int, int]
) -> None:
    loader, plain = make(), make()
    loader.prepare(1)
    assert same(drawn(loader, *asked), drawn(plain, *asked))
    assert same(drawn(loader, 1), drawn(plain, 1))


def test_preparing_another_epoch_drops_the_first(make: Callable[[], Loader]) -> None:
    loader, plain = make(), make()
    for epoch in range(6):
        loader.prepare(epoch)
    assert same(drawn(loader, 5), drawn(plain, 5))


def test_a_prepared_epoch_may_be_left_early(make: Callable[[], Loader]) -> None:
    loader, plain = make(), make()
    loader.prepare(1)
    with loader.epoch(1) as batches:
        next(batches)
    loader.prepare(2)
    loader.warm_up()
    assert same(drawn(loader, 2), drawn(plain, 2))


def test_what_fails_while_an_epoch_is_prepared_is_raised_where_it_is_drawn(make: Callable[[], Loader]) -> None:
    loader, plain = make(), make()
    loader.prepare(6)
    with pytest.raises(DataError, match=f"no crop of {LARGEST + 1} fits"):
        drawn(loader, 6)
    loader.prepare(1)
    assert same(drawn(loader, 1), drawn(plain, 1))


def test_closing_drops_what_was_prepared_and_leaves_neither_threads_nor_processes(make: Callable[[], Loader]) -> None:
    threads, processes = threading.active_count(), len(multiprocessing.active_children())
    loader = make()
    loader.prepare(0)
    loader.close()
    # multiprocessing's own threads, which feed the queues to the workers, end a moment after those
    _wait_until(lambda: threading.active_count() == threads)
    assert len(multiprocessing.active_children()) == processes


def test_workers_draw_what_is_prepared_before_the_epoch_is_asked_for_and_only_once(noise: Path, tmp_path: Path) -> None:
    loader = TorchLoader(Logged(noise, tmp_path), plan(), 1, CPU)
    loader.prepare(1)
    # two batches of four are asked of each worker ahead
    _wait_until(lambda: len(list(tmp_path.iterdir())) == 8)
    first = {int(path.name.split()[0]) for path in tmp_path.iterdir()}
    batches = drawn(loader, 1)
    assert {index for _, _, indices in batches[:2] for index in indices.tolist()} == first
    assert len(list(tmp_path.iterdir())) == 48
    loader.close()


def test_ffcv_draws_what_is_prepared_before_the_epoch_is_asked_for_and_only_once(
    ffcv: ModuleType, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ffcv.FFCVLoader(BetonFile(photographs), plan(RANDOM_RESIZED), 1, CPU)
    draw: Any = loader._draw_chunk
    counted: list[int] = []
    monkeypatch.setattr(loader, "_draw_chunk", lambda indices, *rest: (draw(indices, *rest), counted.extend(indices)))
    loader.prepare(1)
    _wait_until(lambda: len(counted) == 4 * ffcv._AHEAD)
    first = counted.copy()
    batches = drawn(loader, 1)
    assert [index for _, _, indices in batches for index in indices.tolist()][: len(first)] == first
    assert len(counted) == 40
    loader.close()


def test_ffcv_prepares_nothing_while_an_epoch_is_open(ffcv: ModuleType, noise: Path) -> None:
    loader = ffcv.FFCVLoader(BetonFile(noise), plan(), 1, CPU)
    with loader.epoch(0), pytest.raises(RuntimeError, match="still open"):
        loader.prepare(1)
    loader.close()


def test_a_worker_that_has_ended_is_noticed_where_the_epoch_is_drawn(noise: Path) -> None:
    others = {child.pid for child in multiprocessing.active_children()}
    loader = TorchLoader(BetonFile(noise), plan(), 1, CPU)
    loader.warm_up()
    (worker,) = {child.pid for child in multiprocessing.active_children()} - others
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    loader.prepare(0)
    with pytest.raises(DataError, match="Memory probably ran out"):
        drawn(loader, 0)
    loader.close()


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
