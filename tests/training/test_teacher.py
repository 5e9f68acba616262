"""Distillation: the loss, when a teacher teaches, and that a run with one resumes as if never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mini_trainer import CPU, MiniRun, StopAtCall, small_network
from numpy.typing import NDArray
from torch import Tensor, nn

from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Measured, TeacherCost, nominal
from acdc_cli.data.inputs.images import normalisation
from acdc_cli.errors import CheckpointError, Stopped
from acdc_cli.recipe.blocks.task import DistillationBlock, TaskBlock
from acdc_cli.tasks.base import registry
from acdc_cli.tasks.multiclass import Task
from acdc_cli.training import checkpoint
from acdc_cli.training.evaluate import forward_of
from acdc_cli.training.teacher import LastDense, Teacher

# dense 0, sparse 1, dense 2-3, sparse 4-5
EPOCHS = 6
ACDC = {
    "method": "acdc",
    "target": 0.75,
    "distribution": "uniform",
    "warmup_epochs": 1,
    "sparse_epochs": 1,
    "dense_epochs": 1,
    "last_dense_epochs": 2,
    "last_sparse_epochs": 2,
}
SHARES = st.floats(0, 1, width=32)


def a_teacher(kind: type[Teacher], seed: int = 5, **keys: float) -> Any:
    model = small_network()
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    forward = forward_of(model, normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.5), CPU))
    about = () if kind is LastDense else (f"digest {seed}",)
    return kind(model, forward, Task(), DistillationBlock(**keys), *about)


def softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


@given(weight=SHARES, hard=SHARES, temperature=st.floats(0.5, 20, width=32), seed=st.integers(0, 99))
def test_the_loss_is_hintons(weight: float, hard: float, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(4, 3, generator=generator) for _ in range(2))
    block = DistillationBlock(weight=weight, hard=hard, temperature=temperature)
    teacher = Teacher(nn.Identity(), lambda images: theirs, Task(), block, "")
    divergences, crossed = [], []
    for q, p in zip(ours.double().numpy(), theirs.double().numpy(), strict=True):
        warm_q, warm_p = softmax(q / temperature), softmax(p / temperature)
        divergences.append(sum(warm_p * (np.log(warm_p) - np.log(warm_q))))
        crossed.append(-np.log(softmax(q)[p.argmax()]))
    guided = (1 - hard) * temperature**2 * np.mean(divergences) + hard * np.mean(crossed)
    loss = teacher.loss(torch.tensor(1.5), ours, torch.zeros(4))
    assert float(loss) == pytest.approx((1 - weight) * 1.5 + weight * guided, rel=2e-4, abs=1e-5)


def test_hard_answers_alone_are_the_cross_entropy_with_them() -> None:
    theirs = torch.tensor([[0.0, 3.0, 1.0]])
    teacher = Teacher(nn.Identity(), lambda images: theirs, Task(), DistillationBlock(weight=1, hard=1), "")
    loss = teacher.loss(torch.tensor(9.0), torch.zeros(1, 3), torch.zeros(1))
    assert float(loss) == pytest.approx(np.log(3))


def test_several_labels_each_have_a_divergence_of_yes_and_no() -> None:
    task = registry.build(TaskBlock(name="multilabel"), ("red", "round"), "bits")
    ours, theirs = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -2.0]])
    teacher = Teacher(nn.Identity(), lambda images: theirs, task, DistillationBlock(weight=1, temperature=2), "")
    # the first label's are equal; the second's: yes 0.731 against 0.269, and no the other way round
    yes, no = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))
    divergence = no * np.log(no / yes) + yes * np.log(yes / no)
    loss = teacher.loss(torch.tensor(9.0), ours, torch.zeros(1))
    assert float(loss) == pytest.approx(2**2 * divergence / 2, rel=1e-6)


def test_the_gradient_is_that_of_the_student_alone() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    teacher = a_teacher(Teacher)
    teacher.loss(logits.sum(), logits, torch.zeros(2, 3, 8, 8)).backward()
    assert logits.grad is not None
    assert bool(logits.grad.abs().sum() > 0)
    assert all(weight.grad is None for weight in teacher.model.parameters())


def run(folder: Path, teacher: Teacher | None, **more: Any) -> MiniRun:
    return MiniRun(folder, EPOCHS, ACDC, teacher=teacher, **more)


def end(finished: MiniRun) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in finished.model.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_teacher_without_weight_changes_nothing_and_one_with_weight_does(tmp_path: Path) -> None:
    runs = {
        name: run(tmp_path / name, teacher)
        for name, teacher in (
            ("without", None),
            ("mute", a_teacher(Teacher, weight=0.0)),
            ("heard", a_teacher(Teacher)),
        )
    }
    for each in runs.values():
        # of the dropout
        torch.manual_seed(1)
        each.fit()
    assert equal(end(runs["without"]), end(runs["mute"]))
    assert not equal(end(runs["without"]), end(runs["heard"]))


def test_the_record_has_the_taught_loss_and_the_labels_cross_entropy(tmp_path: Path) -> None:
    teacher = a_teacher(LastDense)
    taught = run(tmp_path, teacher)
    taught.fit()
    differs = [record["train_loss"] != record["train_cross_entropy"] for record in taught.directory.records()]
    assert differs == [False, True, False, False, True, True]


def test_the_last_dense_model_teaches_as_it_was_before_it_was_pruned(tmp_path: Path) -> None:
    teacher = a_teacher(LastDense)
    taught = run(tmp_path, teacher)
    at_start: dict[int, dict[str, Tensor]] = {}
    original = taught.sparsifier.on_epoch_start

    def noted(moment: Any) -> None:
        at_start[moment.epoch] = end(taught)
        original(moment)

    taught.sparsifier.on_epoch_start = noted  # type: ignore[method-assign]
    taught.fit()
    assert equal(teacher.model.state_dict(), at_start[4])
    assert not teacher.model.training


def test_a_teacher_stays_as_it_was(tmp_path: Path) -> None:
    teacher = a_teacher(Teacher)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    run(tmp_path, teacher).fit()
    assert equal(before, teacher.model.state_dict())


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Teacher]], MiniRun]:
    """The run with such a teacher that nothing interrupts, trained once."""

    @cache
    def whole(kind: type[Teacher]) -> MiniRun:
        done = run(tmp_path_factory.mktemp("whole"), a_teacher(kind))
        done.fit()
        return done

    return whole


# three steps and three batches of validation in an epoch, each of which asks once
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        *((LastDense, call) for call in (8, 13, 26, 34)),
        # one from elsewhere is the same throughout
        *(pytest.param(Teacher, call, marks=pytest.mark.slow if call in (8, 13) else ()) for call in (8, 13, 26, 34)),
    ],
)
def test_a_taught_run_resumes_to_the_bit(
    tmp_path: Path, wholes: Callable[[type[Teacher]], MiniRun], kind: type[Teacher], call: int
) -> None:
    whole = wholes(kind)
    parted = run(tmp_path / "parted", a_teacher(kind), stop_asked=StopAtCall(call))
    with pytest.raises(Stopped):
        parted.fit()
    # what an own teacher was before it began does not matter
    again = run(tmp_path / "parted", a_teacher(kind, seed=5 if kind is Teacher else 6))
    state = checkpoint.load_state(again.directory.checkpoints)
    assert state is not None
    again.trainer.load_state_dict(state)
    again.fit()
    assert equal(end(whole), end(again))


def test_a_run_resumes_with_its_own_teacher_only(tmp_path: Path) -> None:
    begun = run(tmp_path, a_teacher(Teacher), stop_asked=StopAtCall(8))
    with pytest.raises(Stopped):
        begun.fit()
    state = checkpoint.load_state(begun.directory.checkpoints)
    assert state is not None
    with pytest.raises(CheckpointError, match="not the one with which the run began"):
        run(tmp_path, a_teacher(Teacher, seed=6)).trainer.load_state_dict(state)


@pytest.mark.parametrize(
    ("epoch", "step", "fits"), [(1, 0, True), (2, 1, True), (4, 0, True), (4, 1, False), (5, 0, False)]
)
def test_a_state_within_a_sparse_phase_needs_its_dense_model(tmp_path: Path, epoch: int, step: int, fits: bool) -> None:
    teacher, phases = a_teacher(LastDense), run(tmp_path, None).sparsifier.phases
    if fits:
        teacher.load_state_dict(None, phases, epoch, step)
    else:
        with pytest.raises(CheckpointError, match="fork from a state at the end of a dense phase"):
            teacher.load_state_dict(None, phases, epoch, step)


@pytest.mark.parametrize(("after_dense", "taught"), [(False, {0, 1, 2, 3, 4, 5}), (True, {1, 4, 5})])
def test_each_image_of_a_taught_epoch_costs_a_forward_pass_of_the_teacher(
    tmp_path: Path, after_dense: bool, taught: set[int]
) -> None:
    by_side = {8: operations(small_network(), 8)}
    price = TeacherCost({8: 1000}, after_dense)
    whole = run(tmp_path, a_teacher(LastDense if after_dense else Teacher), cost=Measured(by_side, "A", price))
    plain, dearer = (nominal(whole.sparsifier, by_side, [8] * EPOCHS, 3, 4, "A", teacher) for teacher in (None, price))
    extra = [more.train - less.train for more, less in zip(dearer, plain, strict=True)]
    assert extra == [1000 if epoch in taught else 0 for epoch in range(EPOCHS)]
    whole.fit()
    assert whole.parts.cost is not None
    # uniform masks have exactly the planned zeros
    assert whole.parts.cost.total == 12 * sum(cost.train for cost in dearer)
