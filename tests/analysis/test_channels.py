"""Zero and dead channels: small networks by hand, and ResNets against a search for paths."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.analysis.base.reach import dead_inputs
from acdc_cli.analysis.channels import Channels, channels, channels_of, draw, over_time, together
from acdc_cli.errors import ModelError
from acdc_cli.models import resnet_cifar
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.sparsity.prunable import layers
from acdc_cli.training.checkpoint import load_masks

resnet8, resnet20 = (resnet_cifar.MODELS[name] for name in ("resnet8", "resnet20"))


def test_an_output_channel_is_zero_where_all_its_weights_are() -> None:
    weight = torch.zeros(3, 2, 1, 1)
    weight[0, 1], weight[2] = -1.0, 1e-30
    assert channels_of(weight) == Channels(outputs=3, zero_outputs=1, weights=3)
    assert channels_of(weight != 0) == channels_of(weight)
    assert channels_of(torch.tensor([[0.0, 0.0], [0.0, 1.0]])) == Channels(2, 1, 1)


def test_idle_weights_are_those_on_dead_inputs_of_their_own_group() -> None:
    dead = torch.tensor([True, False, False, True])
    weight = torch.ones(2, 4, 1, 3)
    weight[0, 0, 0, 0] = 0
    # 2 outputs on 2 dead inputs with 3 taps, of which one is zero
    assert channels_of(weight, dead) == Channels(2, 0, 23, inputs=4, dead_inputs=2, idle_weights=11)
    # of 2 groups the first reads inputs 0 and 1, the second 2 and 3
    grouped = torch.tensor([[5.0, 6.0], [7.0, 0.0]]).view(2, 2, 1, 1)
    assert channels_of(grouped, dead) == Channels(2, 0, 3, inputs=4, dead_inputs=2, idle_weights=1)


def test_sums_leave_out_what_is_unknown() -> None:
    known, unknown = Channels(4, 1, 9, 3, 2, 5), Channels(10, 2, 20)
    assert together([known, unknown]) == Channels(14, 3, 29, 3, 2, 5)
    assert together([unknown]) == unknown


class Branches(nn.Module):
    """Two convolutions of the image, what is made of both, and a layer that reads it."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], inputs: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(inputs, 2, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.join(F.relu(self.norm(self.left(x))), self.right(x))
        return self.last(summed)  # type: ignore[no-any-return]


def dead(model: nn.Module, name: str, side: int = 8) -> list[int]:
    """The numbers of the dead input channels of a layer."""
    return dead_inputs(model, layers(model, ()), side)[name].nonzero().flatten().tolist()


@torch.no_grad()
def cut(layer: nn.Conv2d, *outputs: int) -> None:
    layer.weight[list(outputs)] = 0


def test_a_zero_channel_is_a_dead_input_whatever_bias_and_batch_norm_add_to_it() -> None:
    model = Branches(lambda left, right: left)
    cut(model.left, 1, 3)
    assert dead(model, "last") == [1, 3]
    with torch.no_grad():
        model.left.bias.fill_(-7.0)
        model.norm.bias.fill_(3.0)
        model.norm.running_mean.fill_(-2.0)
    assert dead(model, "last") == [1, 3]


def test_batch_norm_without_scale_kills_a_channel() -> None:
    model = Branches(lambda left, right: left)
    with torch.no_grad():
        model.norm.weight[2] = 0
    assert dead(model, "last") == [2]


def test_negative_weights_and_shifts_that_close_a_rectifier_now_kill_nothing() -> None:
    model = Branches(lambda left, right: left)
    with torch.no_grad():
        model.left.weight.copy_(-model.left.weight.abs())
        model.norm.bias.fill_(-100.0)
    assert dead(model, "last") == []


def test_a_residual_connection_keeps_a_channel_alive() -> None:
    model = Branches(torch.add)
    cut(model.left, 0, 1)
    cut(model.right, 1, 2)
    assert dead(model, "last") == [1]


def test_equal_branches_that_cancel_today_are_alive() -> None:
    model = Branches(torch.sub)
    model.norm = nn.Identity()  # type: ignore[assignment]
    model.right.load_state_dict(model.left.state_dict())
    assert dead(model, "last") == []


def test_concatenation_counts_each_channel_at_its_place() -> None:
    model = Branches(lambda left, right: torch.cat([left, right], 1), inputs=8)
    cut(model.left, 0)
    cut(model.right, 3)
    assert dead(model, "last") == [0, 7]


def test_a_gate_that_sees_the_image_brings_a_constant_to_life_but_no_zero() -> None:
    model = Branches(lambda left, right: left * torch.sigmoid(right))
    cut(model.left, 0, 1)
    cut(model.right, 1)
    with torch.no_grad():
        model.left.bias.zero_()
        model.norm.bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert dead(model, "last") == [1]
    with torch.no_grad():
        model.norm.bias.zero_()
    assert dead(model, "last") == [0, 1]


def test_death_spreads_through_depthwise_layers_and_to_channels_that_read_only_the_dead() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU6(), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1)
    )
    cut(model[0], 2)
    cut(model[2], 0)
    with torch.no_grad():
        # not zero itself, but it reads nothing else
        model[4].weight[1, [1, 3]] = 0
    dead = dead_inputs(model, layers(model, ()), 8)
    assert {name: each.tolist() for name, each in dead.items()} == {
        "0": [False] * 3,
        "2": [False, False, True, False],
        "4": [True, False, True, False],
        "5": [False, True],
    }
    counts = channels(model, layers(model, ()), 8)["4"]
    assert (counts.zero_outputs, counts.weights, counts.idle_weights) == (0, 6, 4)


def test_a_layer_that_is_called_twice_reads_what_reaches_it_in_either_call() -> None:
    class Twice(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.left(x)) + self.last(self.right(x))  # type: ignore[no-any-return]

    model = Twice(torch.add)
    cut(model.left, 1, 2)
    cut(model.right, 0, 1)
    assert dead(model, "last") == [1]


def test_taps_that_meet_only_padding_reach_nothing_at_that_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        corner = torch.zeros(3, 3)
        corner[0, 0] = 1
        model[1].weight[1] *= corner
    assert dead(model, "2", side=2) == [1]
    assert dead(model, "2", side=8) == []


def test_layers_that_normalise_by_their_input_kill_nothing_by_chance() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=4), nn.GroupNorm(32, 64), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.GroupNorm(32, 64),
        nn.ReLU(), nn.Conv2d(64, 8, 1),
    )  # fmt: skip
    # one position is all that is left
    assert dead(model, "6", side=4) == []


@torch.no_grad()
def thinned(model: nn.Module, density: float, seed: int) -> nn.Module:
    """Some weights zero at random, biases and statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            tensor *= 0.3 if tensor.dim() == 1 else torch.rand(tensor.shape, generator=generator) < density
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + buffer**2)
    return model.eval()


def search(model: nn.Module) -> dict[str, Tensor]:
    """Dead inputs of a CIFAR ResNet, by following booleans from layer to layer."""
    reached, unreached = torch.ones(3, dtype=torch.bool), {}

    def through(name: str, reached: Tensor) -> Tensor:
        unreached[name] = ~reached
        weight = model.get_submodule(name).weight != 0
        return (weight.flatten(2).any(2) if weight.dim() > 2 else weight)[:, reached].any(1)

    reached = through("conv1", reached)
    for name, block in model.named_modules():
        if hasattr(block, "new_channels"):
            shortcut = F.pad(reached, (block.new_channels // 2, block.new_channels // 2))
            reached = through(f"{name}.conv2", through(f"{name}.conv1", reached)) | shortcut
    through("fc", reached)
    return unreached


@pytest.mark.parametrize(("build", "density"), [(resnet8, 0.01), (resnet8, 0.004), (resnet20, 0.006)])
def test_dead_inputs_of_resnets_are_those_no_path_leads_to(build: Callable[[int], nn.Module], density: float) -> None:
    for seed in range(3):
        model = thinned(build(10), density, seed)
        dead, expected = dead_inputs(model, layers(model, ()), 16), search(model)
        assert {name: each.tolist() for name, each in dead.items()} == {
            name: each.tolist() for name, each in expected.items()
        }
        assert 0 < sum(int(each.sum()) for each in dead.values()) < sum(each.numel() for each in dead.values())


def test_what_is_dead_is_the_same_for_every_image_of_the_real_model() -> None:
    model = thinned(resnet8(10), 0.01, seed=5).double()
    dead = dead_inputs(model, layers(model, ()), 16)
    seen: dict[str, Tensor] = {}
    for name in dead:
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    with torch.no_grad():
        model(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    for name, each in dead.items():
        constant = (seen[name] == seen[name][:1]).transpose(0, 1).flatten(1).all(1)
        assert constant[each].all()
    assert any(bool(each.any()) for each in dead.values())


def test_the_model_is_left_as_it_was() -> None:
    model = thinned(resnet8(10), 0.1, seed=0).train()
    before = copy.deepcopy(model.state_dict())
    dead_inputs(model, layers(model, ()), 16)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_pre_hooks for module in model.modules())


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.head = (
            nn.Linear(3, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        attended, _ = self.attend(x, x, x)
        return self.head(attended.mean(1))  # type: ignore[no-any-return]


def test_what_attention_reads_is_unknown_and_not_called_alive() -> None:
    model = Attending()
    with torch.no_grad():
        model.attend.out_proj.weight[2] = 0
    counted = channels(model, layers(model, ()), 4)
    assert counted["attend.in_proj"].inputs is None
    assert counted["attend.out_proj"] == Channels(4, 1, 12)
    assert (counted["embed"].dead_inputs, counted["head"].dead_inputs) == (0, 1)
    assert torch.backends.mha.get_fastpath_enabled()


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(Opaque.apply(x))  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_followed_says_so_and_its_outputs_still_count() -> None:
    model = Foreign()
    with pytest.raises(ModelError, match="--set inputs=false"):
        channels(model, layers(model, ()), 4)
    assert channels(model, layers(model, ()), None)["conv"] == Channels(2, 0, 6)


def results(acdc: Acdc, *arguments: str | Path) -> dict[str, Any]:
    result = acdc("analyze", "channels", *arguments, "--json")
    assert result.exit_code == 0, result.output
    models: dict[str, Any] = json.loads(result.stdout)["results"]["models"]
    return models


def test_the_command_on_a_run_and_on_a_foreign_file(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    from acdc_cli.models.tensors import load_tensors

    state, _ = load_tensors(trained / "sparse.safetensors")
    state["layer3.0.conv1.weight"][:16] = 0
    torch.save(state, tmp_path / "foreign.pth")
    data = ["--set", "data.val_crop=7", "--set", "data.val_resize=7", "--data", trained.parent / "images"]
    models = results(acdc, trained, tmp_path / "foreign.pth", "--model", "resnet8", *data, "--out", tmp_path / "out")
    ours, theirs = models.values()
    rows = state["layer3.0.conv1.weight"].flatten(1)
    zero = int((rows == 0).all(1).sum())
    assert theirs["layers"]["layer3.0.conv1"]["zero_outputs"] == zero >= 16
    assert theirs["layers"]["layer3.0.conv2"]["dead_inputs"] == zero
    assert theirs["conv"]["outputs"] == 16 + 2 * (16 + 32 + 64)
    assert theirs["all"]["outputs"] == theirs["conv"]["outputs"] + 10
    assert theirs["pruned_layers_over_time"] == []
    then = ours["pruned_layers_over_time"]
    assert [each["epoch"] for each in then] == [1, 3, 5]
    assert then[-1]["layers"] == {
        name: each["zero_outputs"] for name, each in ours["layers"].items() if name in then[-1]["layers"]
    }
    names = {file.name for file in (tmp_path / "out").iterdir()}
    stem = f"channels-{trained.parent.name}-{trained.name}-{tmp_path.name}-foreign"
    assert {f"{stem}{part}.png" for part in ("", "-over-time")} < names


def test_a_figure_without_zero_channels_says_so() -> None:
    alive, dead = Channels(8, 0, 72, 8, 0, 0), Channels(8, 1, 72, 8, 0, 0)
    texts = [
        [[text.get_text() for text in panel.texts] for panel in draw({"a": {"conv": each}}).axes]
        for each in (alive, dead)
    ]
    assert texts == [[["no zero output channels"], ["no dead input channels"]], [[], ["no dead input channels"]]]


def test_over_time_counts_the_rows_that_are_masked(trained: Path) -> None:
    run = RunDir(trained)
    for then, kept in zip(over_time(run), run.kept_masks(), strict=True):
        expected = {
            name.removesuffix(".weight"): sum(not row.any() for row in mask)
            for name, mask in load_masks(kept.file).items()
        }
        assert (then.epoch, then.phase) == (kept.epoch, "sparse")
        assert {name: each.zero_outputs for name, each in then.layers.items()} == expected


def test_without_inputs_nothing_is_said_of_them_and_a_dense_model_has_no_masks(
    acdc: Acdc, trained: Path, tmp_path: Path
) -> None:
    (dense,) = results(acdc, trained, "--which", "dense", "--set", "inputs=false", "--out", tmp_path).values()
    assert dense["all"]["inputs"] is None
    assert dense["pruned_layers_over_time"] == []
