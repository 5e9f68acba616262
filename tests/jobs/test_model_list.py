from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run_acdc

from acdc_cli.errors import ModelError
from acdc_cli.jobs.model_list import COLUMNS, matching, measured, rows
from acdc_cli.models import build


def test_resnet50_has_its_published_size_and_cost() -> None:
    (local,) = [each for each in matching("resnet50") if (each.name, each.library) == ("resnet50", "local")]
    (counted,) = measured([local], 1)
    # 25,557,032 parameters, of which 25,502,912 are weights of convolutions and of the classifier; 4.09 GMACs
    assert (counted.params, counted.side, counted.classes) == (25_557_032, 224, 1000)
    assert counted.flops == pytest.approx(2 * 4.089e9, rel=1e-3)
    assert counted.prunable == pytest.approx(25_502_912 / 25_557_032)


def test_names_are_filtered_in_all_libraries_and_only_some_counted() -> None:
    matches = matching("RESNET18")
    assert {"local", "torchvision", "timm"} == {each.library for each in matches}
    assert all("resnet18" in each.name for each in matches)
    assert [each.name for each in matching("resnet2*") if each.library == "local"] == ["resnet20"]
    assert [each.name for each in matching(None)] == build.names()
    listed = measured(matches, 1)
    assert [each.params is None for each in listed] == [False] + [True] * (len(matches) - 1)
    assert len(rows(listed)[0]) == len(COLUMNS)
    with pytest.raises(ModelError, match="no model's name has 'resnet0'"):
        matching("resnet0")


def test_what_cannot_be_built_or_counted_says_why(in_tmp: Path) -> None:
    (in_tmp / "own.py").write_text(
        """from torch import nn


class odd(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(3, num_classes)

    def forward(self, images):
        raise ValueError("images of 5 pixels only")


def none(num_classes):
    raise ValueError("it needs a licence")
"""
    )
    (unbuilt,) = measured(matching("own.py:none"), 1)
    assert (unbuilt.params, unbuilt.flops) == (None, None)
    assert "it needs a licence" in str(unbuilt.problem)
    shown = run_acdc("models", "own.py:odd")
    assert shown.exit_code == 0, shown.output
    # 3 · 1000 weights and 1000 biases
    assert shown.stdout.splitlines()[1].split()[1:] == ["file", "0.00", "-", "75.0", "224"]
    said = " ".join(shown.stderr.split())
    assert "file:own.py:odd is not counted: " in said
    assert "images of 5 pixels only" in said


def test_the_command_prints_a_table_or_json() -> None:
    assert "acdc models WORD; one of yours: acdc models FILE.py:FUNCTION" in run_acdc("models", "--limit", "1").stderr
    shown = run_acdc("models", "resnet20", "--limit", "1")
    assert shown.stdout.splitlines()[1].split()[:2] == ["resnet20", "local"]
    (first, *_) = json.loads(run_acdc("models", "resnet20", "--json", "--limit", "1").stdout)
    assert (first["name"], first["side"], first["params"]) == ("resnet20", 32, first["params"])
