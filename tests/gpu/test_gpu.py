"""What only a CUDA device can show: run with `pytest -m gpu`."""

from __future__ import annotations

import io
import json
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import gpu_device
import numpy as np
import pytest
import torch
from gpu_device import CPU, DEVICE, NAME, Resident, host_may_wait, host_never_waits
from PIL import Image
from torch import Tensor, nn

from acdc_cli.data.augment import RANDOM_RESIZED, Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile, Sample, write_beton
from acdc_cli.data.inputs.images import normalisation
from acdc_cli.data.torch import TorchLoader
from acdc_cli.jobs import setup
from acdc_cli.jobs.training_run import assemble
from acdc_cli.recipe.blocks.optim import AdamWBlock, LinearSchedule, SGDBlock
from acdc_cli.recipe.kinds import methods
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.schedule.time import Moment
from acdc_cli.training import checkpoint
from acdc_cli.training.distributed import Ranks
from acdc_cli.training.evaluate import forward_of
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.training.precision import Precision, PrecisionName
from acdc_cli.training.running import Losses, Running
from acdc_cli.training.trainer import Trainer

pytestmark = gpu_device.marks

CLASSES = 10


class Run:
    """The demo's network and AC/DC at 90 %: epochs 0 and 2 dense, 1 and 3 sparse."""

    def __init__(self, folder: Path, device: str, **changes: Any) -> None:
        demo = {
            "device": device,
            "compile": False,
            "epochs": 4,
            "optim.schedule.warmup_epochs": 0,
            "sparsity.warmup_epochs": 1,
            "sparsity.sparse_epochs": 1,
            "sparsity.dense_epochs": 1,
            "sparsity.last_dense_epochs": 1,
            "sparsity.last_sparse_epochs": 1,
        }
        if "sparsity" in changes:
            demo = {key: value for key, value in demo.items() if not key.startswith("sparsity.")}
        values = demo | {name.replace("__", "."): value for name, value in changes.items()}
        recipe = load("demo", [f"{key}={str(value).lower()}" for key, value in values.items()])
        ready = setup.build(recipe, CLASSES)
        self.model, self.forward, self.loader = ready.model, ready.forward, Resident(4 * 32, 32, ready.device)
        self.eager = forward_of(ready.model, normalisation(recipe.images.mean, recipe.images.std, ready.device))
        parts = assemble(recipe, ready, self.loader, self.loader)
        self.optimizer, self.sparsifier = parts.optimizer, parts.sparsifier
        self.run = RunDir(folder)
        if not self.run.resolved.exists():
            self.run.start("", "", {})
        self.trainer = Trainer(parts, self.run)

    def moment(self, epoch: int, index: int = 0) -> Moment:
        return Moment(epoch, epoch * self.loader.steps + index, 4, self.loader.steps)

    def take_steps(self, epoch: int) -> None:
        """An epoch's steps, without its start and end."""
        with self.loader.epoch(epoch) as batches:
            for index, batch in enumerate(batches):
                self.trainer._take_step(batch, self.moment(epoch, index), 0.01)

    def state(self) -> dict[str, Tensor]:
        """Weights and momentum by name."""
        named = dict(self.model.named_parameters())
        momenta = {
            f"{name}/momentum": self.optimizer.state[weight]["momentum_buffer"] for name, weight in named.items()
        }
        return {name: tensor.detach() for name, tensor in (named | momenta).items()}

    def check_masked_are_zero(self, sparsity: float = 0.9) -> None:
        masked, state = self.sparsifier.masked, self.state()
        kept = 0
        for name, mask in masked.masks.items():
            kept += int(mask.sum())
            assert state[name].masked_select(~mask).eq(0).all(), name
            assert state[f"{name}/momentum"].masked_select(~mask).eq(0).all(), name
        assert kept == round((1 - sparsity) * masked.total)


@pytest.fixture(params=["bf16", "fp16"])
def precision(request: pytest.FixtureRequest) -> PrecisionName:
    name: PrecisionName = request.param
    return name


def test_acdc_ends_with_exactly_the_masked_weights_and_momenta_at_zero(
    tmp_path: Path, precision: PrecisionName
) -> None:
    run = Run(tmp_path / "run", NAME, precision=precision)
    before = {name: weight.clone() for name, weight in run.state().items()}
    summary = run.trainer.fit()
    run.check_masked_are_zero()
    assert summary["sparse"]["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert summary["dense"]["sparsity"] < 0.5
    assert all(not torch.equal(before[name], weight) for name, weight in run.model.named_parameters())
    assert all(tensor.isfinite().all() for tensor in run.state().values())


def test_a_dense_phase_on_the_device_frees_every_weight_and_forgets_momentum(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", NAME)
    run.sparsifier.on_epoch_start(run.moment(1))
    run.take_steps(1)
    run.check_masked_are_zero()
    run.sparsifier.on_epoch_start(run.moment(2))
    state, masked = run.state(), run.sparsifier.masked
    assert masked.sparsity() == 0
    assert all(mask.all() for mask in masked.masks.values())
    assert all(state[f"{name}/momentum"].eq(0).all() for name in masked.masks)


@pytest.mark.parametrize("changes", [{}, {"optim__clip_norm": 1.0}, {"optim__accumulate": 2}], ids=str)
def test_an_epoch_makes_the_host_wait_only_when_it_looks_at_the_losses(
    tmp_path: Path, precision: PrecisionName, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop: loader, progress, requests to stop, and steps."""
    run = Run(tmp_path / "run", NAME, precision=precision, track__log_every=3, **changes)
    fetches, fetch = [], Running.fetch

    def fetched(running: Running, *ranks: Ranks) -> Losses:
        fetches.append(run.trainer._step)
        with host_may_wait():
            return fetch(running, *ranks)

    monkeypatch.setattr(Running, "fetch", fetched)
    trainer = run.trainer
    for epoch in (0, 1):
        # the first steps of each phase choose algorithms and allocate
        run.sparsifier.on_epoch_start(run.moment(epoch))
        run.take_steps(epoch)
        trainer._epoch, trainer._step = epoch, 0
        trainer._running.begin()
        fetches.clear()
        monkeypatch.setattr(run.sparsifier, "on_epoch_start", lambda moment: None)
        run.model.train()
        with host_never_waits():
            trainer._train()
        monkeypatch.undo()
        monkeypatch.setattr(Running, "fetch", fetched)
        # of four steps: after three, and at the end
        assert fetches == [3, 4]
    run.check_masked_are_zero()


# what the compiler has to say about this GPU and this Python
@pytest.mark.filterwarnings("default")
def test_a_compiled_network_sees_masks_that_change_in_place(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", NAME, compile=True, precision="fp32")
    images = run.loader.images[:32]
    run.model.train()
    run.take_steps(0)
    for epoch in (1, 2, 3):
        run.sparsifier.on_epoch_start(run.moment(epoch))
        run.take_steps(epoch)
        run.model.eval()
        with torch.inference_mode():
            compiled = run.forward(images)
            eager = run.eager(images)
        run.model.train()
        # both round, each in its own order; with the masks of another phase they would be far apart
        torch.testing.assert_close(compiled, eager, rtol=0.05, atol=0.05)
    run.check_masked_are_zero()


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_non_finite_gradient_changes_nothing(precision: PrecisionName, optim: str, bad: float) -> None:
    schedule = LinearSchedule(name="linear")
    blocks: dict[str, SGDBlock | AdamWBlock] = {
        "sgd": SGDBlock(name="sgd", lr=0.5, momentum=0.5, weight_decay=0.25, schedule=schedule),
        "adamw": AdamWBlock(name="adamw", lr=0.5, weight_decay=0.25, schedule=schedule),
    }

    def run(gradients: list[list[float]]) -> list[Tensor]:
        model = nn.Linear(2, 1, bias=False, device=DEVICE)
        nn.init.ones_(model.weight)
        optimizer = build_optimizer(model, blocks[optim])
        here = Precision(precision, DEVICE)
        for gradient in gradients:
            optimizer.zero_grad(set_to_none=True)
            here.backward((model.weight * torch.tensor([gradient], device=DEVICE)).sum())
            here.unscale(optimizer)
            here.step(optimizer)
        return [model.weight.detach(), *optimizer.state[model.weight].values()]

    actual = run([[1.0, bad], [1.0, 2.0], [bad, 1.0], [3.0, 1.0]])
    expected = run([[1.0, 2.0], [3.0, 1.0]])
    # gradients are powers of two times small integers: fp16's lower scale rounds nothing
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_a_checkpoint_from_the_device_goes_on_on_the_cpu(tmp_path: Path) -> None:
    there = Run(tmp_path / "run", NAME, precision="fp32")
    there.trainer.fit()
    state = checkpoint.load_state(tmp_path / "run" / "checkpoints")
    assert state is not None
    here = Run(tmp_path / "run", "cpu", precision="fp32")
    assert state["epoch"] == 4
    here.trainer.load_state_dict(state)
    theirs = there.state()
    assert all(torch.equal(tensor, theirs[name].cpu()) for name, tensor in here.state().items())
    for name, mask in here.sparsifier.masked.masks.items():
        assert torch.equal(mask, there.sparsifier.masked.masks[name].cpu())
    here.take_steps(3)
    here.check_masked_are_zero()


def test_a_checkpoint_from_the_device_goes_on_there(tmp_path: Path) -> None:
    before = Run(tmp_path / "run", NAME)
    before.trainer.fit()
    state = checkpoint.load_state(tmp_path / "run" / "checkpoints")
    assert state is not None
    after = Run(tmp_path / "run", NAME)
    after.trainer.load_state_dict(state)
    assert all(torch.equal(tensor, before.state()[name]) for name, tensor in after.state().items())
    assert all(tensor.device.type == NAME for tensor in after.state().values())
    after.take_steps(3)
    after.check_masked_are_zero()


METHODS: dict[str, dict[str, Any]] = {
    "deepr": {"distribution": "erk", "every": 7, "l1": 0.001, "temperature": 0.001},
    "dpf": {"every": 16, "end": 1},
    "dsd": {"sparse_from": 1, "dense_from": 3},
    "gmp": {"every_epochs": 1, "end": 1},
    "granet": {"every": 7},
    "lottery": {"prune": 0.9},
    "obc": {"at": 1, "images": 32, "column_block": 32},
    "oneshot": {"at": 1},
    "rigl": {"distribution": "erk", "every": 7, "average_batches": 2},
    "set": {"distribution": "erk", "every": 7},
    "snfs": {"distribution": "erk", "every": 7, "end": 3},
    "snip": {"batches": 1},
    "static": {"distribution": "erk"},
    "str": {"s_init": -3.0, "s_decay": 0.01},
    "synflow": {"rounds": 10},
    "topkast": {"every": 16, "backward_sparsity": 0.5},
    "woodfisher": {"begin": 1, "end": 1, "samples": 4, "fisher_batch_size": 8, "fisher_block": 32, "damping": 0.01},
}
"""Four epochs of four steps; none updates its masks at steps 4 and 5."""

every_method = pytest.mark.parametrize("method", sorted(METHODS))


def block_of(method: str) -> str:
    target = {} if method == "str" else {"target": 0.9}
    return json.dumps({"method": method, "keep_dense": ["first", "last"], **target, **METHODS[method]})


def test_every_method_but_acdc_is_here() -> None:
    assert sorted({*METHODS, "acdc", "dense"}) == methods()


@every_method
def test_every_method_trains_there_and_goes_on_there_and_on_the_cpu(tmp_path: Path, method: str) -> None:
    there = Run(tmp_path / "run", NAME, precision="fp32", sparsity=block_of(method))
    there.trainer.fit()
    state = checkpoint.load_state(tmp_path / "run" / "checkpoints")
    assert state is not None
    for device in (NAME, "cpu"):
        after = Run(tmp_path / "run", device, precision="fp32", sparsity=block_of(method))
        assert state["epoch"] == 4
        after.trainer.load_state_dict(state)
        after.take_steps(3)
        for name, weight in after.sparsifier.masked.parameters.items():
            assert weight.device.type == device
            assert weight.isfinite().all()
            assert not weight.masked_select(~after.sparsifier.masked.masks[name]).any()


@every_method
def test_no_method_makes_the_host_wait_between_updates(tmp_path: Path, method: str, precision: PrecisionName) -> None:
    run = Run(tmp_path / "run", NAME, precision=precision, sparsity=block_of(method))
    run.model.train()
    run.sparsifier.on_epoch_start(run.moment(0))
    run.take_steps(0)
    run.sparsifier.on_epoch_start(run.moment(1))
    with run.loader.epoch(1) as batches:
        for index, batch in zip(range(2), batches, strict=False):
            # the first step chooses algorithms and allocates
            with host_never_waits() if index else nullcontext():
                run.trainer._take_step(batch, run.moment(1, index), 0.01)
    assert all(weight.isfinite().all() for weight in run.sparsifier.masked.parameters.values())


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 JPEGs that no two crops of look alike."""
    path = tmp_path_factory.mktemp("beton") / "train.beton"

    def sample(index: int) -> Sample:
        coarse = np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        return Sample(index % CLASSES, "jpg", 240, 320, stream.getvalue())

    write_beton(path, (sample(index) for index in range(64)), 64)
    return path


def make_loader(kind: str, path: Path, device: torch.device) -> Loader:
    plan = Plan(8, lambda epoch: 128, Crop(RANDOM_RESIZED), 0.5, seed=5, shuffle=True)
    if kind == "torch":
        return TorchLoader(BetonFile(path), plan, 2, device)
    try:
        from acdc_cli.data.ffcv import FFCVLoader
    except (ImportError, OSError) as cause:
        pytest.skip(f"FFCV cannot be used here: {cause}")
    return FFCVLoader(BetonFile(path), plan, 4, device)


@pytest.mark.parametrize("kind", ["ffcv", "torch"])
def test_a_loader_brings_the_same_pixels_to_the_device_as_to_the_cpu(kind: str, beton: Path) -> None:
    """While the device is so busy that a batch handed on too early, or its memory too early reused, would show."""
    side = 4096 if NAME == "cuda" else 64
    load_heavy = torch.randn(side, side, device=DEVICE)
    with closing(make_loader(kind, beton, DEVICE)) as there, closing(make_loader(kind, beton, CPU)) as here:
        for epoch in range(3):
            arrived: list[Tensor] = []
            labels: list[Tensor] = []
            with there.epoch(epoch) as batches:
                for batch in batches:
                    assert batch.inputs.device.type == NAME
                    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
                    for _ in range(5):
                        load_heavy = (load_heavy @ load_heavy).clamp(-1, 1)
                    # read only after all that work, when the loader is batches ahead
                    arrived.append(batch.inputs + 0)
                    labels.append(batch.targets + 0)
            with here.epoch(epoch) as batches:
                for position, batch in enumerate(batches):
                    assert torch.equal(arrived[position].cpu(), batch.inputs)
                    assert torch.equal(labels[position].cpu(), batch.targets)
            assert len(arrived) == here.steps == 8
