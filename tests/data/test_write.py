import dataclasses
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acdc_cli import files
from acdc_cli.data import manifest
from acdc_cli.data import write_beton as writing
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.manifest import BadImage, check_full, check_quick
from acdc_cli.data.torch import FolderImages
from acdc_cli.data.write_beton import Encoded, Settings, Source, encode, encode_all, write
from acdc_cli.errors import DataError

RAW = Settings(raw_share=1.0)
JPEG = Settings()
ORIGINAL = Settings(original=True)


def _picture(seed: int, height: int = 60, width: int = 80) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(rows * 0.1 * (c + 1) + seed) * np.cos(columns * 0.07) for c in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def _bytes(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


def _folder(root: Path, files: dict[str, bytes]) -> Source:
    for name, data in files.items():
        (root / name).write_bytes(data)
    labels = np.arange(len(files)) % 2
    return Source("pets", "train", list(files), labels, ("cat", "dog"), f"{sorted(files)}", root)


def _pictures(count: int) -> dict[str, bytes]:
    return {f"{index:03}.jpg": _bytes(_picture(index)) for index in range(count)}


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def _one(tmp_path: Path, data: bytes, settings: Settings, index: int = 0) -> Encoded:
    (tmp_path / "image").write_bytes(data)
    return encode("image", 3, index, tmp_path, settings)


def _decoded(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# What becomes of an image


def _exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _bytes(_picture(0), exif=exif)


def _with_alpha(mode: str) -> Image.Image:
    image = _picture(0).convert(mode)
    image.putalpha(100)
    return image


SOURCES = {
    "RGB JPEG": _bytes(_picture(0)),
    "progressive JPEG": _bytes(_picture(0), progressive=True),
    "grey JPEG": _bytes(_picture(0).convert("L")),
    "CMYK JPEG": _bytes(_picture(0).convert("CMYK")),
    "rotated by EXIF": _exif_rotated(),
    "PNG": _bytes(_picture(0), "PNG"),
    "PNG with alpha": _bytes(_with_alpha("RGB"), "PNG"),
    "grey PNG with alpha": _bytes(_with_alpha("L"), "PNG"),
    "palette": _bytes(_picture(0).convert("P"), "PNG"),
    "palette with a transparent colour": _bytes(_picture(0).convert("P"), "PNG", transparency=b"\0\x80\xff"),
    "bilevel": _bytes(_picture(0).convert("1"), "PNG"),
    "WebP": _bytes(_picture(0), "WEBP"),
    "BMP": _bytes(_picture(0), "BMP"),
    "CMYK TIFF": _bytes(_picture(0).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_image_becomes_rgb_as_torchvision_reads_it(tmp_path: Path, kind: str) -> None:
    expected = _decoded(SOURCES[kind])
    sample = _one(tmp_path, SOURCES[kind], RAW).sample
    assert (sample.label, sample.mode, sample.height, sample.width) == (3, "raw", 60, 80)
    assert sample.data == expected.tobytes()


PASSED_THROUGH = ("RGB JPEG", "progressive JPEG", "grey JPEG", "rotated by EXIF")


@pytest.mark.parametrize("kind", PASSED_THROUGH)
def test_a_jpeg_passes_through_unchanged(tmp_path: Path, kind: str) -> None:
    encoded = _one(tmp_path, SOURCES[kind], ORIGINAL)
    assert encoded.sample.data == SOURCES[kind]
    assert (encoded.sample.mode, encoded.sample.height, encoded.sample.width) == ("jpg", 60, 80)
    assert not encoded.reencoded


@pytest.mark.parametrize("kind", sorted(set(SOURCES) - set(PASSED_THROUGH)))
def test_what_cannot_pass_through_becomes_a_good_jpeg_and_is_counted(tmp_path: Path, kind: str) -> None:
    encoded = _one(tmp_path, SOURCES[kind], ORIGINAL)
    assert encoded.reencoded
    assert encoded.sample.mode == "jpg"
    difference = np.abs(_decoded(encoded.sample.data).astype(int) - _decoded(SOURCES[kind]))
    assert difference.mean() < 2


@pytest.mark.parametrize("kind", PASSED_THROUGH)
@pytest.mark.parametrize("max_side", [None, 80])
def test_a_jpeg_that_fits_keeps_its_bytes(tmp_path: Path, kind: str, max_side: int | None) -> None:
    encoded = _one(tmp_path, SOURCES[kind], Settings(quality=50, max_side=max_side))
    assert (encoded.sample.data, encoded.reencoded) == (SOURCES[kind], False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("RGB JPEG", Settings(max_side=79)),
        ("RGB JPEG", Settings(reencode=True)),
        ("CMYK JPEG", Settings()),
        ("PNG", Settings()),
    ],
)
def test_what_does_not_fit_is_encoded_and_counted(tmp_path: Path, kind: str, settings: Settings) -> None:
    encoded = _one(tmp_path, SOURCES[kind], settings)
    assert (encoded.sample.mode, encoded.reencoded) == ("jpg", True)
    assert encoded.sample.data != SOURCES[kind]


def test_pixels_are_not_counted_as_encoded(tmp_path: Path) -> None:
    encoded = _one(tmp_path, SOURCES["RGB JPEG"], Settings(raw_share=1.0))
    assert (encoded.sample.mode, encoded.reencoded) == ("raw", False)


def test_a_manifest_without_the_setting_is_of_jpegs_encoded_anew(tmp_path: Path) -> None:
    source = _folder(tmp_path, {"a": SOURCES["RGB JPEG"]})
    for name, settings in (("jpeg", Settings(reencode=True)), ("raw", RAW), ("original", ORIGINAL)):
        beton = tmp_path / f"{name}.beton"
        made = write(source, beton, settings, workers=0)
        del made.settings["reencode"]
        manifest.write(beton, made)
        assert write(source, beton, settings, workers=0) == made, "it is already written"
    with pytest.raises(DataError, match=r"other settings: .*reencode True, not .*reencode False"):
        write(source, tmp_path / "jpeg.beton", Settings(), workers=0)


def test_an_array_in_original_is_stored_as_its_pixels() -> None:
    pixels = np.asarray(_picture(0))
    encoded = encode(pixels, 0, 0, Path(), ORIGINAL)
    assert (encoded.sample.mode, encoded.sample.data, encoded.reencoded) == ("raw", pixels.tobytes(), False)


def test_larger_images_shrink_to_the_mean_of_what_a_pixel_covers() -> None:
    blocks = np.zeros((4, 8, 3), np.uint8)
    blocks[:2, :2] = 10
    blocks[0, 0] = 50
    sample = encode(blocks, 0, 0, Path(), Settings(max_side=4, raw_share=1.0)).sample
    assert (sample.height, sample.width) == (2, 4)
    # (50 + 10 + 10 + 10) / 4 in the first pixel
    assert list(sample.data) == [20, 20, 20] + [0] * 21


@pytest.mark.parametrize(
    ("height", "width", "max_side", "expected"),
    [(60, 80, 80, (60, 80)), (60, 80, 500, (60, 80)), (60, 80, 40, (30, 40)), (80, 3, 8, (8, 1)), (1, 90, 10, (1, 10))],
)
def test_the_longest_side_only_ever_shrinks_an_image(
    height: int, width: int, max_side: int, expected: tuple[int, int]
) -> None:
    sample = encode(np.zeros((height, width, 3), np.uint8), 0, 0, Path(), Settings(max_side=max_side)).sample
    assert (sample.height, sample.width) == expected


def test_the_share_of_raw_images_is_exact_and_spread() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    modes = [encode(pixels, 0, index, Path(), Settings(raw_share=0.25)).sample.mode for index in range(12)]
    assert modes == ["jpg", "jpg", "jpg", "raw"] * 3


def test_quality_is_that_of_the_jpeg() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    sizes = [len(encode(pixels, 0, 0, Path(), Settings(quality=quality)).sample.data) for quality in (10, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 3 < sizes[2]


@pytest.mark.parametrize(
    "settings", [{"quality": 0}, {"quality": 101}, {"raw_share": 1.1}, {"max_side": 0}, {"max_side": 70000}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(DataError, match="expected"):
        Settings(**settings)


# Images that cannot be read

BROKEN = {
    "text.jpg": (b"<html>404 Not Found</html>", "no JPEG, PNG"),
    "empty.jpg": (b"", "the file is empty"),
    "truncated.jpg": (_bytes(_picture(0))[:-300], "truncated"),
    "without-its-end.jpg": (_bytes(_picture(0))[:-1], "truncated"),
    "truncated.png": (_bytes(_picture(0), "PNG")[:-300], "truncated"),
    "sixteen-bit.png": (_bytes(Image.fromarray(np.full((5, 5), 60000, np.uint16)), "PNG"), "not 8 bits per channel"),
    "long.png": (_bytes(Image.new("RGB", (65536, 1)), "PNG"), "longest possible side"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("settings", [JPEG, ORIGINAL])
def test_every_unreadable_image_is_listed_with_its_reason(tmp_path: Path, workers: int, settings: Settings) -> None:
    files = {"good.jpg": SOURCES["RGB JPEG"]} | {name: data for name, (data, _) in BROKEN.items()}
    source = _folder(tmp_path, files)
    (tmp_path / "empty.jpg").unlink()
    (tmp_path / "empty.jpg").symlink_to(tmp_path / "nowhere")

    good, *bad = encode_all(source, settings, workers)

    assert isinstance(good, Encoded)
    assert [image.path for image in bad] == list(BROKEN)
    for image, (_, reason) in zip(bad, BROKEN.values(), strict=True):
        assert ("No such file" if image.path == "empty.jpg" else reason) in image.reason


@pytest.mark.parametrize("name", BROKEN)
def test_the_loader_of_a_folder_refuses_what_writing_refuses_for_the_same_reason(tmp_path: Path, name: str) -> None:
    source = _folder(tmp_path, {name: BROKEN[name][0]})
    (bad,) = encode_all(source, JPEG, 0)
    assert isinstance(bad, BadImage)
    with pytest.raises(DataError, match=re.escape(f"{name}: the image cannot be read ({bad.reason})")):
        FolderImages(source).decode(0)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_loader_of_a_folder_reads_the_pixels_that_writing_stores(tmp_path: Path, kind: str) -> None:
    source = _folder(tmp_path, {"image.png": SOURCES[kind]})
    (stored,) = encode_all(source, RAW, 0)
    assert isinstance(stored, Encoded)
    assert stored.sample.data == FolderImages(source).decode(0).tobytes()


def test_one_bad_image_stops_the_write_and_leaves_nothing_but_the_list(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(20) | {"bad.jpg": b"text", "worse.jpg": b""})
    out = tmp_path / "out"
    with pytest.raises(DataError) as refusal:
        write(source, out / "train.beton", JPEG, workers=1)
    message = str(refusal.value)
    assert message.startswith("2 of 22 images cannot be read, ")
    assert "--skip-bad" in message
    assert "bad.jpg: no JPEG" in message
    assert "worse.jpg: the file is empty" in message
    assert _files(out) == {"train.beton.bad.txt"}
    assert (out / "train.beton.bad.txt").read_text().splitlines()[1] == "worse.jpg\tthe file is empty"


def test_a_good_write_removes_the_list_of_bad_images(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(3) | {"bad.jpg": b"text"})
    write(source, tmp_path / "train.beton", JPEG, workers=0, skip_bad=True)
    assert (tmp_path / "train.beton.bad.txt").exists()
    (tmp_path / "bad.jpg").write_bytes(SOURCES["RGB JPEG"])
    write(source, tmp_path / "train.beton", JPEG, workers=0, force=True)
    assert not (tmp_path / "train.beton.bad.txt").exists()


def test_of_many_bad_images_the_first_are_named_and_all_are_in_the_list(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(1) | {f"bad{index:02}.jpg": b"text" for index in range(25)})
    with pytest.raises(DataError, match=r"(?s)25 of 26 images.*bad09\.jpg.*… and 15 more") as refusal:
        write(source, tmp_path / "train.beton", JPEG, workers=0)
    assert "bad10.jpg" not in str(refusal.value)
    assert len((tmp_path / "train.beton.bad.txt").read_text().splitlines()) == 25


def test_skip_bad_writes_the_others_and_the_manifest_names_the_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _pictures(4)
    source = _folder(tmp_path, {"000.jpg": files["000.jpg"], "bad.jpg": b"text", "002.jpg": files["002.jpg"]})
    beton = tmp_path / "train.beton"

    made = write(source, beton, ORIGINAL, workers=0, skip_bad=True)

    file = BetonFile(beton)
    assert [bytes(file.image_bytes(index)) for index in range(2)] == [files["000.jpg"], files["002.jpg"]]
    assert file.labels.tolist() == [0, 0]
    assert [(bad.path, bad.reason.partition(",")[0]) for bad in made.bad] == [("bad.jpg", "no JPEG")]
    assert (made.samples, made.label_histogram) == (2, (2, 0))
    assert check_full(beton) == made
    assert "1 of 3 images cannot be read and are left out" in " ".join(capsys.readouterr().err.split())


def test_skip_bad_does_not_write_a_set_without_images(tmp_path: Path) -> None:
    source = _folder(tmp_path, {"a.jpg": b"text", "b.jpg": b""})
    with pytest.raises(DataError, match="2 of 2 images cannot be read, ") as refusal:
        write(source, tmp_path / "train.beton", JPEG, workers=0, skip_bad=True)
    assert "--skip-bad" not in str(refusal.value)


# The file


def test_the_manifest_counts_what_was_encoded_anew(tmp_path: Path) -> None:
    source = _folder(tmp_path, {"a": SOURCES["RGB JPEG"], "b": SOURCES["PNG"], "c": SOURCES["CMYK JPEG"]})
    made = write(source, tmp_path / "val.beton", ORIGINAL, workers=0)
    assert made.reencoded == 2
    assert check_full(tmp_path / "val.beton") == made


def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(60))
    settings = Settings(max_side=40, raw_share=0.3)
    for workers in (0, 2):
        write(source, tmp_path / f"{workers}.beton", settings, workers=workers)
    assert (tmp_path / "0.beton").read_bytes() == (tmp_path / "2.beton").read_bytes()


def test_only_a_few_images_are_in_flight(tmp_path: Path) -> None:
    class Watched(list[str]):
        furthest = 0

        def __getitem__(self, index: int) -> str:
            self.furthest = max(self.furthest, index)
            return super().__getitem__(index)

    source = _folder(tmp_path, {"a.jpg": SOURCES["RGB JPEG"]})
    watched = Watched(["a.jpg"] * 1000)
    source = dataclasses.replace(source, images=watched, labels=np.zeros(1000, np.int64))
    results = encode_all(source, ORIGINAL, workers=1)
    for _ in range(100):
        next(results)
    assert watched.furthest < 100 + 8 * 5
    results.close()


def test_a_second_write_of_the_same_does_nothing(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(4))
    beton = tmp_path / "train.beton"
    first = write(source, beton, JPEG, workers=0)
    times = [path.stat().st_mtime_ns for path in (beton, manifest.path_of(beton))]
    assert write(source, beton, JPEG, workers=0) == first
    assert [path.stat().st_mtime_ns for path in (beton, manifest.path_of(beton))] == times


def test_other_settings_or_images_replace_a_written_file_only_by_force(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(4))
    beton = tmp_path / "train.beton"
    write(source, beton, JPEG, workers=0)
    with pytest.raises(DataError, match=r"other settings: quality 90.* not quality 80.*--force"):
        write(source, beton, Settings(quality=80), workers=0)
    other = dataclasses.replace(source, fingerprint="another")
    with pytest.raises(DataError, match=r"from other images.*--force"):
        write(other, beton, JPEG, workers=0)
    write(other, beton, Settings(quality=80), workers=0, force=True)
    assert check_full(beton).settings["quality"] == 80


def test_a_damaged_or_foreign_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(4))
    beton = tmp_path / "train.beton"
    beton.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"no manifest.*--force"):
        write(source, beton, JPEG, workers=0)
    assert beton.read_bytes() == b"mine"
    write(source, beton, JPEG, workers=0, force=True)
    beton.write_bytes(beton.read_bytes()[:-1024])
    with pytest.raises(DataError, match=r"its manifest says.*--force"):
        write(source, beton, JPEG, workers=0)


def test_only_one_process_writes_a_file(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(2))
    with (
        files.locked(tmp_path / "train.beton.lock", AssertionError("free")),
        pytest.raises(DataError, match="another process is writing it now"),
    ):
        write(source, tmp_path / "train.beton", JPEG, workers=0)
    write(source, tmp_path / "train.beton", JPEG, workers=0)


@pytest.mark.parametrize("name", ["train.beton.lock", "train.beton.partial"])
def test_writing_follows_no_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("of somebody else")
    source = _folder(tmp_path, _pictures(2))
    (tmp_path / name).symlink_to(tmp_path / "precious")
    if name.endswith("lock"):
        with pytest.raises(DataError, match="a symbolic link stands in its place"):
            write(source, tmp_path / "train.beton", JPEG, workers=0)
    else:
        write(source, tmp_path / "train.beton", JPEG, workers=0)
    assert (tmp_path / "precious").read_text() == "of somebody else"


def test_a_folder_that_cannot_be_written_is_an_error_with_its_cause(tmp_path: Path) -> None:
    source = _folder(tmp_path, _pictures(1))
    with pytest.raises(DataError, match=r"cannot be written: (Not a directory|File exists)"):
        write(source, tmp_path / "000.jpg" / "train.beton", JPEG, workers=0)


def test_a_disk_that_returns_other_bytes_is_found_before_the_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(path: Path, samples: Iterator[writing.Sample], capacity: int) -> int:
        count = writing_beton(path, samples, capacity)
        start = int(BetonFile(path).starts[2]) + 100
        data = bytearray(path.read_bytes())
        data[start] ^= 1
        path.write_bytes(data)
        return count

    writing_beton = writing.write_beton
    monkeypatch.setattr(writing, "write_beton", faulty)
    with pytest.raises(DataError, match="check the disk"):
        write(_folder(tmp_path, _pictures(4)), tmp_path / "train.beton", RAW, workers=0)
    assert not list(tmp_path.glob("train.beton*[!k]"))


def test_ctrl_c_leaves_the_good_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _folder(tmp_path, _pictures(10))
    beton = tmp_path / "train.beton"
    write(source, beton, JPEG, workers=0)
    good = beton.read_bytes()
    before = _files(tmp_path)

    def interrupted(*arguments: object) -> Iterator[Encoded]:
        yield encode("000.jpg", 0, 0, tmp_path, JPEG)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "encode_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(source, beton, RAW, workers=0, force=True)
    assert beton.read_bytes() == good
    assert _files(tmp_path) == before


def test_ctrl_c_after_the_file_has_its_name_leaves_the_new_file_and_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, beton, replace = _folder(tmp_path, _pictures(2)), tmp_path / "train.beton", os.replace
    write(source, beton, JPEG, workers=0)

    def interrupted(origin: Path, destination: Path) -> None:
        replace(origin, destination)
        if destination == beton:
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(source, beton, RAW, workers=0, force=True)
    assert check_quick(beton).settings["raw_share"] == 1


def test_pixels_that_are_too_many_for_the_format_are_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LARGEST_IMAGE", 3 * 60 * 80 - 1)
    with pytest.raises(DataError, match="14400 bytes of pixels are too many for a raw image; limit its longest side"):
        write(_folder(tmp_path, _pictures(1)), tmp_path / "train.beton", RAW, workers=0)


def test_a_killed_worker_ends_the_write_with_an_error(tmp_path: Path) -> None:
    source = _folder(tmp_path, {"a.jpg": SOURCES["RGB JPEG"]})
    # so many that the other worker cannot finish them before the pool looks for its dead
    source = dataclasses.replace(source, images=["a.jpg"] * 200_000, labels=np.zeros(200_000, np.int64))
    results = encode_all(source, JPEG, workers=2)
    next(results)
    victim = max(multiprocessing.active_children(), key=lambda child: child.pid or 0)  # the newest: this pool's
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed"):
        deque(results, maxlen=0)


ENDLESS = """
import sys
from pathlib import Path
import numpy as np
from acdc_cli.data.write_beton import Settings, Source, write

if __name__ == "__main__":
    root, count = Path(sys.argv[1]), int(sys.argv[2])
    source = Source("pets", "train", ["000.jpg"] * count, np.zeros(count, np.int64), ("cat",), "same", root)
    write(source, root / "train.beton", Settings(), workers=2)
"""


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def _wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_no_file_no_workers_and_no_lock(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "000.jpg").write_bytes(SOURCES["RGB JPEG"])
    (tmp_path / "program.py").write_text(ENDLESS)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(writing.__file__).parents[2])}
    partial = tmp_path / "train.beton.partial"

    with subprocess.Popen([*command, "1000000"], env=environment, stderr=subprocess.DEVNULL) as writer:
        try:
            # room for the index is 24 MB; the images come after it
            _wait_until(lambda: partial.exists() and partial.stat().st_size > 24_000_000)
            workers = _children(writer.pid)
            writer.send_signal(how)
            writer.wait(timeout=120)
        finally:
            writer.kill()

    assert partial.exists() == (how == signal.SIGKILL)
    assert not (tmp_path / "train.beton").exists()
    _wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    if how == signal.SIGKILL:
        with pytest.raises(DataError, match="stopped before the end"):
            BetonFile(partial)
    subprocess.run([*command, "20"], env=environment, check=True, timeout=60)
    assert check_full(tmp_path / "train.beton").samples == 20
    assert not partial.exists()
