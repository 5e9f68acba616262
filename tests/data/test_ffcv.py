from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from acdc_cli.data import manifest
from acdc_cli.data.augment import PADDED, RANDOM_RESIZED, WHOLE, Crop
from acdc_cli.data.batches import Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError

CPU = torch.device("cpu")
BAD = 5
SHUFFLED = Plan(4, lambda epoch: 64, Crop(RANDOM_RESIZED), 0.5, seed=1, shuffle=True)
AS_STORED = Plan(4, lambda epoch: 96, Crop(WHOLE))


def _write(folder: Path, odd: bytes | None = None) -> Path:
    """Twelve JPEGs of 96 x 96 pixels, passed through unchanged; image BAD ends in `odd` instead of its end marker."""
    names = [f"{index:02}.jpg" for index in range(12)]
    rows, columns = np.mgrid[:96, :96]
    for index, name in enumerate(names):
        waves = [128 + 90 * np.sin(rows / (7 + channel) + index) * np.cos(columns / 9) for channel in range(3)]
        Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(folder / name, quality=95)
    if odd is not None:
        data = (folder / names[BAD]).read_bytes()
        (folder / names[BAD]).write_bytes(data[:-2] + odd)
    source = Source("waves", "train", names, np.arange(12) % 3, ("a", "b", "c"), "", folder)
    write(source, folder / "train.beton", Settings(original=True), workers=0)
    return folder / "train.beton"


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    return _write(tmp_path)


@pytest.fixture
def load(ffcv: ModuleType) -> Iterator[Any]:
    """load(path, plan): an FFCV loader with two threads."""
    made: list[Any] = []

    def make(path: Path, plan: Plan) -> Any:
        made.append(ffcv.FFCVLoader(BetonFile(path), plan, 2, CPU))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def _drain(loader: Any, epoch: int = 0) -> list[int]:
    with loader.epoch(epoch) as batches:
        return [index for batch in batches for index in batch.indices.tolist()]


def _damage(path: Path, index: int) -> None:
    """Puts an end marker into the middle of a JPEG: libjpeg goes on with grey, and only warns."""
    file = BetonFile(path)
    middle = int(file.starts[index] + file.lengths[index] // 2)
    del file
    with path.open("r+b") as stream:
        stream.seek(middle)
        stream.write(b"\xff\xd9")


def test_jpegs_are_decoded_to_the_pixels_that_pillow_sees(load: Any, waves: Path) -> None:
    with load(waves, AS_STORED).epoch(0) as batches:
        images = next(batches).inputs.permute(0, 2, 3, 1).float().numpy()
    for index, image in enumerate(images):
        expected = np.asarray(Image.open(waves.with_name(f"{index:02}.jpg")), np.float32)
        # FFCV takes libjpeg's fast DCT, which differs from the accurate one most where the quality is high
        assert np.abs(image - expected).mean() < 2
        assert np.abs(image - expected).max() < 16


def test_an_image_damaged_after_it_was_written_is_an_error_that_names_it_and_no_hang(load: Any, waves: Path) -> None:
    _damage(waves, BAD)
    loader = load(waves, SHUFFLED)
    for epoch in range(3):
        with pytest.raises(DataError, match=f"train.beton: image {BAD} is damaged.*acdc data check"):
            _drain(loader, epoch)


def test_batches_without_the_damaged_image_are_still_given(load: Any, waves: Path) -> None:
    _damage(waves, BAD)
    with load(waves, AS_STORED).epoch(0) as batches:
        assert next(batches).indices.tolist() == [0, 1, 2, 3]
        with pytest.raises(DataError, match=f"image {BAD} is damaged"):
            next(batches)


def test_an_image_that_was_odd_from_the_start_is_shown_as_every_decoder_shows_it(load: Any, tmp_path: Path) -> None:
    """Stray bytes in front of the end marker: a warning of libjpeg, on photographs that are otherwise whole."""
    path = _write(tmp_path, odd=b"\x12\x34\x56\xff\xd9")
    with load(path, AS_STORED).epoch(0, start_step=1) as batches:
        image = next(batches).inputs[BAD - 4].permute(1, 2, 0).numpy()
    assert np.array_equal(image, BetonFile(path).decode(BAD))


def test_odd_images_need_a_manifest_that_vouches_for_them(load: Any, tmp_path: Path) -> None:
    path = _write(tmp_path, odd=b"\x12\x34\x56\xff\xd9")
    manifest.path_of(path).unlink()
    with pytest.raises(DataError, match="has no manifest"):
        _drain(load(path, AS_STORED))


def test_whatever_fails_in_a_thread_is_raised_to_the_caller(
    load: Any, waves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("no room for an image")

    loader = load(waves, SHUFFLED)
    monkeypatch.setattr(loader, "_draw_chunk", fail)
    with pytest.raises(MemoryError, match="no room for an image"):
        _drain(loader)
    monkeypatch.undo()
    assert len(_drain(loader)) == 12


def test_leaving_epochs_early_leaks_neither_threads_nor_memory(load: Any, photographs: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    loader = load(photographs, Plan(10, lambda epoch: 224, Crop(RANDOM_RESIZED), 0.5, seed=0, shuffle=True))

    def leave(epoch: int) -> None:
        with loader.epoch(epoch) as batches:
            next(batches)

    for epoch in range(2):
        leave(epoch)
    threads, memory = threading.active_count(), resident()
    for epoch in range(15):
        leave(epoch)
    assert threading.active_count() == threads
    # one set of buffers, 4 batches of 10 images of 224 pixels, is 6 MB
    assert resident() - memory < 6e6


def test_a_left_epoch_does_not_disturb_the_next(load: Any, photographs: Path) -> None:
    plan = Plan(8, lambda epoch: 64, Crop(RANDOM_RESIZED), 0.5, seed=3, shuffle=True)
    loader, undisturbed = load(photographs, plan), load(photographs, plan)
    for epoch in range(10):
        with loader.epoch(epoch) as batches:
            next(batches)
        with loader.epoch(epoch) as batches, undisturbed.epoch(epoch) as others:
            for batch, other in zip(batches, others, strict=True):
                assert torch.equal(batch.inputs, other.inputs)


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(load: Any, waves: Path) -> None:
    loader = load(waves, Plan(1, lambda epoch: 64, Crop(RANDOM_RESIZED), 0.5, seed=3, shuffle=True))
    with loader.epoch(0) as batches:
        for batch in batches:
            images = batch.inputs.clone()
            # long enough to draw all that may be drawn ahead
            time.sleep(0.01)
            assert torch.equal(batch.inputs, images)


def test_when_an_epoch_is_left_nothing_is_drawn_any_more(
    load: Any, waves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(waves, SHUFFLED)
    draw, running = loader._draw_chunk, set()

    def slowly(indices: Any, out: Any, epoch: int) -> None:
        running.add(id(out))
        time.sleep(0.05)
        draw(indices, out, epoch)
        running.remove(id(out))

    monkeypatch.setattr(loader, "_draw_chunk", slowly)
    with loader.epoch(0) as batches:
        next(batches)
        assert running
    assert not running


def test_closing_ends_the_threads(ffcv: ModuleType, waves: Path) -> None:
    before = threading.active_count()
    loader = ffcv.FFCVLoader(BetonFile(waves), SHUFFLED, 2, CPU)
    _drain(loader)
    assert threading.active_count() > before
    loader.close()
    assert threading.active_count() == before


def test_two_epochs_of_a_loader_cannot_be_open_at_once(load: Any, waves: Path) -> None:
    loader = load(waves, SHUFFLED)
    with loader.epoch(0), pytest.raises(RuntimeError, match="still open"), loader.epoch(1):
        pass
    assert len(_drain(loader)) == 12


def test_two_loaders_run_at_once(load: Any, waves: Path, photographs: Path) -> None:
    with load(waves, AS_STORED).epoch(0) as first, load(photographs, SHUFFLED).epoch(0) as second:
        assert sum(len(one.indices) + len(other.indices) for one, other in zip(first, second, strict=False)) == 24


def test_a_second_loader_and_another_resolution_compile_nothing(ffcv: ModuleType, load: Any, waves: Path) -> None:
    load(waves, AS_STORED).warm_up()
    compiled = ffcv._draw.signatures.copy()
    loader = load(waves, replace(SHUFFLED, size=(32, 48, 64).__getitem__))
    loader.warm_up()
    for epoch, size in enumerate((32, 48, 64)):
        with loader.epoch(epoch) as batches:
            assert {batch.inputs.shape[2:] for batch in batches} == {(size, size)}
    assert ffcv._draw.signatures == compiled


def test_torchs_number_of_threads_is_left_alone(load: Any, waves: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    _drain(load(waves, SHUFFLED))
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


def test_padded_crops_larger_than_the_padded_image_are_an_error(load: Any, waves: Path) -> None:
    loader = load(waves, Plan(4, lambda epoch: 105, Crop(PADDED, padding=4), seed=0, shuffle=True))
    with pytest.raises(DataError, match=r"shorter side is 96 pixels.*no crop of 105 fits"):
        _drain(loader)


def test_the_thread_that_copies_takes_its_loaders_device(
    load: Any, waves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be the first device, whichever this process trains on."""
    taken: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: taken.append((threading.current_thread().name, device))
    )
    loader = load(waves, SHUFFLED)
    # page-locked memory needs a GPU; the rest is as on one, but for the copies
    loader._buffers(64)
    monkeypatch.setattr(loader._transfer, "pinned", True)
    monkeypatch.setattr(loader._transfer, "device", torch.device("cuda", 3))
    _drain(loader)
    assert taken == [("send_0", torch.device("cuda", 3))]


def test_boxes_are_cut_and_padded_as_numpy_does_it(ffcv: ModuleType) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    for top, left in ((0, 0), (2, 1), (-3, 2), (4, 3), (-1, -2)):
        out = np.full((4, 4, 3), 77, np.uint8)
        ffcv._place.py_func(image, top, left, 4, 4, out)
        assert np.array_equal(out, padded[top + 3 : top + 7, left + 3 : left + 7])


def test_python_draws_the_samples_that_compiled_code_draws(
    ffcv: ModuleType, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BetonFile(photographs)
    layout = (np.asarray(np.memmap(file.path, np.uint8, mode="r")), file.starts, file.lengths, file.modes, file.sizes)
    # image 3 is raw, image 4 a JPEG
    indices, times = np.array([3, 4, 3, 4]), np.array([0, 0, 1, 1])
    scratch = np.empty(3 * int(file.sizes.prod(axis=1).max()), np.uint8)

    def drawn(draw: Callable[..., int], flip: float) -> NDArray[np.uint8]:
        out = np.zeros((4, 16, 16, 3), np.uint8)
        assert draw(*layout, indices, Crop(RANDOM_RESIZED), flip, 1, times, scratch, out) == -1
        return out

    compiled = drawn(ffcv._draw, 1.0)
    for name in ("_place", "_mirror", "_show"):
        monkeypatch.setattr(ffcv, name, getattr(ffcv, name).py_func)
    assert np.array_equal(drawn(ffcv._draw.py_func, 1.0), compiled)
    assert np.array_equal(drawn(ffcv._draw.py_func, 0.0)[:, :, ::-1], compiled)


def test_drawing_stops_at_an_image_that_does_not_decode(ffcv: ModuleType, waves: Path) -> None:
    _damage(waves, BAD)
    file = BetonFile(waves)
    layout = (np.asarray(np.memmap(file.path, np.uint8, mode="r")), file.starts, file.lengths, file.modes, file.sizes)
    out, scratch = np.zeros((3, 96, 96, 3), np.uint8), np.empty(3 * 96 * 96, np.uint8)
    arguments = (np.array([0, BAD, 1]), Crop(WHOLE), 0.0, 0, np.zeros(3, np.int64), scratch, out)
    assert ffcv._draw.py_func(*layout, *arguments) == ffcv._draw(*layout, *arguments) == 1


def test_without_the_package_or_its_kernels_ffcv_cannot_be_imported(
    ffcv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="ffcv is not installed"):
        ffcv._kernels()
    empty = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: empty)
    with pytest.raises(ImportError, match="ffcv has no compiled kernels"):
        ffcv._kernels()
