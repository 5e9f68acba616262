"""Real runs and data writing that die at random, and what must hold each time: `python -m campaign --help`."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import re
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from killing import NEVER, Moment, Process, Watch, after, while_saving
from PIL import Image

from acdc_cli import console, files
from acdc_cli.data import inventory, manifest, write_beton
from acdc_cli.data.augment import PADDED, Crop
from acdc_cli.data.batches import Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.sets import demo_digits
from acdc_cli.errors import DataError
from acdc_cli.jobs import training_run
from acdc_cli.jobs.resume_check import differences
from acdc_cli.models.tensors import load_tensors
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines
from acdc_cli.training import checkpoint, validation

EPOCHS, STEPS, BATCH, VAL = 8, 8, 20, 50
ANY, SAVING, CALL = "any moment", "while saving", "at a call"
WRITING = ("writing data", "writing data anew")
TIMES = ("seconds", "images_per_second")


@dataclass(frozen=True)
class Case:
    """A run, by what its recipe says."""

    name: str
    extends: str
    blocks: Mapping[str, Mapping[str, Any]]


BASE: dict[str, dict[str, Any]] = {
    "data": {"name": "folder", "batch_size": BATCH, "val_batch_size": 25, "loader": "torch"},
    "optim": {"lr": 0.05, "schedule": {"warmup_epochs": 0}},
}
PHASES = dict.fromkeys(("warmup_epochs", "sparse_epochs", "dense_epochs", "last_dense_epochs", "last_sparse_epochs"), 1)
ADAMW = {"name": "adamw", "lr": 0.01}
ALWAYS, OFTEN, EPOCH_ENDS = ({"every_minutes": each} for each in (1e-6, 0.002, None))
CASES = (
    Case("AC/DC", "demo", {"sparsity": PHASES, "checkpoint": ALWAYS}),
    Case("AC/DC, AdamW", "demo", {"sparsity": PHASES, "optim": ADAMW, "checkpoint": OFTEN}),
    Case("AC/DC, FFCV", "demo", {"sparsity": PHASES, "data": {"loader": "ffcv"}, "checkpoint": OFTEN}),
    Case("GMP", "demo_gmp", {"optim": {"accumulate": 2, "clip_norm": 1.0}, "checkpoint": EPOCH_ENDS}),
    Case("RigL", "demo_rigl", {"sparsity": {"every": 3}, "checkpoint": ALWAYS}),
    Case("RigL, AdamW", "demo_rigl", {"sparsity": {"every": 3}, "optim": ADAMW, "checkpoint": OFTEN}),
    Case("Top-KAST", "demo_topkast", {"sparsity": {"every": 3}, "checkpoint": OFTEN}),
    Case("WoodFisher", "demo_woodfisher", {"sparsity": {"samples": 10, "fisher_batch_size": 8}, "checkpoint": ALWAYS}),
    Case("lottery", "demo_lottery", {"checkpoint": OFTEN}),
    Case("DeepR", "demo_deepr", {"checkpoint": EPOCH_ENDS | {"every_epochs": 3}}),
)
WORKERS = Case("AC/DC, 2 workers", "demo", {"sparsity": PHASES, "data": {"workers": 2}, "checkpoint": OFTEN})
"""Of the loader: it reads the folder of images itself."""


@dataclass(frozen=True)
class Hit:
    """A process that was killed."""

    work: str
    moment: str
    place: str
    state: str
    """Of data writing: what was there afterwards."""
    lost: int
    """Of training: steps that had to be done again."""


# What must hold


def watch_training(watch: Watch) -> None:
    """To be called in the process that trains, whose places and steps are then known."""
    watch.mark(validation, "evaluate", "validation", then="end of an epoch")
    watch.mark(JsonLines, "log", "record", then="between record and checkpoint")
    watch.mark(checkpoint, "save_masks", "masks")
    watch.mark(checkpoint, "save_model", "model")
    watch.mark(RunDir, "start", "first files")
    watch.mark(RunDir, "record_provenance", "provenance")
    watch.mark(RunDir, "rewind_metrics", "rewinding the records")
    watch.mark(RunDir, "finish", "summary", then="end")
    assemble, save = training_run.assemble, checkpoint.save_state

    def watched(*arguments: Any) -> Any:
        parts = assemble(*arguments)
        after_step = parts.sparsifier.after_step

        def counted(moment: Any) -> None:
            if watch.first < 0:
                watch.first = moment.step
            after_step(moment)
            watch.done = moment.step + 1

        parts.sparsifier.after_step = counted
        watch.mark(parts.train, "epoch", "within an epoch", then="within an epoch")
        return parts

    def saved(folder: Path, state: Mapping[str, Any]) -> None:
        began, before = time.perf_counter(), watch.place
        watch.place = b"checkpoint"
        watch.begun += 1
        save(folder, state)
        watch.saved = position(state)
        watch.written += 1
        watch.saving += time.perf_counter() - began
        watch.place = b"between epochs" if before.startswith(b"between") else before

    training_run.assemble, checkpoint.save_state = watched, saved


def position(state: Mapping[str, Any] | None) -> int:
    """Steps of the run that a checkpoint holds."""
    return state["epoch"] * STEPS + state["step"] if state else 0


def survey(run: RunDir, watch: Watch, before: int) -> tuple[int, int]:
    """Where the run goes on, and the steps that it has lost. before: where it went on the last time."""
    for path in run.checkpoints.glob("*.pt"):
        assert files.seal_holds(path), f"{path} is damaged"
    for path in run.path.rglob("*.safetensors"):
        load_tensors(path)
    state = checkpoint.load_state(run.checkpoints)
    now = position(state)
    assert watch.first in (-1, before), f"went on at step {watch.first}, not {before}"
    assert now >= max(before, watch.saved), f"goes on at step {now}, though {max(before, watch.saved)} was saved"
    done = max(before, watch.done)
    assert now <= done, f"goes on at step {now}, though only {done} are done"
    logged = [record["epoch"] for record in run.records()]
    assert logged == list(range(len(logged))), f"records of epochs {logged}"
    assert len(logged) >= (state["epoch"] if state else 0), f"records of epochs {logged} only, at step {now}"
    return now, done - now


def require_twins(alone: RunDir, killed: RunDir) -> None:
    differing = differences(alone, killed)
    assert not differing, f"{killed.path} differs from the run that was left alone: {differing}"
    ours, theirs = (_untimed(json.loads(run.summary.read_text())) for run in (alone, killed))
    assert ours == theirs, f"{killed.path}: another summary"
    ours, theirs = ({path.relative_to(run.path) for path in run.path.rglob("*")} for run in (alone, killed))
    assert ours == theirs, f"{killed.path}: other files: {ours ^ theirs}"


def _untimed(value: Any) -> Any:
    return {k: _untimed(v) for k, v in value.items() if k not in TIMES} if isinstance(value, dict) else value


def watch_writing(watch: Watch) -> None:
    """As `watch_training`."""
    watch.mark(write_beton, "write_beton", "images")
    watch.mark(manifest, "checksums", "reading back")
    watch.mark(manifest, "write", "manifest", then="between manifest and images")
    watch.mark(inventory, "write", "start", then="between the splits")


def version(beton: Path, known: Mapping[str, str]) -> str:
    """Which data set lies there: `none`, `refused` with the way out, or one of `known`, by its digest."""
    if not beton.exists():
        return "none"
    try:
        manifest.check_quick(beton)
    except DataError as error:
        return "refused" if re.search(r"[Ww]rite (it|the data set) again", str(error)) else str(error)
    manifest.check_full(beton)
    return known[digest(beton)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What is killed


class Campaign:
    """Everything lies in `folder`. What is drawn follows from `seed`; where it strikes depends on the machine, too."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self.hits: list[Hit] = []
        self.runs = Counter[str]()
        """That came to their end, after the kills, and were compared."""
        self._images = folder / "images"
        self.digits = folder / "digits"
        save_images(self._images, {"train": BATCH * STEPS, "val": VAL})
        inventory.write_set("folder", inventory.WriteOptions(source=self._images, out=self.digits, workers=0))

    def train(self, case: Case, moments: Sequence[str], kills: int) -> None:
        """For each of the moments a run that dies about so many times, beside one that is left alone."""
        folder = self._folder / "runs"
        folder.mkdir()
        draw = random.Random(f"{self._seed} {case.name}")
        alone = self.training(case, folder / "alone")
        alone.run(NEVER, draw)
        for moment in moments:
            killed = self.training(case, folder / "killed")
            run = RunDir(killed.folder)
            choose = self._choice(case, moment, alone, kills, draw)
            going_on = 0
            while killed.run(choose(), draw):
                going_on, lost = survey(run, killed.watch, going_on)
                self.hits.append(Hit(case.name, moment, killed.watch.place.decode(), "", lost))
            assert killed.watch.first in (-1, going_on)
            require_twins(RunDir(alone.folder), run)
            self.runs[case.name] += 1
            console.say(f"{case.name}, {moment}: {len(self.hits)} kills so far")
            shutil.rmtree(killed.folder)
        shutil.rmtree(folder)

    def training(self, case: Case, folder: Path) -> Process:
        """A run of the case in that folder, which its recipe lies beside."""
        recipe = folder.with_name("recipe.yaml")
        blocks = {name: BASE.get(name, {}) | dict(case.blocks.get(name, {})) for name in BASE.keys() | case.blocks}
        path = {"path": str(self._images if case is WORKERS else self.digits)}
        lines = {"extends": case.extends, "epochs": EPOCHS, **blocks, "data": blocks["data"] | path}
        recipe.write_text(yaml.safe_dump(lines))
        arguments = ["train", str(recipe), "--out", str(folder), "--resume", "auto"]
        return Process(arguments, folder, watch_training)

    def _choice(self, case: Case, moment: str, alone: Process, kills: int, draw: random.Random) -> Callable[[], Moment]:
        """Draws when a run is killed next, so that about `kills` are spread over it."""
        if moment == ANY:
            # longer each time, because a run that dies before each of its checkpoints never ends
            lengths = ((alone.seconds - alone.start) * 1.1**number / kills for number in itertools.count())
            return lambda: after(alone.start * draw.uniform(0.3, 1) + draw.uniform(0, 2 * next(lengths)))
        if moment == SAVING:
            watch = alone.watch
            each, last_call = watch.saving / watch.begun, max(1, 2 * watch.begun // (kills + 1))
            return lambda: while_saving(draw.randint(1, last_call), draw.uniform(0, 1.5 * each))
        counting = self.training(case, alone.folder.with_name("counting"))
        counting.run(Moment(chances={}), draw)
        require_twins(RunDir(alone.folder), RunDir(counting.folder))
        return _at_calls(counting.calls(), kills)

    def write(self, moment: str, replacing: bool, kills: int, images: Mapping[str, int]) -> None:
        """Data writing that dies so many times, each time from the beginning: first, or in place of other images."""
        work = WRITING[replacing]
        folder = self._folder / "sets"
        source, out = folder / "images", folder / "out"
        save_images(source, images)
        beginning = folder / "beginning"
        old = inventory.WriteOptions(source=source, out=beginning, workers=0, original=False, quality=50)
        if replacing:
            inventory.write_set("folder", old)
        draw = random.Random(f"{self._seed} {work}")
        # its workers are killed with nobody to tell them, unless it writes alone: then it can tell each call
        writing = _writing(source, out, 2 if moment == ANY else 0, force=replacing)
        known: dict[str, str] = {}
        _begin(out, beginning)
        known |= {digest(path): "old" for path in out.glob("*.beton")}
        writing.run(NEVER if moment == ANY else Moment(chances={}), draw)
        whole = _begin(folder / "whole", out)
        known |= {digest(path): "new" for path in whole.glob("*.beton")}
        length = writing.seconds
        at_calls = None if moment == ANY else _at_calls(writing.calls(), 2)
        done = 0
        while done < kills:
            _begin(out, beginning)
            if not writing.run(at_calls() if at_calls else after(draw.uniform(0, length)), draw):
                continue
            done += 1
            versions = {split: version(out / f"{split}.beton", known) for split in ("val", "train")}
            place, said = writing.watch.place.decode(), " and ".join(f"{split} {v}" for split, v in versions.items())
            # only there does one of the pair have its name and the other not
            torn = {"refused"} if place.startswith(("manifest", "between manifest")) else set()
            assert set(versions.values()) <= {"old" if replacing else "none", "new"} | torn, f"{versions} after {place}"
            again = _writing(source, out, 0, force=replacing or "refused" in versions.values())
            again.run(NEVER, draw)
            assert _contents(out) == _contents(whole), f"other files than those of the first writing, after {place}"
            self.hits.append(Hit(work, moment, place, said, 0))
            self.runs[work] += 1
        console.say(f"{work}, {moment}: {len(self.hits)} kills so far")
        shutil.rmtree(folder)


def _at_calls(counts: Mapping[str, int], kills: float) -> Callable[[], Moment]:
    """Every place and call is about as likely as any other, whether it comes once or a thousand times."""
    # no more, because those of a start and of an end come again after each kill
    chances = {call: min(0.08, kills / len(counts) / count) for call, count in counts.items()}
    return lambda: Moment(chances=chances)


def _writing(source: Path, out: Path, workers: int, force: bool) -> Process:
    arguments = ["data", "write", "folder", "--source", str(source), "--out", str(out), "--workers", str(workers)]
    return Process([*arguments, "--force"] if force else arguments, out, watch_writing)


def _begin(folder: Path, beginning: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    if beginning.exists():
        shutil.copytree(beginning, folder)
    return folder


def _contents(folder: Path) -> dict[str, Any]:
    """The digest of every file, and what the manifests say but for the time."""
    return {path.name: _manifest(path) if path.suffix == ".json" else digest(path) for path in folder.iterdir()}


def _manifest(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "created"}


def save_images(folder: Path, counts: Mapping[str, int]) -> None:
    """Real digits, as a folder for each class."""
    for split, count in counts.items():
        pixels, labels = demo_digits.digits(split)
        for index in range(0, len(labels), len(labels) // count):
            path = folder / split / str(labels[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(path)


# All of it


def runs(campaign: Campaign) -> None:
    campaign.train(WORKERS, [ANY], kills=6)
    for case in CASES:
        campaign.train(case, [ANY, SAVING, CALL], kills=8)


def sets(campaign: Campaign) -> None:
    for moment in (ANY, CALL):
        for replacing in (False, True):
            campaign.write(moment, replacing, kills=15, images={"train": 1600, "val": 400})


def report(campaign: Campaign, seconds: float) -> str:
    hits = campaign.hits
    lines = ["| what | kills | finished, bit-identical | steps lost, median | most |"]
    lines.append("|---|--:|--:|--:|--:|")
    for work, ended in campaign.runs.items():
        lost = [hit.lost for hit in hits if hit.work == work]
        steps = ("", "") if work in WRITING else (f"{statistics.median(lost):g}", str(max(lost)))
        lines.append(f"| {work} | {len(lost)} | {ended} of {ended} | {' | '.join(steps)} |")
    for title, writing in (("training", False), ("writing data", True)):
        struck = [hit for hit in hits if (hit.work in WRITING) == writing]
        if struck:
            lines += ["", *_places(title, struck)]
    if states := Counter(hit.state for hit in hits if hit.state):
        lines += ["", "| state afterwards | times |", "|---|--:|"]
        lines += [f"| {what} | {count} |" for what, count in sorted(states.items())]
    return "\n".join([*lines, "", f"{len(hits)} kills, {seconds:.0f} s"])


def _places(title: str, hits: Sequence[Hit]) -> Iterator[str]:
    columns = [moment for moment in (ANY, SAVING, CALL) if any(hit.moment == moment for hit in hits)]
    counts = Counter((_grouped(hit.place), hit.moment) for hit in hits)
    yield f"| {title}: where it died | {' | '.join(columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for place in sorted({place for place, _ in counts}):
        yield f"| {place} | {' | '.join(str(counts[place, column] or '') for column in columns)} |"


def _grouped(place: str) -> str:
    where, _, call = place.partition(": ")
    if where != "checkpoint" or not call:
        return where
    return {"fsync": f"{where}: fsync", "open": f"{where}: writing", "write": f"{where}: writing"}.get(
        call, f"{where}: renaming"
    )


def compile_ffcv(digits: Path) -> None:
    """Once, for all the forks."""
    from acdc_cli.data.ffcv import FFCVLoader

    plan = Plan(BATCH, lambda epoch: 28, Crop(PADDED, padding=2), shuffle=True)
    loader = FFCVLoader(BetonFile(digits / "train.beton"), plan, 1, torch.device("cpu"))
    loader.warm_up()
    loader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extent", choices=("runs", "sets"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder", type=Path, help="a new one, for the runs; those of a failure stay there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    campaign = Campaign(asked.folder, asked.seed)
    if asked.extent == "runs":
        compile_ffcv(campaign.digits)
    # or a fork could inherit a lock that nobody will give back
    assert threading.active_count() == 1
    {"runs": runs, "sets": sets}[asked.extent](campaign)
    sys.stdout.write(report(campaign, time.monotonic() - began) + "\n")


if __name__ == "__main__":
    main()
