"""Mixup and cutmix: the same for every rank and after a resume, against a loop over pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import drawn, same
from in_memory import InMemory
from mini_trainer import MiniRun, StopAtCall

from acdc_cli.data.augment import PADDED, Crop
from acdc_cli.data.batches import Batch, Plan
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.data_set import open_set
from acdc_cli.data.finish import finish_of
from acdc_cli.data.labels import Labels
from acdc_cli.data.mixing import MixingLoader, as_shares
from acdc_cli.data.shard import Shard
from acdc_cli.data.torch import TorchLoader
from acdc_cli.errors import DataError, Stopped
from acdc_cli.recipe.blocks.images import AugmentationBlock, ImagesBlock
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training import checkpoint

CPU = torch.device("cpu")
CLASSES = Labels(("a", "b", "c"))
LAMB = {"name": "lamb", "lr": 0.02, "weight_decay": 0.02, "schedule": {"name": "linear"}}
ACDC = {
    "method": "acdc", "target": 0.9, "warmup_epochs": 1, "dense_epochs": 1, "sparse_epochs": 1,
    "last_dense_epochs": 1, "last_sparse_epochs": 1,
}  # fmt: skip


class Few(InMemory):
    """24 images of 10 x 8 pixels and 3 classes, 6 in a batch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (24, 3, 10, 8), dtype=torch.uint8, generator=generator)
        super().__init__(images, torch.randint(0, 3, (24,), generator=generator), 6)
        self.steps = 4


def mixed(labels: Labels = CLASSES, seed: int = 3, **wanted: float) -> MixingLoader:
    return MixingLoader(Few(), AugmentationBlock(**wanted), seed, labels)


def test_mixup_is_the_blend_of_each_image_and_label_with_the_one_before() -> None:
    shares = []
    for (images, labels, _), (plain, classes, _) in zip(drawn(mixed(mixup=0.4)), drawn(Few()), strict=True):
        other = int((classes != classes.roll(1)).nonzero()[0])
        share = float(labels[other, classes[other]])
        shares.append(share)
        for number in range(6):
            expected = share * plain[number].double() + (1 - share) * plain[number - 1].double()
            assert torch.allclose(images[number].double(), expected, atol=1e-3)
            wanted = [0.0, 0.0, 0.0]
            wanted[int(classes[number])] += share
            wanted[int(classes[number - 1])] += 1 - share
            assert labels[number].tolist() == pytest.approx(wanted, abs=1e-6)
    assert len(set(shares)) == 4


def test_cutmix_pastes_one_rectangle_and_the_labels_say_its_share() -> None:
    for (images, labels, _), (plain, classes, _) in zip(drawn(mixed(cutmix=1.0)), drawn(Few()), strict=True):
        plain = plain.float()
        pasted = ((images == plain.roll(1, 0)) & (images != plain)).any(dim=1).any(dim=0)
        rows, columns = (np.flatnonzero(pasted.any(dim=axis).numpy()) for axis in (1, 0))
        height, width = (int(np.ptp(each)) + 1 if len(each) else 0 for each in (rows, columns))
        share = 1 - height * width / 80
        for number in range(6):
            for row, column in np.ndindex(10, 8):
                source = plain[number - 1] if pasted[row, column] else plain[number]
                assert torch.equal(images[number, :, row, column], source[:, row, column])
            wanted = [0.0, 0.0, 0.0]
            wanted[int(classes[number])] += share
            wanted[int(classes[number - 1])] += 1 - share
            assert labels[number].tolist() == pytest.approx(wanted, abs=1e-6)
        assert pasted.sum() == height * width


def test_the_shares_are_beta_distributed_and_each_batch_is_blended_or_pasted() -> None:
    loader = mixed(mixup=0.2, cutmix=1.0)
    blank = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), torch.tensor([0, 1]))
    blank.inputs[0] = 255
    shares = []
    for step in range(600):
        batch = loader._mixed(blank, 0, step)
        # an image of one grey is blended; one that is pasted has black and white pixels, or only white ones
        value, share = float(batch.inputs[0, 0, 0, 0]), float(batch.targets[0, 0])
        if (batch.inputs[0] == value).all() and value == pytest.approx(255 * share, abs=1e-3) and value != 255:
            shares.append(share)
    # five standard errors
    assert abs(len(shares) / 600 - 0.5) < 5 * 0.5 / 600**0.5
    # Beta(a, a) has the mean 1/2 and the variance 1 / (8 a + 4)
    assert abs(np.mean(shares) - 0.5) < 5 * 0.42 / 300**0.5
    assert np.std(shares) == pytest.approx((1 / 5.6) ** 0.5, rel=0.1)


def test_every_rank_and_a_resumed_run_draw_the_same_and_every_step_another(noise: Path) -> None:
    loader = mixed(mixup=0.4, cutmix=1.0)
    whole = drawn(loader)
    assert same(drawn(loader, start_step=2), whole[2:])
    assert same(drawn(mixed(mixup=0.4, cutmix=1.0)), whole)
    assert not same(drawn(loader, epoch=3), whole)
    assert not same(drawn(mixed(mixup=0.4, cutmix=1.0, seed=4)), whole)
    wanted = AugmentationBlock(mixup=0.4)
    parts = []
    for rank in range(2):
        here = Plan(12, lambda epoch: 32, Crop(PADDED), seed=5, shuffle=True, shard=Shard(rank, 2))
        parts.append(MixingLoader(TorchLoader(BetonFile(noise), here, 0, CPU), wanted, 5, Labels(tuple("abcdefg"))))
    for (_, first, _), (_, second, _) in zip(*map(drawn, parts), strict=True):
        values = [{round(value, 5) for value in part.flatten().tolist()} - {0.0, 1.0} for part in (first, second)]
        assert values[0] == values[1]


def test_labels_of_several_bits_are_mixed_one_by_one() -> None:
    assert as_shares(torch.tensor([5, 2]), Labels(("a", "b", "c"), "bits")).tolist() == [[1, 0, 1], [0, 1, 0]]
    assert as_shares(torch.tensor([2, 0]), CLASSES).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_the_host_waits_for_nothing(loss: Any) -> None:
    # tensors on the meta device have no values, and raise where the host asks for one
    blank = Batch(
        torch.empty(6, 3, 10, 8, dtype=torch.uint8, device="meta"),
        torch.empty(6, dtype=torch.int64, device="meta"),
        torch.arange(6),
    )
    task = Classification(TaskBlock(loss=loss, label_smoothing=0.1))
    for step in range(4):
        batch = mixed(mixup=0.4, cutmix=1.0)._mixed(blank, 0, step)
        assert batch.targets.shape == (6, 3)
        for targets in (batch.targets, blank.targets):
            assert task.loss(torch.empty(6, 3, device="meta"), targets).is_meta


def test_random_numbers_of_the_process_are_left_alone() -> None:
    before = torch.get_rng_state()
    drawn(mixed(mixup=0.4, cutmix=1.0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    from digits import image_folders

    return image_folders(tmp_path, shrink=6)


def test_one_image_per_process_is_refused(digits: Path) -> None:
    block = ImagesBlock(
        name="folder", path=str(digits), batch_size=2, workers=0, loader="torch",
        augmentation=AugmentationBlock(mixup=0.2),
    )  # fmt: skip
    with pytest.raises(DataError, match="batch_size 2 gives each of 2 only one"):
        open_set(block).train_loader(0, [7], CPU, Shard(0, 2))


def test_validation_is_not_augmented(digits: Path) -> None:
    plain: dict[str, Any] = {
        "name": "folder", "path": str(digits), "batch_size": 8, "workers": 0, "loader": "torch", "resolution": 7,
        "val_resize": 7, "val_crop": 7,
    }  # fmt: skip
    strong = AugmentationBlock(policy="trivial", erasing=1.0, mixup=1.0, cutmix=1.0, repeats=4)
    data = [open_set(ImagesBlock(**plain, **more)) for more in ({}, {"augmentation": strong})]
    for make in (lambda data, device: data.val_loader(device), lambda data, device: data.calibration_loader(0, device)):
        ours, augmented = (drawn(make(each, CPU), 0) for each in data)
        assert same(ours, augmented)
    train, augmented = (each.train_loader(0, [7] * 3, CPU) for each in data)
    assert (train.steps, train.samples) == (augmented.steps, augmented.samples)
    assert not same(drawn(train), drawn(augmented))


def run(folder: Path, file: Path, **keywords: Any) -> MiniRun:
    data = ImagesBlock(
        name="folder", batch_size=12, augmentation=AugmentationBlock(policy="rand-m7-mstd0.5-inc1", erasing=0.3)
    )
    here = Plan(
        12, lambda epoch: 32, Crop(PADDED), 0.5, seed=5, shuffle=True, finish=finish_of(data, 5), repeats=3,
        relabelled=(np.arange(50), np.arange(50) % 3),
    )  # fmt: skip
    train = MixingLoader(
        TorchLoader(BetonFile(file), here, 0, CPU), AugmentationBlock(mixup=0.2, cutmix=1.0), 5, CLASSES
    )
    task = Classification(TaskBlock(loss="binary", target_threshold=0.2))
    optim = LAMB | {"accumulate": 2}
    return MiniRun(folder, 4, ACDC, train=train, task=task, optim=optim, **keywords)


def test_a_run_with_everything_resumes_within_an_epoch_to_the_bit_and_masked_weights_stay_zero(
    noise: Path, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", noise)
    after_step, checked = whole.sparsifier.after_step, []

    def check(moment: Any) -> None:
        after_step(moment)
        for name, weight in whole.sparsifier.masked.parameters.items():
            gone = ~whole.sparsifier.masked.masks[name]
            state = whole.optimizer.state[weight]
            assert not weight[gone].any()
            assert not weight.grad[gone].any()
            assert not state["exp_avg"][gone].any()
            assert not state["exp_avg_sq"][gone].any()
            checked.append(int(gone.sum()))

    whole.sparsifier.after_step = check  # type: ignore[method-assign]
    whole.fit()
    assert max(checked) > 500

    cut, stops = run(tmp_path / "cut", noise, stop_asked=StopAtCall(6)), 0
    while True:
        try:
            cut.fit()
            break
        except Stopped:
            stops += 1
        cut = run(tmp_path / "cut", noise, stop_asked=StopAtCall(6))
        state = checkpoint.load_state(cut.directory.checkpoints)
        assert state is not None
        cut.trainer.load_state_dict(state)
    assert stops >= 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, cut.model.state_dict()[name]), name
    records = [[record["train_loss"] for record in each.directory.records()] for each in (whole, cut)]
    assert records[0] == records[1]
    assert all(np.isfinite(records[0]))
