"""Every bad input gets its cause and a way out in words, exit code 2 and no traceback; nothing is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from bad_checkpoints import CHECKPOINTS
from bad_commands import ARGUMENTS, MODELS, PLACES
from bad_data import READ, WRITTEN
from bad_recipes import FILES, OVERRIDES
from command import Acdc
from corpus import Case

from acdc_cli.data.known_sets import known_sets
from acdc_cli.models import build
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.optim import SGDBlock
from acdc_cli.recipe.kinds import method_config, methods
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.shape import either

CASES = [*FILES, *OVERRIDES, *READ, *WRITTEN, *CHECKPOINTS, *MODELS, *PLACES, *ARGUMENTS]
PLACEHOLDERS = {
    "<keys of a recipe>": ", ".join(["extends", *Recipe.model_fields]),
    "<keys of data>": ", ".join(ImagesBlock.model_fields),
    "<keys of sgd>": ", ".join(SGDBlock.model_fields),
    "<keys of oneshot>": ", ".join(method_config("oneshot").model_fields),
    "<methods>": either(methods()),
    "<sets>": ", ".join(known_sets()),
    "<our models>": ", ".join(build.names()),
}
"""Lists that grow: each case says which it names, not what stands in it."""
BOX = str.maketrans("╭╮╰╯─│", "      ")


def there(home: Path) -> dict[str, tuple[int, int] | None]:
    """Every file with its size and the time of its last change; locks hold nothing."""
    files = (path for path in home.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    stats = {path.relative_to(home).as_posix(): path.stat() for path in files}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def message(stderr: str, home: Path) -> str:
    """What stands behind `error: `, or in the box that Typer draws about a wrong argument."""
    if "error: " not in stderr:
        return " ".join(stderr.partition("Error")[2].translate(BOX).split())
    text = stderr.partition("error: ")[2].strip().replace(str(home), "HOME")
    for placeholder, words in PLACEHOLDERS.items():
        text = text.replace(words, placeholder)
    return text


def test_no_case_stands_there_twice() -> None:
    assert len({case.name for case in CASES}) == len({(case.make, case.command) for case in CASES}) == len(CASES) > 180


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_told_with_a_way_out(acdc: Acdc, home: Path, case: Case) -> None:
    if "absent" in case.name and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    case.make()
    before = there(home)

    result = acdc(*case.arguments)

    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    expected = re.escape(case.said).replace("…", ".*")
    assert re.fullmatch(expected, message(result.stderr, home)), message(result.stderr, home)
    after = there(home)
    assert {name: after.get(name) for name in before} == before, "something was overwritten"
    new = {name for name in after if name not in before}
    assert {name for name in new if not name.startswith(case.leaves or "\0")} == set()
    assert all(any(name.startswith(left) for name in new) for left in case.leaves)


def test_images_that_cannot_be_decoded_are_listed_counted_and_the_rest_written(acdc: Acdc, home: Path) -> None:
    for name in ("00", "02"):
        (home / f"photos/train/cat/{name}.png").write_text("none")
    result = acdc("data", "write", "folder", "--source", "photos", "--out", "new", "--workers", "0", "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "2 of 16 images cannot be read and are left out; they are listed in new/train.beton.bad.txt" in result.stderr
    listed = (home / "new/train.beton.bad.txt").read_text().splitlines()
    assert [line.partition("\t")[0] for line in listed] == ["train/cat/00.png", "train/cat/02.png"]
    written = json.loads((home / "new/train.beton.json").read_text())
    assert (written["samples"], len(written["bad"])) == (14, 2)
    assert acdc("data", "check", "new").exit_code == 0
