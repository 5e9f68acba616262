"""Every file of a run and of a data set, at every call that writes it, with everything that can go wrong there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epoch import recorded
from faults import FAULTS, TWINS, Fault, FaultySystem, Killed
from torch import nn

from acdc_cli import files
from acdc_cli.data import beton, manifest
from acdc_cli.data import write_beton as writing
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import AcdcError, DataError
from acdc_cli.models.weights import load_weights
from acdc_cli.recipe.blocks.run import TrackBlock
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.runs.tracker import JsonLines, Wandb
from acdc_cli.training import checkpoint

by_name = {"ids": lambda fault: fault.name}


@dataclass(frozen=True)
class Kind:
    """A kind of file: `write` makes version 1 into 2, `read` tells which one is there."""

    name: str
    begin: Callable[[Path], None]
    """Leaves version 1 in an empty folder."""
    write: Callable[[Path], None]
    read: Callable[[Path], int]
    """Raises an AcdcError if what is there is neither."""
    files: int = 1
    """With two that belong together, a death between their renames is seen by `read`."""


def write_state(folder: Path, version: int) -> None:
    checkpoint.save_state(folder, {"version": version, "weights": torch.full((9_000,), version)})


def read_state(folder: Path) -> int:
    state = checkpoint.load_state(folder)
    assert state is not None
    assert (state["weights"] == state["version"]).all()
    return int(state["version"])


def damage_the_newest_state(folder: Path) -> None:
    write_state(folder, 1)
    write_state(folder, 7)
    flip(folder / "last.pt", 5_000)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def write_model(folder: Path, version: int) -> None:
    model = nn.Linear(100, 100)
    nn.init.constant_(model.weight, version)
    checkpoint.save_model(folder / "m.safetensors", model, {"version": version})


def read_model(folder: Path) -> int:
    model = nn.Linear(100, 100)
    load_weights(model, folder / "m.safetensors")
    metadata = checkpoint.read_metadata(folder / "m.safetensors")
    assert metadata == {"version": model.weight[0, 0].item()}
    return int(metadata["version"])


def write_masks(folder: Path, version: int) -> None:
    checkpoint.save_masks(folder / "masks.safetensors", {"conv": torch.arange(90_000) % (version + 1) == 0})


def read_masks(folder: Path) -> int:
    return 90_000 // int(checkpoint.load_masks(folder / "masks.safetensors")["conv"].sum()) - 1


def log(folder: Path, epoch: int) -> None:
    JsonLines(folder / "metrics.jsonl").log(recorded(epoch, more=["x" * 9_000]))


def count_records(folder: Path) -> int:
    records = RunDir(folder).records()
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    return len(records)


def log_after_half_a_line(folder: Path) -> None:
    log(folder, 1)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lay')


def log_three(folder: Path) -> None:
    for epoch in (1, 2, 3):
        log(folder, epoch)


def source(version: int) -> Source:
    """Both versions have the same labels and sizes: only the pixels of the first image differ."""
    pixels = np.zeros((6, 40, 40, 3), np.uint8)
    pixels[0] = version
    return Source("pets", "train", pixels, np.arange(6) % 2, ("cat", "dog"), f"version {version}")


def write_set(folder: Path, version: int) -> None:
    writing.write(source(version), folder / "train.beton", Settings(raw_share=1.0), workers=0, force=True)


def read_set(folder: Path) -> int:
    described = manifest.check_quick(folder / "train.beton")
    damage = raised(lambda: manifest.check_full(folder / "train.beton"))
    assert damage is None, f"the quick check has missed it: {damage}"
    return int(described.source.split()[1])


def first_set(folder: Path) -> int:
    """Version 1 is none."""
    if not (folder / "train.beton").exists() and not (folder / "train.beton.json").exists():
        return 1
    return read_set(folder)


KINDS = [
    Kind("state", lambda folder: write_state(folder, 1), lambda folder: write_state(folder, 2), read_state),
    Kind("state after a damaged one", damage_the_newest_state, lambda folder: write_state(folder, 2), read_state),
    Kind("model", lambda folder: write_model(folder, 1), lambda folder: write_model(folder, 2), read_model),
    Kind("masks", lambda folder: write_masks(folder, 1), lambda folder: write_masks(folder, 2), read_masks),
    Kind("metrics", lambda folder: log(folder, 1), lambda folder: log(folder, 2), count_records),
    Kind("metrics after half a line", log_after_half_a_line, lambda folder: log(folder, 2), count_records),
    Kind(
        "rewound metrics",
        log_three,
        lambda folder: RunDir(folder).rewind_metrics(2),
        lambda folder: 1 if count_records(folder) == 3 else 1 + count_records(folder),
    ),
    Kind(
        "provenance",
        lambda folder: RunDir(folder).record_provenance({"entry": "x" * 9_000}),
        lambda folder: RunDir(folder).record_provenance({"entry": "x" * 9_000}),
        lambda folder: len(RunDir(folder).provenance()),
    ),
    Kind(
        "summary",
        lambda folder: None,
        lambda folder: RunDir(folder).finish({"version": 2, "layers": "x" * 9_000}),
        lambda folder: json.loads((folder / "summary.json").read_text())["version"] if RunDir(folder).finished else 1,
    ),
    Kind("data set", lambda folder: write_set(folder, 1), lambda folder: write_set(folder, 2), read_set, files=2),
    Kind("first data set", lambda folder: None, lambda folder: write_set(folder, 2), first_set, files=2),
]


def calls_of(folder: Path, action: Callable[[Path], Any]) -> list[str]:
    with FaultySystem(folder) as system:
        action(folder)
    return system.calls


def hidden(folder: Path) -> list[str]:
    """Files that only a write in progress needs."""
    return [path.name for path in folder.rglob("*") if path.name.endswith((".partial", ".older"))]


def test_the_bytes_reach_the_disk_before_the_name_does_and_the_name_before_the_end(tmp_path: Path) -> None:
    assert calls_of(tmp_path, lambda folder: files.write_text(folder / "a", "text")) == [
        *("unlink", "open", "write", "fsync", "replace", "fsync"),
        "unlink",
    ]
    assert calls_of(tmp_path, lambda folder: log(folder, 1)) == ["open", "truncate", "write", "fsync", "fsync"]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        # to write a data set takes longest; a twin's other message is the same for all files
        pytest.param(kind, fault, id=f"{fault.name}-{kind.name}", marks=pytest.mark.slow if long or twin else ())
        for kind in KINDS
        for fault in FAULTS
        for long in [kind.files > 1 and fault.name not in ("full in the middle", "killed")]
        for twin in [fault in TWINS and kind.name not in ("summary", "metrics")]
    ],
)
@pytest.mark.usefixtures("small_pages")
def test_after_any_fault_at_any_call_the_old_or_the_new_file_is_whole(kind: Kind, fault: Fault, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    kind.begin(original)
    assert kind.read(original) == 1
    shutil.copytree(original, tmp_path / "clean")
    calls = calls_of(tmp_path / "clean", kind.write)
    assert kind.read(tmp_path / "clean") == 2
    assert {"write", "fsync"} <= set(calls)
    for index, call in enumerate(calls):
        folder = tmp_path / f"{index}"
        shutil.copytree(original, folder)
        if strike(kind, fault, index, folder) == 1:
            kind.write(folder)
            assert not hidden(folder), f"{call}, call {index}"
        assert kind.read(folder) == 2, f"{call}, call {index}"
        shutil.rmtree(folder)


def strike(kind: Kind, fault: Fault, index: int, folder: Path) -> int:
    """The version that is there after a fault at that call; 1 also for what is seen to be neither."""
    with FaultySystem(folder, fault, index) as system:
        error = raised(lambda: kind.write(folder))
    if isinstance(error, AcdcError):
        assert re.match(rf"{folder}.* cannot be written: .*; .*\. The previous file is kept\.$", str(error))
    assert fault.kills == isinstance(error, Killed)
    assert fault.kills or not hidden(folder)
    versions: list[int] = []
    unreadable = raised(lambda: versions.append(kind.read(folder)))
    if kind.files > 1 and (fault.kills or fault.for_ever) and isinstance(unreadable, DataError):
        assert re.search(r"[Ww]rite (it|the data set) again", str(unreadable))
        return 1
    assert unreadable is None, f"neither after {system.calls[index]}, call {index}: {unreadable}"
    assert versions[0] in ((1, 2) if error else (2,)), f"{system.calls[index]}, call {index}"
    return versions[0]


def raised(action: Callable[[], object]) -> BaseException | None:
    try:
        action()
    except (AcdcError, Killed) as error:
        return error
    return None


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of kilobytes."""
    monkeypatch.setattr(beton, "PAGE_SIZE", 8192)
    monkeypatch.setattr(manifest, "PAGE", 8192)


@pytest.mark.parametrize("fault", FAULTS, **by_name)
def test_a_run_whose_beginning_failed_can_be_resumed_or_begun_again(fault: Fault, tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        run = RunDir(folder / "run")
        with run.locked():
            run.start("given", "resolved", {"command": ["acdc"]})

    for index in range(len(calls_of(tmp_path, start))):
        folder = tmp_path / f"{index}"
        folder.mkdir()
        with FaultySystem(folder, fault, index):
            error = raised(lambda folder=folder: start(folder))
        if error:
            if (folder / "run" / "resolved.yaml").exists():
                assert len(open_run(folder / "run").provenance()) == 1
            start(folder)
        assert open_run(folder / "run").resolved.read_text() == "resolved"
        assert (folder / "run" / "recipe.yaml").read_text() == "given"
        assert len(RunDir(folder / "run").provenance()) == 1
        assert not hidden(folder)


class FakeRun:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, row: dict[str, Any], step: int) -> None:
        self.steps.append(step)

    def finish(self, exit_code: int) -> None:
        pass


@pytest.mark.parametrize("fault", FAULTS, **by_name)
def test_no_fault_of_wandbs_own_files_stops_the_run_or_logs_a_step_twice(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    fake = FakeRun()
    identities: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: identities.append(settings["id"]) or fake)
    monkeypatch.setattr(wandb, "Table", lambda **_: None)

    def mirror(folder: Path) -> None:
        tracker = Wandb(TrackBlock(), RunDir(folder), "test", {}, "offline")
        for step in (5, 10):
            tracker.log({"step": step, "layers": {}})
        tracker.close()

    for index in range(len(calls_of(tmp_path, mirror))):
        folder = tmp_path / f"{index}"
        folder.mkdir()
        fake.steps.clear()
        identities.clear()
        with FaultySystem(folder, fault, index):
            error = raised(lambda folder=folder: mirror(folder))
        assert fault.kills == isinstance(error, Killed)
        mirror(folder)
        assert sorted(set(fake.steps)) == sorted(fake.steps)
        assert len(set(identities)) == 1
        assert len(identities[0]) == 8


# The same from the kernel itself

FILL = """
import sys
from pathlib import Path
from acdc_cli import files
from acdc_cli.errors import RunError

summary = Path(sys.argv[1]) / "summary.json"
files.write_text(summary, "before")
try:
    files.write_text(summary, "after" * 300_000)
except RunError as error:
    print(error)
print(summary.read_text(), sorted(path.name for path in summary.parent.iterdir()))
"""
SAVE = """
import resource, signal, sys
from pathlib import Path
import torch
from acdc_cli.errors import RunError
from acdc_cli.training import checkpoint

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoint.save_state(folder, {"version": 1, "weights": torch.ones(50_000)})
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpoint.save_state(folder, {"version": 2, "weights": torch.ones(300_000)})
except RunError as error:
    print(error)
print(checkpoint.load_state(folder)["version"], sorted(path.name for path in folder.iterdir()))
"""


def saved(folder: Path, *limit: str, program: str = SAVE, inside: tuple[str, ...] = ()) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [*inside, sys.executable, "-c", program, str(folder), *limit]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    message, rest = saved(tmp_path, "500000")
    assert "last.pt cannot be written: the file exceeds the size limit" in message
    assert rest == "1 ['last.pt']"


@pytest.mark.parametrize(
    ("program", "file", "before"),
    [
        (FILL, "summary.json", "before"),
        # which imports torch
        pytest.param(SAVE, "last.pt", "1", marks=pytest.mark.slow),
    ],
    ids=["summary", "checkpoint"],
)
def test_a_full_disk_leaves_the_file_before(tmp_path: Path, program: str, file: str, before: str) -> None:
    message, rest = saved(tmp_path, program=program, inside=on_a_file_system(tmp_path, "size=1m"))
    assert f"{file} cannot be written: the disk is full; free some space there" in message
    assert rest == f"{before} ['{file}']"


def test_a_disk_without_inodes_is_told_as_that(tmp_path: Path) -> None:
    # the folder's own and one file's
    message, rest = saved(tmp_path, program=FILL, inside=on_a_file_system(tmp_path, "size=10m,nr_inodes=2"))
    assert "summary.json cannot be written: the file system is out of inodes, though not of space" in message
    assert rest == "before ['summary.json']"


def on_a_file_system(folder: Path, options: str) -> tuple[str, ...]:
    """The beginning of a command for which `folder` is a file system of its own, gone with the process."""
    mount = ("unshare", "--mount", "--map-root-user", "sh", "-c")
    script = f'mount -t tmpfs -o {options} tmpfs "{folder}" && exec "$@"'
    tried = subprocess.run([*mount, script, "sh", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    return (*mount, script, "sh")
