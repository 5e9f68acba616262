"""Files that were made to break their readers: each is refused in a line, before it costs memory or time."""

from __future__ import annotations

import copy
import io
import json
import pickle
import resource
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc
from safetensors.torch import save_file
from torch import nn

from acdc_cli import reading
from acdc_cli.errors import AcdcError, CheckpointError, ModelError, RecipeError, RunError
from acdc_cli.jobs.checkpoints import recipe_of
from acdc_cli.models import torch_file, weights
from acdc_cli.models.build import build
from acdc_cli.models.tensors import save_tensors
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import from_dict
from acdc_cli.runs.outcome import outcome
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import results
from acdc_cli.studies.run_queue import RunQueue
from acdc_cli.training import checkpoint

DEEP = "[" * 100_000
JUNK: list[Any] = [None, "x", -1, 1e400, [], {}, [[]], {"a": {"b": []}}, True, 10**400]


def mutations(value: Any, every: int) -> Iterator[Any]:
    """The value with each of its keys removed, and with junk in each place; two levels deep.

    every: a place gets one in so many of the junk, the next place the next ones.
    """
    yield from JUNK
    if isinstance(value, dict):
        for place, (key, inner) in enumerate(value.items()):
            yield {other: each for other, each in value.items() if other != key}
            yield from ({**value, key: junk} for junk in JUNK[place % every :: every])
            for within, name in enumerate(inner if isinstance(inner, dict) else ()):
                yield from ({**value, key: {**inner, name: junk}} for junk in JUNK[:3][within % every :: every])


def read_all(path: Path) -> list[str]:
    """What each reader of a run says of its files; nothing if it can read them."""
    run = RunDir(path)
    readers: tuple[Callable[[], Any], ...] = (
        run.records,
        run.provenance,
        run.last_start,
        run.final,
        lambda: outcome(run, measures_of("multiclass")),
        lambda: results.of_runs([path]),
    )
    return [said_by(read) for read in readers]


def said_by(read: Callable[[], Any]) -> str:
    said = ""
    try:
        read()
    except AcdcError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["metrics.jsonl", "provenance.json", "summary.json"])
def test_whatever_a_run_s_files_hold_their_readers_say_it_in_a_line(home: Path, name: str, every: int) -> None:
    file = home / "run" / name
    first, *rest = file.read_text().splitlines() if name == "metrics.jsonl" else [file.read_text()]
    whole = json.loads(first)
    entries = whole if isinstance(whole, list) else [whole]
    for changed in mutations(entries[0], every):
        text = json.dumps([changed] if isinstance(whole, list) else changed)
        file.write_text("\n".join([text, *rest]) + "\n")
        read_all(home / "run")
    for raw in (b"", b"\xff", b"{", DEEP.encode() + b"\n", b'{"a": "\x1b[31m"}\n', b"9" * 5000 + b"\n"):
        file.write_bytes(raw)
        # an empty list of records is one
        assert any(read_all(home / "run")) or not raw
    file.unlink()
    file.mkdir()
    assert any(read_all(home / "run"))


BROKEN = {
    "metrics.jsonl": ('{"epoch": null}\n', "line 1 of run/metrics.jsonl is damaged (train_loss:"),
    "summary.json": ('{"sparse": 3}', "run/summary.json is damaged (sparse:"),
    "provenance.json": ('{"a": 1}', "run/provenance.json is damaged (Input should be a valid list"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_command_says_it_and_ends_with_code_2(home: Path, acdc: Acdc, name: str) -> None:
    text, said = BROKEN[name]
    (home / "run" / name).write_text(text)
    ended = acdc("analyze", "compare", "run", "run/../run")
    assert ended.exit_code == 2
    assert said in " ".join(ended.stderr.split())


def test_a_ledger_s_columns_are_checked(tmp_path: Path) -> None:
    from acdc_cli.studies.grid import Cell

    path = tmp_path / "ledger.sqlite"
    for column, value in {
        "axes": ["x", "[]", '{"a": null}', '{"a": [1]}', DEEP],
        "overrides": ["x", "{}", "[1]"],
        "attempts": ["many", -1],
        "key": ["../../elsewhere", "..", ""],
        "host": [b"\xff"],
    }.items():
        for junk in value:
            path.unlink(missing_ok=True)
            queue = RunQueue(path)
            queue.add([Cell("seed=0", {"seed": 0}, ("fork=seed=1@many",))])
            with sqlite3.connect(path) as db:
                db.execute(f"UPDATE runs SET {column} = ?", (junk,))
            db.close()
            with pytest.raises(RunError, match=r"ledger\.sqlite cannot be used: .*If it is damaged, move it away"):
                queue.rows()


def bomb(levels: int = 60) -> list[Any]:
    """10 to the power of `levels` values, in a few lists."""
    shared: list[Any] = [0]
    for _ in range(levels):
        shared = [shared] * 10
    return shared


def test_bounds_count_what_a_reader_would_visit() -> None:
    reading.require_bounds([[1] * 10] * 10, deepest=2, most_values=111)
    with pytest.raises(ValueError, match="more than 109 values"):
        reading.require_bounds([[1] * 10] * 10, deepest=2, most_values=109)
    with pytest.raises(ValueError, match="more than 1 deep"):
        reading.require_bounds([[1]], deepest=1)
    circle: list[Any] = []
    circle.append(circle)
    for endless in (circle, bomb()):
        with pytest.raises(ValueError, match=r"nested more than|more than .* values"):
            reading.require_bounds(endless)


RECIPES = {f"{many:,} keys": {str(key): key for key in range(many)} for many in (30_000, 300_000)}
RECIPES["shared lists"] = {"model": bomb(15)}


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=name, marks=pytest.mark.slow if name == "300,000 keys" else ())
        for name, recipe in RECIPES.items()
    ],
)
def test_a_recipe_that_multiplies_is_refused_before_it_is_laid_out(home: Path, recipe: dict[str, Any]) -> None:
    began = time.monotonic()
    with pytest.raises(RecipeError, match=r"x\.pt: its recipe is refused: it holds more than 5,000 values"):
        from_dict(recipe, "x.pt")
    torch.save({"metadata": {"recipe": recipe}, "state_dict": {}}, home / "x.pt")
    with pytest.raises(AcdcError, match=r"x\.pt"):
        recipe_of(home / "x.pt")
    assert time.monotonic() - began < 30


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)


def pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def saved(content: Any) -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save(content, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name.removeprefix("archive/"): archive.read(name) for name in archive.namelist()}


def compressed(path: Path) -> None:
    zipped(path, saved({"weight": torch.zeros(10_000_000)}))
    assert path.stat().st_size < 100_000


def compressed_pickle(path: Path) -> None:
    zipped(path, saved({}) | {"data.pkl": pickled(b"]" * 50_000_000)})
    assert path.stat().st_size < 100_000


def array_of_zeros(path: Path) -> None:
    number = b"\x8a\x05" + (3 << 30).to_bytes(5, "little")
    operations = b"c__builtin__\nbytearray\n", number, b"\x85R"
    zipped(path, saved({}) | {"data.pkl": pickled(*operations)}, zipfile.ZIP_STORED)


def array_of_zeros_in_the_old_format(path: Path) -> None:
    torch.save({}, path, _use_new_zipfile_serialization=False)
    number = b"\x8a\x05" + (3 << 30).to_bytes(5, "little")
    *before, _ = pickles_of(path)
    path.write_bytes(b"".join(before) + pickled(b"c__builtin__\nbytearray\n", number, b"\x85R"))


def pickles_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        ends = [0]
        for _ in range(4):
            pickle.load(file)
            ends.append(file.tell())
    data = path.read_bytes()
    return [data[start:end] for start, end in pairwise(ends)]


def many_lists(path: Path) -> None:
    zipped(path, saved({}) | {"data.pkl": pickled(b"(" + b"]" * 3_000_000 + b"l")}, zipfile.ZIP_STORED)


def large_pickle(path: Path) -> None:
    zipped(path, saved({}) | {"data.pkl": pickled(b"]" * (17 << 20))}, zipfile.ZIP_STORED)


def expanded(path: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"conv.weight": huge, "conv.weight_mask": huge}, path)


def shared_views(path: Path) -> None:
    whole = torch.zeros(10_000_000)
    torch.save({f"layer{number}.weight": whole.view(-1) for number in range(200)}, path)


def overlapping(path: Path) -> None:
    """Many names for the same bytes."""
    zipped(path, saved({"weight": torch.zeros(1_000_000)}), zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        (large,) = [member for member in archive.infolist() if member.filename.endswith("data/0")]
        for number in range(1, 100):
            again = copy.copy(large)
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True  # type: ignore[attr-defined]


def shared_lists(path: Path) -> None:
    torch.save({"weight": torch.zeros(3), "more": bomb()}, path)


BOMBS = [
    compressed,
    compressed_pickle,
    array_of_zeros,
    array_of_zeros_in_the_old_format,
    many_lists,
    large_pickle,
    expanded,
    shared_views,
    overlapping,
    shared_lists,
]


@pytest.mark.parametrize(
    "operations", [100_000, pytest.param(torch_file._MOST_OPERATIONS, marks=pytest.mark.slow)], ids=["few", "all"]
)
@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_a_torch_file_takes_no_more_memory_than_its_size_justifies(
    tmp_path: Path, make: Callable[[Path], None], operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a second goes by until a million are counted
    monkeypatch.setattr(torch_file, "_MOST_OPERATIONS", operations)
    path = tmp_path / "bomb.pt"
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"save|overlap|nested|more than"):
        torch_file.load(path)
    with pytest.raises(ModelError, match=r"cannot read the weights in .*bomb\.pt"):
        weights.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800 << 10
    assert time.monotonic() - began < 60


def test_a_sealed_bomb_is_refused_as_a_checkpoint(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, {"bomb": bomb()})
    with pytest.raises(CheckpointError, match="restore a copy"):
        checkpoint.load_state(tmp_path)


def test_a_torch_file_of_too_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "small.pt")
    monkeypatch.setattr(torch_file, "_MOST_MEMBERS", 3)
    with pytest.raises(ValueError, match=r"it has \d members; save its tensors alone"):
        torch_file.load(tmp_path / "small.pt")


def test_a_json_document_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text('"0123456789"')
    monkeypatch.setattr(reading, "_LARGEST", 11)
    with pytest.raises(RunError, match=r"summary\.json is damaged \(12 bytes are too many\); restore a copy"):
        reading.read_json(tmp_path / "summary.json", str)


def test_files_of_every_kind_that_torch_saves_are_still_read(tmp_path: Path) -> None:
    content = {"weight": torch.rand(3, 4), "tied": [torch.zeros(2)] * 3, "epoch": 3}
    for number, new in enumerate((True, False)):
        torch.save(content, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=new)
        assert torch.equal(torch_file.load(tmp_path / f"{number}.pt")["weight"], content["weight"])
    assert torch.equal(torch_file.load(tmp_path / "0.pt", mmap=True)["weight"], content["weight"])


GIANTS: dict[str, dict[str, Any]] = {
    "wide": {"name": "timm:vit_tiny_patch16_224", "options": {"embed_dim": 300_000}},
    "deep": {"name": "timm:vit_tiny_patch16_224", "options": {"depth": 1_000_000, "embed_dim": 3}},
}


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.slow] * (name == "deep"), id=name) for name, block in GIANTS.items()],
)
def test_a_giant_model_is_refused_before_it_takes_memory(block: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pt")
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"GiB|modules"):
        build(ModelBlock(**block, weights=str(tmp_path / "w.pt")), 10)
    assert time.monotonic() - began < 100


def test_weights_are_compared_before_the_model_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acdc_cli.models import build as building

    devices = []
    construct = building._construct
    monkeypatch.setattr(
        building, "_construct", lambda *given: devices.append(torch.get_default_device().type) or construct(*given)
    )
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(ModelError):
        build(ModelBlock(name="resnet20", weights=str(tmp_path / "w.pt")), 10)
    assert devices == ["meta"]


MASKS: dict[str, tuple[Any, torch.Tensor]] = {
    "a shape that is text": ({"a": "x"}, torch.zeros(2, dtype=torch.uint8)),
    "no shape": ({}, torch.zeros(2, dtype=torch.uint8)),
    "an empty shape": ({"a": []}, torch.zeros(2, dtype=torch.uint8)),
    "a giant shape": ({"a": [10**6, 10**6]}, torch.zeros(2, dtype=torch.uint8)),
    "a shape below zero": ({"a": [-4, -4]}, torch.zeros(2, dtype=torch.uint8)),
    "too few bits": ({"a": [4, 5]}, torch.zeros(2, dtype=torch.uint8)),
    "too many bits": ({"a": [4, 4]}, torch.zeros(3, dtype=torch.uint8)),
    "numbers for bits": ({"a": [4, 4]}, torch.zeros(2)),
    "bits in a square": ({"a": [4, 4]}, torch.zeros(2, 1, dtype=torch.uint8)),
    "20 axes": ({"a": [1] * 20}, torch.zeros(1, dtype=torch.uint8)),
    "a list": ([1], torch.zeros(1, dtype=torch.uint8)),
}


@pytest.mark.parametrize(("shapes", "bits"), MASKS.values(), ids=MASKS.keys())
def test_masks_of_a_wrong_shape_are_refused(tmp_path: Path, shapes: Any, bits: torch.Tensor) -> None:
    save_tensors(tmp_path / "masks.safetensors", {"a": bits}, {"shapes": json.dumps(shapes)})
    with pytest.raises(CheckpointError, match=r"the masks in .* cannot be read \(.*\); restore a copy"):
        checkpoint.load_masks(tmp_path / "masks.safetensors")


def test_masks_that_change_their_shape_within_a_run_are_told(home: Path, acdc: Acdc) -> None:
    (kept, *_) = RunDir(home / "run").kept_masks()
    other = {name: torch.ones(1, 1, dtype=torch.bool) for name in checkpoint.load_masks(kept.file)}
    checkpoint.save_masks(kept.file.with_name(kept.file.name.replace("0001", "0000")), other)
    ended = acdc("analyze", "masks", "run")
    assert ended.exit_code == 2
    assert "do not prune the same layers" in " ".join(ended.stderr.split())


HEADERS = {
    "nested": {"acdc": DEEP},
    "a number": {"acdc": "3"},
    "a version that is none": {"acdc": "{}", "acdc version": "x"},
    "a recipe of lists": {"acdc": json.dumps({"recipe": {"name": [[[]]] * 3}})},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_is_none_of_ours_is_refused(home: Path, acdc: Acdc, header: dict[str, str]) -> None:
    save_file({"fc.bias": torch.zeros(2)}, home / "x.safetensors", header)
    ended = acdc("eval", "--checkpoint", "x.safetensors", "--model", "resnet8", "--data", "photos")
    assert ended.exit_code == 2
    assert "Traceback" not in ended.stderr


UNUSUAL: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**5, 10**5)),
    "complex": lambda: torch.zeros(4, 4, dtype=torch.cfloat),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.qint8),
    "without data": lambda: torch.zeros(4, 4, device="meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_masks_and_weights_of_unusual_types_are_refused(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    model = nn.Linear(4, 4)
    for content in ({"weight": make(), "weight_mask": make()}, {"weight": torch.zeros(4, 4), "_weight_mask": make()}):
        torch.save({f"fc.{name}": tensor for name, tensor in content.items()}, tmp_path / "x.pt")
        with pytest.raises(ModelError):
            weights.load_weights(nn.Sequential(model), tmp_path / "x.pt")


def test_a_packed_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    import hashlib

    from acdc_cli.models.packed_file import MAGIC, unpack

    header = {"tensors": [{"name": "a", "dtype": "float32", "shape": [2**31], "nonzero": None}], "metadata": {}}
    text = json.dumps(header).encode()
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=2**33)
    payload = b"".join(compressor.compress(bytes(1 << 24)) for _ in range(4))
    content = MAGIC + len(text).to_bytes(8, "little") + text + payload
    with pytest.raises(ValueError, match="times"):
        unpack(content + hashlib.sha256(content).digest())


def test_a_run_that_ends_with_nan_does_not_end_with_code_0_whatever_its_length(home: Path, acdc: Acdc) -> None:
    given = ("--set", "optim.lr=1e30", "--set", "optim.nan_patience=1000")
    for arguments in (("train", "small.yaml", "--out", "nan", *given), ("train", "nan", "--resume")):
        ended = acdc(*arguments)
        assert ended.exit_code == 2, ended.output
        assert "is NaN or infinite, so the run has no result; start a new run" in " ".join(ended.stderr.split())
        assert not (home / "nan" / "summary.json").exists()
    assert "NaN" not in (home / "nan" / "metrics.jsonl").read_text()
    shown = acdc("eval", "--checkpoint", "nan", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout, parse_constant=lambda constant: pytest.fail(constant))["loss"] is None
