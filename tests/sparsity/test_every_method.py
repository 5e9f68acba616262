"""What every method must do: the runs of a method, one for each variant, are in runs/<method>.yaml."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import count
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.quantities import Quantity
from acdc_cli.recipe import kinds
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.recipe.blocks.optim import AdamWBlock, LAMBBlock, LARSBlock, LinearSchedule, SGDBlock
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity import sparsifier
from acdc_cli.sparsity.distributions import kept_per_layer
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.prunable import layers, pruned
from acdc_cli.sparsity.random_start import RandomStartKeys
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.training.precision import Precision

EPOCHS, STEPS = 12, 3
TARGET = 0.85

RUNS: dict[str, dict[str, Any]] = {
    name: keys
    for file in sorted((Path(__file__).parent / "runs").glob("*.yaml"))
    for name, keys in yaml.safe_load(file.read_text()).items()
}
"""The keys of each run of the suite, by name: the method, then what sets a variant apart. Targets are TARGET."""


def densities(method: Sparsifier[Any], epoch: int) -> tuple[float | None, float | None]:
    """Forward and backward."""
    work = method.cost(epoch, STEPS)
    return work.forward.density, work.backward.density


def method_of(name: str) -> str:
    """The method of a row: the first word."""
    return name.split()[0]


METHODS = {name for name in RUNS if name == method_of(name)}
"""Every method once; the others are variants."""
PRUNING = sorted(RUNS.keys() - {"dense"})
TARGETED = sorted(name for name in PRUNING if "target" in RUNS[name])
LEARNING = sorted(set(PRUNING) - set(TARGETED))
BY_LAYER = {name for name in TARGETED if issubclass(kinds.method_config(method_of(name)), RandomStartKeys)}
MOVING = {"snfs", "snfs by epochs"}
"""Move weights from layer to layer: of these, `distribution` is that of the start."""

ANY_PATTERN = {"acdc", "dsd", "oneshot", "snip", "static", "woodfisher at once"}
"""They prune to one sparsity, so that any pattern makes sense."""

SCHEDULE = LinearSchedule(name="linear")
OPTIMIZERS: dict[str, SGDBlock | AdamWBlock | LARSBlock | LAMBBlock] = {
    "sgd": SGDBlock(name="sgd", lr=0.1, weight_decay=0.01, schedule=SCHEDULE),
    "adamw": AdamWBlock(name="adamw", lr=0.01, weight_decay=0.1, schedule=SCHEDULE),
    "lars": LARSBlock(name="lars", lr=1.0, trust_coefficient=0.1, weight_decay=0.01, schedule=SCHEDULE),
    "lamb": LAMBBlock(name="lamb", lr=0.01, weight_decay=0.1, schedule=SCHEDULE),
}

every_method = pytest.mark.parametrize("name", sorted(RUNS))
# variants are watched in the run that serves most tests
every_method_and_slowly_its_variants = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in METHODS else pytest.mark.slow) for name in sorted(RUNS)]
)
DISTRIBUTIONS = [
    (name, distribution)
    for name in TARGETED
    for distribution in ("global", "uniform", "erk")
    if name not in BY_LAYER or distribution != "global"
]


def usual(name: str, distribution: str) -> bool:
    """Where all methods and their variants choose weights alike, one distribution each and all of a few are enough."""
    return name in {"gmp", *LARGE_BATCHES} or distribution == ("uniform" if name in BY_LAYER else "global")


LARGE_BATCHES = {"acdc", "rigl", "snfs", "str", "topkast"}
"""Methods that between them set masks, grow and move weights, and keep weights and gradients of their own."""
METHODS_AND_OPTIMIZERS = [
    (name, optimizer)
    for name in sorted(RUNS)
    for optimizer in sorted(OPTIMIZERS)
    if optimizer in ("sgd", "adamw") or name in LARGE_BATCHES
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Run:
    """A few epochs of a small network on noise, each batch drawn from its step alone, as the trainer does them."""

    headline = Quantity("top1", "top-1", "top-1", "%")

    def __init__(self, name: str, optimizer: str = "sgd", bf16: bool = False, **keys: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 5),
        ).to(memory_format=torch.channels_last)
        self.config = kinds.method_config(method_of(name))(method=method_of(name), **RUNS[name] | keys)
        assert self.config.errors(RunSize(EPOCHS)) == []
        self.layers = layers(self.model, ["first"])
        self.masked = MaskedParameters(pruned(self.layers))
        self.method: Sparsifier[Any] = kinds.method_class(method_of(name))(self.config, self.masked, EPOCHS)
        block = OPTIMIZERS[optimizer]
        self.optimizer = build_optimizer(self.model, block, self.method.parameter_groups(block.weight_decay))
        self.method.attach(self.optimizer, self)
        self.bf16 = bf16

    @property
    def end_of_the_last_sparse_phase(self) -> int:
        """Of methods that end dense, the sparse model is what there was then. 0: there is no such phase."""
        return max((phase.end for phase in self.method.phases.phases if phase.kind == "sparse"), default=0)

    def train(
        self,
        first: int = 0,
        last: int = EPOCHS,
        on_step: Callable[[], None] = lambda: None,
        on_epoch_end: Callable[[int], None] = lambda epoch: None,
        done: int = 0,
    ) -> None:
        """done: steps of the first epoch, by another process."""
        for epoch in range(first, last):
            if not done:
                self.method.on_epoch_start(Moment(epoch, epoch * STEPS, EPOCHS, STEPS))
                on_step()
            for step in range(epoch * STEPS + done, (epoch + 1) * STEPS):
                self._step(Moment(epoch, step, EPOCHS, STEPS))
                on_step()
            done = 0
            if epoch + 1 == EPOCHS:
                self.method.finish()
            # validation that is best after the third of every four epochs
            metrics = {"top1": 0.1 * (epoch % 4 == 2), "loss": 1.0}
            self.method.on_epoch_end(Moment(epoch, (epoch + 1) * STEPS - 1, EPOCHS, STEPS), metrics)
            on_epoch_end(epoch)

    def input_shape(self, epoch: int) -> tuple[int, ...]:
        return 3, 6, 6

    def gradients(self, moment: Moment, batches: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        self.model.eval()
        for number in range(batches):
            images, labels = self.batch(1000 + number, batch_size)
            weights = self.masked.parameters
            computed = torch.autograd.grad(F.cross_entropy(self.model(images), labels), list(weights.values()))
            yield dict(zip(weights, computed, strict=True))
        self.model.train()

    def forward_passes(self, moment: Moment, images: int) -> Iterator[None]:
        self.model.eval()
        for number in range(images // 16):
            self.model(self.batch(1000 + number)[0])
            yield
        self.model.train()

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(snapshot)
        for weight in self.model.parameters():
            for value in self.optimizer.state.get(weight, {}).values():
                value.zero_()

    def _step(self, moment: Moment) -> None:
        self.optimizer.zero_grad()
        self.backward(moment)
        if self.method.on_gradients(moment):
            self.optimizer.step()
        self.method.after_step(moment)

    def backward(self, moment: Moment) -> None:
        self.loss(moment).backward()

    def loss(self, moment: Moment) -> Tensor:
        images, labels = self.batch(moment.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return F.cross_entropy(self.model(images), labels)

    def batch(self, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
        noise = torch.Generator().manual_seed(seed)
        return torch.randn(size, 3, 6, 6, generator=noise), torch.randint(5, (size,), generator=noise)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])

    def state_of(self, weight: nn.Parameter) -> list[Tensor]:
        """The optimiser's tensors that have an entry for each weight."""
        return [value for value in self.optimizer.state[weight].values() if value.shape == weight.shape]


def retargeted(name: str, target: float) -> dict[str, float]:
    """The sparsities of a method's row at another target, in the same proportion."""
    keys = ("target", "backward_sparsity", "dense_sparsity", "ramp_from", "initial_sparsity")
    return {key: target * RUNS[name][key] / TARGET for key in keys if key in RUNS[name]}


def file_of(state: dict[str, Any]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def bits(state: Any) -> Any:
    """What a state holds, to the bit, however its tensors lie in memory."""
    if isinstance(state, Tensor):
        return state.dtype, state.shape, state.detach().contiguous().numpy().tobytes()
    if isinstance(state, Mapping):
        return {key: bits(value) for key, value in state.items()}
    return [bits(value) for value in state] if isinstance(state, list | tuple) else state


def test_the_loop_at_the_top_of_the_contract_shows_every_hook() -> None:
    hooks = [name for name, value in vars(Sparsifier).items() if callable(value) and not name.startswith("_")]
    assert len(hooks) > 15
    assert [name for name in hooks if f"{name}(" not in (sparsifier.__doc__ or "")] == []


def test_every_method_is_tested() -> None:
    assert sorted({method_of(name) for name in RUNS}) == kinds.methods()


@every_method
def test_the_phases_cover_the_run(name: str) -> None:
    assert Run(name).method.phases.epochs == EPOCHS


class Ended(NamedTuple):
    """By layer, after the last sparse phase."""

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor | None]


class Epoch(NamedTuple):
    """What a run was to be after an epoch and what it is."""

    densities: tuple[float | None, float | None]
    by_layer: tuple[Mapping[str, int] | None, Mapping[str, int] | None]
    mask_sparsity: float
    living: dict[str, int]
    updated: dict[str, int]


def ended(run: Run) -> Ended:
    weights = run.masked.parameters.items()
    gradients = {key: None if weight.grad is None else weight.grad.clone() for key, weight in weights}
    masks = {key: mask.clone() for key, mask in run.masked.masks.items()}
    return Ended(masks, {key: weight.detach().clone() for key, weight in weights}, gradients)


class Watch:
    """What a run was and is, noted at the end of each epoch."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.epochs: list[Epoch] = []
        self.end: Ended | None = None

    def __call__(self, epoch: int) -> None:
        method, masked = self._run.method, self._run.masked
        living, updated = counts(masked.masks), counts(masked.backward_masks)
        sparsity = method.metrics()["mask_sparsity"]
        self.epochs.append(Epoch(densities(method, epoch), by_layer(method, epoch), sparsity, living, updated))
        if epoch + 1 == self._run.end_of_the_last_sparse_phase:
            self.end = ended(self._run)


@cache
def watched(name: str, distribution: str) -> Watch:
    """A run of TARGET, trained once for all tests."""
    run = Run(name, distribution=distribution)
    if run.config == Run(name).config:
        return noted(name).watch
    watch = Watch(run)
    run.train(on_epoch_end=watch)
    return watch


@pytest.mark.parametrize(
    ("name", "distribution", "target"),
    [
        # how the weights are distributed over layers is of no account where all or none stay
        pytest.param(
            *(name, distribution, target),
            marks=()
            if usual(name, distribution)
            and (target == TARGET or (target == 0.999 and name in LARGE_BATCHES and distribution == "uniform"))
            else pytest.mark.slow,
        )
        for name, distribution in DISTRIBUTIONS
        for target in (0.0, TARGET, 0.999)
    ],
)
def test_the_final_sparsity_is_exact_to_the_weight(name: str, distribution: str, target: float) -> None:
    if target == TARGET:
        end = watched(name, distribution).end
        assert end is not None
    else:
        run = Run(name, distribution=distribution, **retargeted(name, target))
        run.train(last=run.end_of_the_last_sparse_phase)
        end = ended(run)
    living = counts(end.masks)
    if distribution == "uniform" and name not in MOVING:
        assert living == kept_per_layer({"3.weight": 72, "4.weight": 96, "7.weight": 240}, target)
    else:
        # 408 weights: 61.2 and 0.408 of them stay
        assert sum(living.values()) == {0.0: 408, TARGET: 61, 0.999: 0}[target]
    for key, weight in end.weights.items():
        mask, gradient = end.masks[key], end.gradients[key]
        assert not weight[~mask].any()
        # one that grew where no living path leads to the loss stays at the zero it began with
        assert gradient is not None
        assert not gradient[mask & (weight == 0)].any()


@every_method
def test_the_masks_that_are_saved_hold_all_nonzero_weights_and_are_as_sparse_as_reported(name: str) -> None:
    for epoch in noted(name).saved:
        kept = sum(int(mask.sum()) for mask in epoch.support.values())
        assert epoch.mask_sparsity == pytest.approx(1 - kept / 408, abs=1e-12)
        assert not any(epoch.weights[key][~mask].any() for key, mask in epoch.support.items())


@pytest.mark.parametrize("name", LEARNING)
def test_a_sparsity_that_is_learned_is_reported_exactly(name: str) -> None:
    run = Run(name)

    def check(epoch: int) -> None:
        assert densities(run.method, epoch) == (None, None)
        zeros = sum(run.masked.zeros().values())
        assert 0 < zeros < run.masked.total
        assert run.method.metrics()["mask_sparsity"] == zeros / run.masked.total

    run.train(on_epoch_end=check)
    assert run.method.phases.phases[-1].kind == "sparse"
    assert all(torch.equal(mask, run.masked.parameters[key] != 0) for key, mask in run.masked.masks.items())


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        pytest.param(
            *(pattern, name), marks=pytest.mark.slow if pattern == "block2" and name != method_of(name) else ()
        )
        for pattern in ("2:4", "block2")
        for name in TARGETED
    ],
)
def test_a_pattern_holds_in_every_group_or_is_refused_with_the_reason(name: str, pattern: str) -> None:
    keys = {"pattern": pattern} | ({"distribution": "uniform"} if name in BY_LAYER else {})
    try:
        run = Run(name, **keys | (retargeted(name, 0.5) if pattern == "2:4" else {}))
    except (ValueError, AssertionError) as refusal:
        # a validator's word, or that of `problems`, which Run asserts to be empty
        said = str(refusal)
    else:
        said = ""
    if said:
        assert "pattern" in said or pattern in said
        assert name not in ANY_PATTERN
        return
    run.train(last=run.end_of_the_last_sparse_phase)
    width = 4 if pattern == "2:4" else 2
    for key, mask in run.masked.masks.items():
        if mask.shape[1] % width:
            assert mask.all(), "layers that the pattern does not fit stay dense"
            continue
        groups = mask.movedim(1, -1).unflatten(-1, (-1, width)).sum(dim=-1)
        assert groups.unique().tolist() == [2] if pattern == "2:4" else set(groups.unique().tolist()) <= {0, 2}
        assert not run.masked.parameters[key][~mask].any()


def test_dense_training_leaves_every_weight_alive() -> None:
    run = Run("dense")
    run.train()
    assert run.masked.sparsity() == 0
    assert not any(run.masked.zeros().values())
    assert all(densities(run.method, epoch) == (1, 1) for epoch in range(EPOCHS))


@pytest.mark.parametrize(
    ("name", "optimizer", "bf16"),
    [
        # AdamW keeps two tensors for every weight, SGD one; LARS and LAMB scale the steps of the other two
        pytest.param(
            *(name, optimizer, bf16),
            id=f"{name}-{optimizer}-{'bf16' if bf16 else 'fp32'}",
            marks=()
            if not bf16 and (optimizer == "adamw" or name in {"sgd": LARGE_BATCHES}.get(optimizer, {"acdc", "topkast"}))
            else pytest.mark.slow,
        )
        for name, optimizer in METHODS_AND_OPTIMIZERS
        for bf16 in (False, True)
    ],
)
def test_masked_weights_gradients_and_state_are_zero_at_every_step_and_layers_kept_dense_never_masked(
    name: str, optimizer: str, bf16: bool
) -> None:
    run = Run(name, optimizer, bf16)
    sparsities = set()
    assert "0.weight" not in run.masked.masks

    def check() -> None:
        sparsities.add(run.masked.sparsity())
        assert run.model[0].weight.all()
        for key, weight in run.masked.parameters.items():
            # what the backward mask leaves out is masked too
            assert not (run.masked.masks[key] & ~run.masked.backward_masks[key]).any()
            assert weight.isfinite().all()
            assert not weight[~run.masked.masks[key]].any()
            gradient = [] if weight.grad is None else [weight.grad]
            for tensor in [*gradient, *run.state_of(weight)]:
                assert tensor.isfinite().all()
                assert not tensor[~run.masked.backward_masks[key]].any()

    run.train(on_step=check)
    assert all(run.state_of(weight) for weight in run.masked.parameters.values())
    if name in TARGETED:
        assert max(sparsities) == pytest.approx(TARGET, abs=1 / 408)


def by_layer(method: Sparsifier[Any], epoch: int) -> tuple[Mapping[str, int] | None, Mapping[str, int] | None]:
    """Weights of each layer, forward and backward."""
    work = method.cost(epoch, STEPS)
    return work.forward.by_layer, work.backward.by_layer


def counts(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.parametrize(
    ("name", "distribution"),
    [pytest.param(*pair, marks=() if usual(*pair) else pytest.mark.slow) for pair in DISTRIBUTIONS],
)
def test_the_density_and_the_weights_of_each_layer_are_foretold_for_every_epoch(name: str, distribution: str) -> None:
    known, total = [], 408
    for epoch in watched(name, distribution).epochs:
        living, updated = sum(epoch.living.values()), sum(epoch.updated.values())
        assert epoch.densities == (living / total, updated / total)
        assert epoch.mask_sparsity == pytest.approx(1 - living / total)
        kept, kept_backward = epoch.by_layer
        assert kept in (None, epoch.living)
        assert kept_backward in (None, epoch.updated)
        known.append((kept is not None) == (living == total or (distribution != "global" and name not in MOVING)))
    assert known == [True] * EPOCHS, "they are known before the run wherever scores do not decide"


@pytest.mark.parametrize("name", ["dense", *LEARNING])
def test_a_method_without_a_target_keeps_all_or_says_that_it_does_not_know(name: str) -> None:
    run = Run(name)
    everything = {key: weight.numel() for key, weight in run.masked.parameters.items()}
    expected = everything if name == "dense" else None
    assert all(by_layer(run.method, epoch) == (expected, expected) for epoch in range(EPOCHS))


@every_method
@pytest.mark.parametrize("steps_per_epoch", [3, 1000])
def test_the_steps_that_are_dense_in_part_or_whole_are_a_share_of_each_epochs(name: str, steps_per_epoch: int) -> None:
    method = Run(name).method
    works = [method.cost(epoch, steps_per_epoch) for epoch in range(EPOCHS)]
    gradients, wholly = [work.dense_gradients for work in works], [work.dense_steps for work in works]
    assert all(0 <= share <= 1 for share in (*gradients, *wholly, *map(add, gradients, wholly)))
    assert any(gradients) == (method_of(name) in {"granet", "rigl", "snfs"})
    assert any(wholly) == (method_of(name) == "snip")


@every_method
def test_a_method_gets_the_gradients_that_it_foretells(name: str) -> None:
    method, probed = Run(name).method, noted(name).probed
    foretold = [method.cost(epoch, STEPS).probed_images for epoch in range(EPOCHS)]
    assert probed == {epoch: images for epoch, images in enumerate(foretold) if images}
    assert bool(probed) == (method_of(name) in {"obc", "synflow", "woodfisher"})


@pytest.mark.parametrize("keys", [{}, {"every": 1, "average_batches": 1}, {"every": None, "every_epochs": 2}])
def test_rigls_dense_gradients_are_those_that_decide_at_its_updates(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("rigl", **keys)
    needed: list[int] = []
    update, gather = run.method.update, run.method.gradients.add
    monkeypatch.setattr(run.method, "update", lambda moment: (update(moment), updates.append(moment.epoch)))
    monkeypatch.setattr(run.method.gradients, "add", lambda: (gather(), needed.append(1)))
    updates: list[int] = []

    def check(epoch: int) -> None:
        assert run.method.cost(epoch, STEPS).dense_gradients * STEPS == pytest.approx(len(needed))
        needed.clear()

    run.train(on_epoch_end=check)
    shares = [run.method.cost(epoch, STEPS).dense_gradients for epoch in range(EPOCHS)]
    assert sum(shares) * STEPS == pytest.approx(len(updates) * run.config.average_batches)
    assert updates


@pytest.mark.parametrize("name", ["snfs", "snfs by epochs", "snip"])
def test_other_dense_gradients_and_steps_are_those_that_are_looked_at(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(name)
    looked: list[int] = []
    owner, hook = (run.method.gradients, "add") if name == "snip" else (run.method, "_gather")
    original = getattr(owner, hook)
    monkeypatch.setattr(owner, hook, lambda: (original(), looked.append(1)))

    def check(epoch: int) -> None:
        work = run.method.cost(epoch, STEPS)
        assert (work.dense_gradients + work.dense_steps) * STEPS == pytest.approx(len(looked))
        looked.clear()

    run.train(on_epoch_end=check)


# a resumed epoch that ends as it did hands the same state to the next, and so on to the end of the run
RESUMED = [range(2, EPOCHS, 2), pytest.param(range(1, EPOCHS, 2), marks=pytest.mark.slow)]


@pytest.mark.parametrize("epochs", RESUMED, ids=["even", "odd"])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        # within an epoch, every method is resumed with SGD below
        pytest.param(
            *(name, optimizer),
            marks=() if name in LARGE_BATCHES and (optimizer == "adamw" or name == "acdc") else pytest.mark.slow,
        )
        for name, optimizer in METHODS_AND_OPTIMIZERS
    ],
)
def test_a_run_resumed_after_any_epoch_ends_bit_identical(name: str, optimizer: str, epochs: range) -> None:
    whole = Run(name, optimizer)
    files, ends = list[io.BytesIO](), list[Any]()

    def note(epoch: int) -> None:
        files.append(file_of(whole.state()))
        ends.append(bits(whole.state()))

    whole.train(on_epoch_end=note)
    for epoch in epochs:
        resumed = Run(name, optimizer)
        resumed.load(torch.load(files[epoch - 1], weights_only=True))
        resumed.train(first=epoch, last=epoch + 1)
        assert bits(resumed.state()) == ends[epoch], f"resumed at epoch {epoch}"


def done_of(epoch: int) -> int:
    """After its first, its second or its last step, in turn."""
    return 1 + epoch % STEPS


class Saved(NamedTuple):
    """What is saved and reported of the masks after an epoch, and the weights then."""

    support: dict[str, Tensor]
    mask_sparsity: float
    weights: dict[str, Tensor]


class Noted(NamedTuple):
    """A whole run."""

    within: list[bytes]
    """Files of its state within each epoch, after `done_of` steps."""
    ends: list[Any]
    """What its state is at the end of each epoch, to the bit."""
    saved: list[Saved]
    watch: Watch
    probed: Counter[int]
    """Images that passed the model outside training, by epoch."""
    masks: dict[str, Tensor]


@cache
def noted(name: str) -> Noted:
    """Trained once for all tests."""
    run = Run(name)
    done = Noted([], [], [], Watch(run), Counter(), run.masked.masks)
    calls = count()
    # copies of the model count too, because they have its hooks
    run.model.register_forward_hook(
        lambda model, inputs, _: None if model.training else done.probed.update({len(done.ends): len(inputs[0])})
    )

    def save() -> None:
        epoch, steps = divmod(next(calls), STEPS + 1)
        if steps == done_of(epoch):
            done.within.append(file_of(run.state()).getvalue())

    def note(epoch: int) -> None:
        done.watch(epoch)
        done.ends.append(bits(run.state()))
        support = {key: mask.clone() for key, mask in run.method.support().items()}
        weights = {key: weight.detach().clone() for key, weight in run.masked.parameters.items()}
        done.saved.append(Saved(support, run.method.metrics()["mask_sparsity"], weights))

    run.train(on_step=save, on_epoch_end=note)
    return done


@every_method
@pytest.mark.parametrize(
    "epochs", [range(1, EPOCHS, 5), pytest.param(range(EPOCHS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_run_resumed_within_any_epoch_ends_bit_identical(name: str, epochs: range) -> None:
    for epoch in epochs:
        resumed, done = Run(name), done_of(epoch)
        resumed.load(torch.load(io.BytesIO(noted(name).within[epoch]), weights_only=True))
        resumed.train(first=epoch, last=epoch + 1, done=done)
        assert bits(resumed.state()) == noted(name).ends[epoch], f"resumed in epoch {epoch} after {done} steps"


@every_method_and_slowly_its_variants
def test_tensors_stay_where_they_are_and_the_seed_alone_decides_over_the_masks(name: str) -> None:
    run = Run(name)
    state = torch.get_rng_state()
    places = [tensor.data_ptr() for tensor in [*run.model.parameters(), *run.masked.masks.values()]]
    run.train()
    assert [tensor.data_ptr() for tensor in [*run.model.parameters(), *run.masked.masks.values()]] == places
    assert all(run.model.get_parameter(key) is weight for key, weight in run.masked.parameters.items())
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global generator"
    assert all(torch.equal(mask, noted(name).masks[key]) for key, mask in run.masked.masks.items())


@every_method_and_slowly_its_variants
@pytest.mark.parametrize("key", ["0.weight", "7.weight"], ids=["kept dense", "pruned"])
@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_a_step_with_a_gradient_that_is_no_number_changes_neither_weights_nor_masks(
    name: str, key: str, value: float
) -> None:
    run, precision = Run(name), Precision("fp32", torch.device("cpu"))
    first, last = 6, 8
    run.load(torch.load(io.BytesIO(noted(name).within[first]), weights_only=True))
    for step in range(first * STEPS + done_of(first), last * STEPS):
        moment = Moment(step // STEPS, step, EPOCHS, STEPS)
        if step % STEPS == 0:
            run.method.on_epoch_start(moment)
        before = [tensor.clone() for tensor in [*run.model.parameters(), *run.masked.masks.values()]]
        run.optimizer.zero_grad()
        precision.backward(run.loss(moment))
        gradient = run.model.get_parameter(key).grad
        assert gradient is not None
        gradient.fill_(value)
        precision.unscale(run.optimizer)
        assert run.method.on_gradients(moment), "the step is skipped on the device, by the precision"
        precision.step(run.optimizer)
        run.method.after_step(moment)
        after = [*run.model.parameters(), *run.masked.masks.values()]
        assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))
