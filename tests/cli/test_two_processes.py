"""A run of two processes is the run of one: its weights, its masks, its validation, and when it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from digits import TINY
from processes import RANKS, VIT, End, Work, together, untimed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from acdc_cli.errors import DataError
from acdc_cli.jobs.training_run import train
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training.checkpoint import load_masks, load_state
from acdc_cli.training.trainer import Trainer

PHASES = "warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1"
METHODS = {
    "acdc": f"{{method: acdc, target: 0.9, {PHASES}}}",
    "gmp": "{method: gmp, target: 0.9, every_epochs: 1, begin: 0, end: 3}",
    "rigl": "{method: rigl, target: 0.9, distribution: erk, every: 3}",
    "topkast": "{method: topkast, target: 0.9, backward_sparsity: 0.5, every: 3}",
    "snip": "{method: snip, target: 0.9, batches: 2}",
    "woodfisher": "{method: woodfisher, target: 0.9, every_epochs: 1, begin: 0, end: 3, samples: 9, "
    "fisher_batch_size: 2, fisher_block: 64}",
}
SETS = (
    VIT,
    "epochs=4",
    "data.val_batch_size=40",
    "optim={name: adamw, lr: 0.002, schedule: {name: linear}}",
)
AVERAGED = [method for method in METHODS if method != "topkast"]
"""Top-KAST takes no moving average: it frees weights at values that it kept for them."""
BATCH_NORM = ["epochs=2", "sparsity={method: dense}", "track.log_every=1000"]
"""Of the demo's ResNet-8, with seven batch norms, whose gradients fit into one message; 4 steps an epoch."""
DROPOUT = "model.options.drop_rate=0.1"
SOME = [method if method in ("acdc", "rigl") else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]
STOPPED_AT = 6
"""Steps that are done then: in the second epoch, which has four."""


def sets(method: str, *more: str) -> list[str]:
    average = ["ema.decay=0.75"] if method in AVERAGED else []
    teacher = ["task.teacher=last_dense"] if method == "acdc" else []
    return [*SETS, *average, *teacher, f"sparsity={METHODS[method]}", *more]


@dataclass(frozen=True)
class Run:
    """A work of two processes: train a recipe."""

    recipe: Path
    sets: list[str]
    out: str
    resume: bool = False

    def __call__(self, rank: int, folder: Path) -> None:
        train(str(self.recipe), self.sets, folder / self.out, self.resume)


@dataclass(frozen=True)
class Counted:
    """A run that writes down which messages the ranks exchange in the steps of its second epoch."""

    run: Run

    def __call__(self, rank: int, folder: Path) -> None:
        train_steps = Trainer._train

        def counted(trainer: Trainer) -> None:
            if trainer._epoch != 1:
                train_steps(trainer)
                return
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                train_steps(trainer)
            names = [str(event.name) for event in seen.events()]
            messages = Counter(name for name in names if name.startswith("c10d::"))
            (folder / f"{self.run.out}-{rank}.messages").write_text(json.dumps(messages))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_train", counted)
            self.run(rank, folder)


@dataclass(frozen=True)
class Disturbed:
    """A run in which something befalls one of the two after a few steps."""

    run: Run
    what: Callable[[Trainer], None]
    rank: int = 1

    def __call__(self, rank: int, folder: Path) -> None:
        steps, take_step = 0, Trainer._take_step

        def disturbed(trainer: Trainer, *arguments: Any) -> Tensor:
            nonlocal steps
            loss = take_step(trainer, *arguments)
            steps += 1
            if steps == STOPPED_AT and rank == self.rank:
                self.what(trainer)
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_take_step", disturbed)
            self.run(rank, folder)


def ask_to_stop(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop_without_a_disk(trainer: Trainer) -> None:
    shutil.rmtree(trainer._run.checkpoints)
    ask_to_stop(trainer)


def flip_a_mask(trainer: Trainer) -> None:
    mask = next(iter(trainer._parts.sparsifier.masked.masks.values()))
    mask.view(-1)[0] ^= True


def flip_a_weight(trainer: Trainer) -> None:
    weight = next(iter(trainer._parts.sparsifier.masked.parameters.values())).detach()
    weight.view(-1).view(torch.int32)[7] ^= 1


def find_damage(trainer: Trainer) -> None:
    raise DataError("image 7 is damaged")


def break_down(trainer: Trainer) -> None:
    raise OSError("broken")


def wrong_images(recipe: Path, digits: Path, rank: int, folder: Path) -> None:
    """The second process has its own images."""
    own = folder / f"digits-{rank}"
    own.mkdir()
    for name in ("train", "val"):
        for suffix in (".beton", ".beton.json"):
            (own / f"{name}{suffix}").symlink_to(digits / f"{'val' if rank else name}{suffix}")
    train(str(recipe), [*sets("gmp"), f"data.path={own}"], folder / "wrong images")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        f"""extends: demo
name: small
data: {{name: folder, path: {digits}, batch_size: 50, loader: torch, {TINY}}}
device: cpu
"""
    )
    return path


@dataclass(frozen=True)
class TwoProcesses:
    folder: Path
    raised: dict[str, list[str]]
    ends: dict[str, list[End]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path, digits: Path) -> TwoProcesses:
    """All runs of two processes, made by one pair of them."""
    folder = tmp_path_factory.mktemp("two")
    run = partial(Run, recipe_file)
    cut, whole = run(sets("rigl", DROPOUT), "cut"), run(sets("rigl", DROPOUT), "whole")
    works: dict[str, Work] = {name: run(sets(name), name) for name in METHODS}
    works |= {
        "whole": whole,
        "cut": Disturbed(cut, ask_to_stop),
        "gone on": Run(recipe_file, cut.sets, cut.out, resume=True),
        "mask": Disturbed(run(sets("gmp"), "mask"), flip_a_mask),
        "weight": Disturbed(run(sets("gmp"), "weight"), flip_a_weight),
        "uneven": run(sets("gmp", "data.batch_size=51"), "uneven"),
        "sync_bn": run(sets("gmp", "sync_bn=true"), "sync_bn"),
        "wrong images": partial(wrong_images, recipe_file, digits),
        "messages": Counted(Run(recipe_file, BATCH_NORM, "messages")),
        "messages of parts": Counted(Run(recipe_file, [*BATCH_NORM, "optim.accumulate=5"], "messages of parts")),
    }
    ends = dict(zip(works, together(list(works.values()), folder), strict=True))
    # these leave the pair apart, so that it cannot meet again
    for name, what in (("damage", find_damage), ("broken", break_down)):
        [ends[name]] = together([Disturbed(run(sets("gmp"), name), what)], folder)
    [ends["no disk"]] = together([Disturbed(run(sets("gmp"), "no disk"), stop_without_a_disk, rank=0)], folder)
    return TwoProcesses(folder, {name: [end.raised for end in processes] for name, processes in ends.items()}, ends)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Callable[[str, int], RunDir]:
    """The run of one process whose batches are cut into that many parts."""
    folder, made = tmp_path_factory.mktemp("one"), {}

    def run(method: str, parts: int) -> RunDir:
        if (method, parts) not in made:
            out = folder / f"{method}-{parts}"
            made[method, parts] = train(str(recipe_file), sets(method, f"optim.accumulate={parts}"), out)
        return made[method, parts]

    return run


def weights(run: RunDir) -> dict[str, Tensor]:
    state = load_state(run.checkpoints)
    assert state is not None
    averages = {f"ema of {name}": value for name, value in (state["ema"] or {"average": {}})["average"].items()}
    return state["model"] | averages


def masks(run: RunDir) -> dict[str, dict[str, Tensor]]:
    by_file = {path.name: load_masks(path) for path in run.masks.iterdir()}
    assert by_file
    return by_file


@pytest.mark.parametrize("work", ["messages", "messages of parts"])
def test_a_step_sends_its_gradients_and_one_request_and_no_buffers(two: TwoProcesses, work: str) -> None:
    assert two.raised[work] == ["", ""]
    for rank in range(RANKS):
        sent = json.loads((two.folder / f"{work}-{rank}.messages").read_text())
        # of each of 4 steps: gradients, and the request to save or stop; at the end one look at the loss
        assert sent["c10d::allreduce_"] == 4 * 2
        assert "c10d::broadcast_" not in sent


@pytest.mark.parametrize("method", SOME)
def test_two_processes_train_as_one_that_cuts_its_batches_in_two_to_the_bit(
    two: TwoProcesses, alone: Callable[[str, int], RunDir], method: str
) -> None:
    assert two.raised[method] == ["", ""]
    one, split = alone(method, 2), RunDir(two.folder / method)
    expected, actual = weights(one), weights(split)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert_same_masks(one, split)


@pytest.mark.parametrize("method", SOME)
def test_two_processes_train_as_one_with_whole_batches_but_for_rounding(
    two: TwoProcesses, alone: Callable[[str, int], RunDir], method: str
) -> None:
    one, split = alone(method, 1), RunDir(two.folder / method)
    assert_same_masks(one, split)
    expected, actual = weights(one), weights(split)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_recorded_is_of_all_images_each_once(
    two: TwoProcesses, alone: Callable[[str, int], RunDir], method: str
) -> None:
    # of three validation batches, the last of 20 images, one process judges two
    for theirs, ours in zip(alone(method, 2).records(), RunDir(two.folder / method).records(), strict=True):
        assert ours["top1"] == theirs["top1"]
        assert ours["top5"] == theirs["top5"]
        assert ("ema_top1" in ours) == (method in AVERAGED)
        assert ours.get("ema_top1") == theirs.get("ema_top1")
        for key in ("train_loss", "val_loss", "entropy", *(["ema_val_loss"] if method in AVERAGED else [])):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6)
        exact = ("step", "sparsity", "layers", "train_flops", "lr")
        assert [ours[key] for key in exact] == [theirs[key] for key in exact]


def test_a_signal_to_one_stops_both_at_the_same_step_and_they_go_on_to_the_same_bits(two: TwoProcesses) -> None:
    assert two.raised["whole"] == ["", ""]
    for raised in two.raised["cut"]:
        # the signal came within step 2; no rank waits for the other's answer before the next step
        assert raised.startswith("Stopped: stopped and saved after step 3 of 4 of epoch 1;")
    assert two.raised["gone on"] == ["", ""]
    whole, cut = RunDir(two.folder / "whole"), RunDir(two.folder / "cut")
    expected, actual = weights(whole), weights(cut)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert untimed(whole.records()) == untimed(cut.records())


def test_each_process_drops_other_activations(two: TwoProcesses) -> None:
    state = load_state(RunDir(two.folder / "whole").checkpoints)
    assert state is not None
    first, second = (process["random"]["cpu"] for process in state["processes"])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("what", ["mask", "weight"])
def test_a_process_that_trains_another_model_is_named_and_the_run_stops(two: TwoProcesses, what: str) -> None:
    for raised in two.raised[what]:
        message = raised.splitlines()[0]
        assert message.startswith("RunError: rank 1 of 2 no longer trains the same model: its ")
        assert f"{what}s of blocks.0.attn.qkv.weight differ from those of rank 0 (1 of 8 tensors differ)" in message
    assert [record["epoch"] for record in RunDir(two.folder / what).records()] == [0, 1]


def test_a_batch_that_does_not_divide_names_those_that_do(two: TwoProcesses) -> None:
    expected = (
        "RecipeError: data.batch_size: 51 images do not divide over 2 processes × 1 parts (optim.accumulate); "
        "use 50 or 52, or 1, 3, 17, 51 processes"
    )
    assert [raised.splitlines()[0] for raised in two.raised["uneven"]] == [expected, expected]


def test_batch_norm_is_not_synchronised_over_cpus(two: TwoProcesses) -> None:
    for raised in two.raised["sync_bn"]:
        assert raised.startswith(
            "RunError: sync_bn: torch synchronises batch norm only on GPUs; use --set sync_bn=false"
        )


def test_processes_with_other_images_do_not_train_together(two: TwoProcesses) -> None:
    for raised in two.raised["wrong images"]:
        assert raised.startswith("RunError: the data set of rank 1 of 2 differs from that of rank 0")
    assert not (two.folder / "wrong images").exists()


def test_what_only_one_process_finds_it_says_and_the_other_ends_silently(two: TwoProcesses) -> None:
    other, finder = two.ends["damage"]
    assert finder.raised.startswith("DataError: image 7 is damaged")
    assert finder.speaks
    assert other.raised.startswith("SystemExit: 1")
    assert not other.speaks


def test_a_run_that_stops_and_cannot_be_saved_says_so_once(two: TwoProcesses) -> None:
    first, other = two.ends["no disk"]
    assert first.raised.startswith("RunError")
    assert "checkpoints was moved away or replaced" in first.raised
    assert first.speaks
    assert other.raised.startswith("SystemExit: 1")
    assert not other.speaks


def test_when_one_process_breaks_the_other_says_so_and_ends_too(two: TwoProcesses) -> None:
    other, broken = two.ends["broken"]
    assert broken.raised.startswith("OSError: broken")
    assert other.raised.startswith("SystemExit: 1")
    assert other.speaks


def test_what_both_processes_find_one_says(two: TwoProcesses) -> None:
    assert [end.speaks for end in two.ends["uneven"]].count(True) == 1


def assert_same_masks(one: RunDir, other: RunDir) -> None:
    expected, actual = masks(one), masks(other)
    assert expected.keys() == actual.keys()
    for file, layers in expected.items():
        assert all(torch.equal(mask, actual[file][name]) for name, mask in layers.items())
