"""Verdicts, and those that the numbers do not carry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command import Acdc
from made import Made, in_memory, study

from acdc_cli.studies import advise_study
from acdc_cli.studies.advice import Advice, Lengths, Verdict, advise, lengths
from acdc_cli.studies.summary import Summary, summarise


def runs(sparsity: str | float, epochs: int, top1: float, loss: float, entropy: float, seeds: int = 3) -> list[Made]:
    """Their spread is a hundredth of each number."""
    shares = [1 + 0.01 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    return [
        Made(sparsity, epochs, seed, top1=top1 * share, loss=loss * share, entropy=entropy * share)
        for seed, share in enumerate(shares)
    ]


def of(*groups: Sequence[Made]) -> Summary:
    return summarise("runs", [in_memory(run) for group in groups for run in group], "epochs")


def verdict(*groups: Sequence[Made], epochs: int = 8) -> Verdict | None:
    return advice(*groups, epochs=epochs).verdict


def advice(*groups: Sequence[Made], epochs: int = 8) -> Advice:
    (given,) = [given for given in advise(of(*groups)) if given.group.epochs == epochs]
    return given


DENSE = runs("dense", 8, top1=0.9, loss=0.1, entropy=0.2)


def test_loss_and_entropy_above_the_dense_models_and_longer_runs_better_is_under_trained() -> None:
    assert verdict(DENSE, runs(0.9, 8, 0.7, 0.2, 0.4), runs(0.9, 16, 0.8, 0.15, 0.3)) == "under-trained"


def test_a_collapsed_run_is_called_that_whatever_its_loss() -> None:
    group = runs(0.98, 8, 0.4, 2.0, 2.0)
    group[1] = replace(group[1], largest_weight=219.0)
    told = advice(DENSE, group)
    assert told.verdict == "collapsed"
    assert told.reason.startswith(
        "1 of 3 runs: the largest weight grew from 1 to 219 in the sparse phase of epoch 7; set "
    )


def test_without_longer_runs_it_only_looks_so() -> None:
    assert verdict(DENSE, runs(0.9, 8, 0.7, 0.2, 0.4)) == "looks under-trained"


def test_where_longer_runs_are_no_better_there_is_no_verdict() -> None:
    given = advice(DENSE, runs(0.9, 8, 0.7, 0.2, 0.4), runs(0.9, 16, 0.7, 0.2, 0.4))
    assert given.verdict is None
    assert given.reason == "loss and entropy are above the reference, but 16 epochs were no more accurate"


def test_where_it_is_no_better_than_a_shorter_one_there_is_no_verdict() -> None:
    given = advice(DENSE, runs(0.9, 4, 0.7, 0.2, 0.4), runs(0.9, 8, 0.7, 0.2, 0.4))
    assert given.verdict is None
    assert "but 4 epochs were as accurate" in given.reason


def test_on_a_level_with_the_dense_model_it_is_not_under_trained() -> None:
    assert verdict(DENSE, runs(0.9, 8, 0.89, 0.1, 0.2)) == "not under-trained"


def test_a_spread_that_hides_a_difference_is_no_evidence_for_a_level() -> None:
    wide = [Made(0.9, 8, seed, top1=0.8, loss=loss, entropy=2 * loss) for seed, loss in enumerate((0.1, 0.11, 2.0))]
    given = advice(DENSE, wide)
    assert given.loss is not None
    assert given.loss < 1
    assert given.verdict is None


@pytest.mark.parametrize(("loss", "entropy"), [(0.2, 0.2), (0.1, 0.4)])
def test_where_loss_and_entropy_disagree_there_is_no_verdict(loss: float, entropy: float) -> None:
    assert verdict(DENSE, runs(0.9, 8, 0.8, loss, entropy)) is None


def test_below_the_level_and_less_accurate_than_before_is_past_the_best_length() -> None:
    after = runs(0.5, 8, 0.8, 0.05, 0.1)
    assert verdict(DENSE, runs(0.5, 4, 0.9, 0.1, 0.2), after) == "past its best length"
    assert verdict(DENSE, runs(0.5, 4, 0.7, 0.1, 0.2), after) == "not under-trained"


def test_on_a_level_but_better_when_longer_is_no_verdict() -> None:
    assert verdict(DENSE, runs(0.9, 8, 0.8, 0.1, 0.2), runs(0.9, 16, 0.89, 0.09, 0.19)) is None


def test_the_reference_is_the_most_accurate_dense_model() -> None:
    worse, best = runs("dense", 4, 0.8, 0.3, 0.6), runs("dense", 16, 0.95, 0.1, 0.2)
    given = advice(worse, best, runs(0.9, 8, 0.9, 0.3, 0.6))
    assert given.reference is not None
    assert given.reference.epochs == 16
    assert given.verdict == "looks under-trained"


def test_a_verdict_holds_against_every_dense_length_that_is_as_accurate() -> None:
    other = runs("dense", 16, 0.899, 0.05, 0.1)
    level = runs(0.9, 8, 0.89, 0.1, 0.2)
    assert verdict(DENSE, level) == "not under-trained"
    given = advice(DENSE, other, level)
    assert [group.epochs for group in given.equals] == [16]
    assert given.verdict is None
    assert "dense, 16 epochs, is about as accurate" in given.reason


@pytest.mark.parametrize(("dense", "sparse"), [(1, 3), (3, 1), (1, 1)])
def test_one_run_carries_no_verdict(dense: int, sparse: int) -> None:
    given = advice(runs("dense", 8, 0.9, 0.1, 0.2, dense), runs(0.9, 8, 0.1, 9, 2, sparse))
    assert given.verdict is None
    assert "one run" in given.reason


def test_no_dense_run_and_none_better_carries_no_verdict() -> None:
    given = advice(runs(0.9, 8, 0.7, 0.2, 0.4))
    assert (given.verdict, given.reference) == (None, None)


def test_without_a_dense_model_the_best_known_one_is_the_reference() -> None:
    best = runs(0.8, 16, 0.9, 0.1, 0.2)
    given = advice(best, runs(0.9, 8, 0.7, 0.2, 0.4))
    assert given.reference is not None
    assert (given.reference.series, given.verdict) == ("80 %", "looks under-trained")
    # which may be under-trained itself
    assert verdict(best, runs(0.9, 8, 0.89, 0.1, 0.2)) is None


def test_a_loss_that_is_no_number_carries_no_verdict() -> None:
    broken = [Made(0.9, 8, 0), Made(0.9, 8, 1, loss=None)]
    given = advice(DENSE, broken)
    assert given.verdict is None
    assert "is missing, NaN or infinite" in given.reason


def known(*groups: Sequence[Made]) -> Lengths:
    (series,) = of(*groups).series
    return lengths(series)


def test_lengths_within_a_deviation_of_the_best_are_supported() -> None:
    lengths = known(
        runs(0.9, 4, 0.7, 1, 1), runs(0.9, 8, 0.9, 1, 1), runs(0.9, 16, 0.897, 1, 1), runs(0.9, 32, 0.8, 1, 1)
    )
    assert lengths.supported == (8, 16)
    assert lengths.note == "8 has the highest mean top-1"


def test_that_a_supported_length_is_the_first_or_the_last_is_said() -> None:
    lengths = known(runs(0.9, 4, 0.9, 1, 1), runs(0.9, 8, 0.897, 1, 1))
    assert lengths.supported == (4, 8)
    assert lengths.note == "4 has the highest mean top-1; 8 is the longest tried; 4 is the shortest tried"


def test_what_still_rises_at_the_longest_is_said() -> None:
    lengths = known(runs(0.9, 4, 0.7, 1, 1), runs(0.9, 8, 0.9, 1, 1))
    assert lengths.supported == (8,)
    assert "top-1 still rose from 4 to 8, the longest; longer runs may help" in lengths.note


def test_lengths_of_one_run_tell_nothing() -> None:
    lengths = known(runs(0.9, 4, 0.7, 1, 1), runs(0.9, 8, 0.9, 1, 1, seeds=1))
    assert lengths.supported == ()


def test_a_length_of_one_run_is_left_out_and_named() -> None:
    lengths = known(runs(0.9, 4, 0.7, 1, 1), runs(0.9, 8, 0.9, 1, 1), runs(0.9, 16, 0.99, 1, 1, seeds=1))
    assert lengths.supported == (8,)
    assert "16 is left out because it has only one run" in lengths.note


def test_missing_runs_are_said() -> None:
    lengths = known(runs(0.9, 4, 0.7, 1, 1), [*runs(0.9, 8, 0.9, 1, 1, seeds=2), Made(0.9, 8, 2, done=False)])
    assert "some runs of 8 epochs are missing" in lengths.note


STUDY = [*DENSE, *runs(0.9, 8, 0.7, 0.2, 0.4), *runs(0.9, 16, 0.8, 0.15, 0.3)]


def test_the_command_prints_the_numbers_that_it_rests_on(acdc: Acdc, in_tmp: Path) -> None:
    done = acdc("advise", study(in_tmp / "s", STUDY))
    assert done.exit_code == 0
    assert "0.2000 ± 0.0020" in done.stdout
    assert "90 %, 8 epochs: under-trained: " in done.stdout
    assert "; 16 epochs were more accurate" in done.stdout
    assert "90 %: lengths supported: 16" in done.stdout
    assert "arXiv 2308.02060" in done.stderr


def test_run_directories_are_compared_as_a_study_is(acdc: Acdc, in_tmp: Path) -> None:
    folder = study(in_tmp / "s", STUDY)
    given = json.loads(acdc("advise", *sorted((folder / "runs").iterdir()), "--json").stdout)
    studied = json.loads(acdc("advise", folder, "--json").stdout)
    assert sorted(map(str, given["advice"])) == sorted(map(str, studied["advice"]))
    assert {each["verdict"] for each in given["advice"]} == {"under-trained", "looks under-trained"}


@pytest.mark.parametrize("source", ["s", "s.yaml"])
def test_a_study_is_named_as_for_the_report_and_axes_that_advance_with_the_epochs_part_nothing(
    acdc: Acdc, in_tmp: Path, source: str
) -> None:
    zipped = [replace(made, axes={"optim.lr": 1 / made.epochs}) for made in STUDY]
    folder = study(in_tmp / "studies" / "s", zipped)
    text = "name: s\nbase: demo\naxes: {epochs: [8, 16], optim.lr: [0.1, 0.2], seed: [0]}\nzip: [[epochs, optim.lr]]\n"
    for file in (in_tmp / "s.yaml", folder / "study.yaml"):
        file.write_text(text)
    document = json.loads(acdc("advise", folder if source == "s" else source, "--json").stdout)
    assert [each["series"] for each in document["lengths"]] == ["dense", "90 %"]
    assert document["lengths"][1]["epochs"] == [16]


def test_a_study_that_comes_with_acdc_goes_by_its_name(acdc: Acdc, in_tmp: Path) -> None:
    done = acdc("advise", "epoch_length")
    assert "studies/epoch_length is not a study directory" in done.stderr


def test_runs_of_other_images_are_no_reference(acdc: Acdc, in_tmp: Path) -> None:
    other = [Made(made.sparsity, 8, made.seed, loss=made.loss, overrides=("data.resolution=20",)) for made in DENSE]
    folders = [made.write(in_tmp / f"{i}") for i, made in enumerate([*other, *runs(0.9, 8, 0.7, 0.2, 0.4)])]
    (given,) = json.loads(acdc("advise", *folders, "--json").stdout)["advice"]
    assert given["reference"] is None
    assert "of the same data and model" in given["because"]


def test_a_run_that_goes_on_is_left_out_and_named(acdc: Acdc, in_tmp: Path) -> None:
    going = Made(0.9, 8, 2, done=False, ended=3)
    done = acdc("advise", study(in_tmp / "s", [*DENSE, *runs(0.9, 8, 0.7, 0.2, 0.4, seeds=2), going]))
    assert f"left out, because it is unfinished: {going.key}" in done.stderr.replace("\n", " ")


def test_a_loss_that_is_not_finite_is_shown_as_that(in_tmp: Path) -> None:
    folder = study(in_tmp / "s", [Made("dense", 8, 0), Made(0.9, 8, 0, loss=None)])
    assert advise_study.group_rows(advise_study.advise([str(folder)])) == [
        ["dense", "8", "1", "90.00", "0.1000", "0.1000"],
        ["90 %", "8", "1", "90.00", "not finite", "0.1000"],
    ]


def test_a_study_is_advised_on_alone_and_once_a_run_has_ended(acdc: Acdc, in_tmp: Path) -> None:
    waits, run = study(in_tmp / "s", [Made(0.9, 8, 0, done=False, ended=3)]), Made("dense", 8, 0).write(in_tmp / "run")
    for sources, said in (([waits, run], "s is a study; give one study, or run"), ([waits], "none of these runs has")):
        done = acdc("advise", *sources)
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_what_is_no_run_is_an_error_with_the_way_out(acdc: Acdc, in_tmp: Path, name: str) -> None:
    (in_tmp / "empty").mkdir()
    done = acdc("advise", in_tmp / name)
    assert done.exit_code == 2
    assert "no resolved.yaml" in done.stderr
