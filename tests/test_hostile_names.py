"""Names and numbers that come from files: inert on a terminal, in JSON, in CSV and in Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import Acdc
from PIL import Image
from rich.console import Console

from acdc_cli import console, files
from acdc_cli.data import manifest
from acdc_cli.errors import DataError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines
from acdc_cli.studies.report.tables import Cell, Column, Table

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b1m\r\x08\u202ename[red]|\udcff"


@pytest.mark.parametrize("terminal", [False, True])
def test_no_control_character_reaches_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = (
        type(console._out)(file=io.StringIO(), force_terminal=terminal, width=200, highlight=False) for _ in range(2)
    )
    monkeypatch.setattr(console, "_out", out)
    monkeypatch.setattr(console, "_err", err)
    for write in (console.out, console.say, console.warn, console.error):
        write(EVIL)
    console.table([EVIL, "b"], [[EVIL, "1"]], title=EVIL)
    with console.progress(EVIL) as bar:
        bar.update(bar.add_task(EVIL, total=2), advance=1)
        bar.refresh()
    for each in (out, err):
        assert isinstance(each, Console)
        written = each.file.getvalue()  # type: ignore[attr-defined]
        assert r"\x1b]0;owned" in written
        assert not {"\x07", "\x9b", "\x08", "\u202e", "\udcff"} & set(written)
        assert "\x1b]0" not in written
        assert "\x1b[2J" not in written
        written.encode()


def test_json_has_no_nan_and_no_control_character_and_keeps_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    console.out_json({"a": math.nan, "b": [math.inf, -1.5, (1, {"c": -math.inf})], "name": EVIL})
    text = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\x08", "\u202e", "\udcff"} & set(text)
    text.encode()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": None, "b": [None, -1.5, [1, {"c": None}]], "name": EVIL}


def test_records_and_summaries_have_null_for_nan(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    JsonLines(run.metrics).log({"epoch": 0, "largest_weight": math.nan})
    run.finish({"top1": math.inf})
    assert run.metrics.read_text() == '{"epoch": 0, "largest_weight": null}\n'
    assert json.loads(run.summary.read_text()) == {"top1": None}


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]
PLAIN = ["-0.5", "-1e-4", "+3", "-inf", "-", "–", "sparsity=0.9", "a", "", -0.5, -3, 1e-9, None]


def test_text_in_csv_is_no_formula_and_numbers_stay_numbers() -> None:
    rows = list(csv.reader(io.StringIO(files.csv_text([FORMULAS, PLAIN]))))
    assert rows[0] == [f"'{text}".replace("\r", " ") for text in FORMULAS]
    assert rows[1] == ["" if value is None else str(value) for value in PLAIN]


def test_cells_in_markdown_are_text() -> None:
    names = [
        "<img src=x onerror=alert(1)>",
        "[x](javascript:1)",
        "a|b",
        "`x`",
        "two\nlines",
        "**bold**",
        "a\\|b",
        "&lt;",
    ]
    table = Table("t", "T", "", (Column("<b>", ("b",)),), tuple((Cell(name),) for name in names))
    head, _, *rows = table.markdown().splitlines()
    assert head == "| &lt;b> |"
    assert rows == [
        "| &lt;img src=x onerror=alert(1)> |",
        r"| \[x\](javascript:1) |",
        r"| a\|b |",
        r"| \`x\` |",
        "| two lines |",
        r"| \*\*bold\*\* |",
        r"| a\\\|b |",
        "| &amp;lt; |",
    ]


def test_a_dollar_sign_in_a_name_begins_no_formula() -> None:
    from acdc_cli.analysis.base import plotting

    figure = plotting.new(4, 3)
    panel = figure.subplots()
    panel.plot([1, 100], [1, 100], label=r"$\foo$")
    panel.set(title=r"a$\foo$b", yscale="log")
    panel.set_xticks([1, 100], [r"$\x{$", "b"])
    panel.legend()
    text = plotting.svg(figure)
    plotting.png(figure)
    assert r"a$\foo$b" in text


STRANGE = os.fsdecode(b"caf\xe9-\x1b[31m.png")


def folder_of(place: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), np.uint8)
    for index, pixels in enumerate(noise):
        # a class whose name is no UTF-8
        file = place / ("train" if index < 4 else "val") / ("cat", os.fsdecode(b"d\xf6g"))[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return place


def test_unreadable_images_whose_names_are_no_utf_8_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acdc: Acdc
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = folder_of(tmp_path / "photos")
    (photos / "train" / "cat" / STRANGE).write_bytes(b"none")
    write = ("data", "write", "folder", "--source", photos, "--out", "set", "--workers", "0")
    refused = acdc(*write)
    assert refused.exit_code == 2, refused.output
    assert r"cat/caf\xe9-\x1b[31m.png: no JPEG" in " ".join(refused.stderr.split())
    listed = tmp_path / "set" / "train.beton.bad.txt"
    assert os.fsencode(f"cat/{STRANGE}\t") in listed.read_bytes()
    written = acdc(*write, "--skip-bad")
    assert written.exit_code == 0, written.output
    made = manifest.check_full(tmp_path / "set" / "train.beton")
    assert [image.path for image in made.bad] == [f"train/cat/{STRANGE}"]
    assert made.class_names == ("cat", os.fsdecode(b"d\xf6g"))


def test_a_run_in_a_folder_whose_name_is_no_utf_8_trains_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acdc: Acdc
) -> None:
    monkeypatch.chdir(tmp_path)
    data = f"{{name: folder, path: {folder_of(tmp_path / 'photos')}, batch_size: 2, val_batch_size: 2, workers: 0}}"
    recipe = f"extends: demo\nname: s\nepochs: 1\nsparsity: {{method: dense}}\ndata: {data}\n"
    recipe += "optim: {schedule: {warmup_epochs: 0}}\n"
    Path("s.yaml").write_text(recipe)
    run = Path(os.fsdecode(b"r\xfcn"))
    for command in (
        ("train", "s.yaml", "--out", run),
        ("eval", "--checkpoint", run, "--json"),
        ("analyze", "curves", run, "--json"),
        ("report", run),
    ):
        ended = acdc(*command)
        assert ended.exit_code in (0, 2), (command, ended.output, ended.exception)
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    (entry,) = RunDir(run).provenance()
    assert str(run) in entry["command"] or entry["command"]


def test_a_name_that_a_recipe_cannot_hold_is_refused(tmp_path: Path, acdc: Acdc) -> None:
    ended = acdc("plan", "demo", "--set", f"data.path={os.fsdecode(bytes([0xE9]))}")
    assert ended.exit_code == 2
    assert isinstance(ended.exception, SystemExit)


def test_a_copy_of_a_manifest_with_junk_for_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        manifest.read(tmp_path / "x.beton")
    shutil.rmtree(tmp_path)
