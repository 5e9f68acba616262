"""Dead heads and neurons: by hand, and against what other inputs change in real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run_acdc
from sentence_files import write_recipe
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from acdc_cli.analysis.base import dead_units
from acdc_cli.analysis.base.dead_units import UnitCount
from acdc_cli.models.build import build
from acdc_cli.models.transformer_xl import TransformerXL
from acdc_cli.models.units import Units, heads, neurons, units_of
from acdc_cli.recipe.blocks.model import ModelBlock

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12, "vocab_size": 15,
    "max_position_embeddings": 24, "pad_token_id": 0,
}  # fmt: skip
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 12, "vocab_size": 15}
VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 4, "depth": 2, "mlp_ratio": 0.75}
TOKENS = torch.randint(3, 15, (2, 2, 9), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def encoder(kind: str, **options: int) -> nn.Module:
    return build(ModelBlock(name=f"hf:{kind}", options={**(options or SIZES)}), 3)


def torch_layers(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 12, batch_first=True, **options)
    return nn.Sequential(nn.Embedding(15, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(8, 4, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=12, num_classes=3)


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{kind: lambda kind=kind: encoder(kind) for kind in ("bert", "mpnet")},
    "deberta-v2": lambda: encoder("deberta-v2", **SIZES, pooler_hidden_size=16),
    "albert": lambda: encoder("albert", **SIZES, embedding_size=16),
    "distilbert": lambda: encoder("distilbert", **DISTIL),
    "transformer_xl": lambda: TransformerXL(15, layers=2, d_model=16, heads=4, inner=12),
    "timm": lambda: build(ModelBlock(name="timm:vit_tiny_patch16_224", options=VIT), 3),
    "torchvision": torchvision_vit,
    "torch": torch_layers,
}


@torch.no_grad()
def prepared(name: str) -> nn.Module:
    """With biases; in each layer one head and one neuron is not written, one not read, and one has neither channel in
    whole."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    for each in units_of(model):
        written, read = weights(model, each)
        width = len(written) // each.count
        if each.kind == "neurons":
            # so that every rectifier opens
            model.get_parameter(each.writes.replace("weight", "bias")).fill_(4.0)
        written[:width] = 0
        read[:, 2 * width : 3 * width] = 0
        written[3 * width : 4 * width : 2] = 0
        read[:, 3 * width + 1 : 4 * width : 2] = 0
    return model


def weights(model: nn.Module, units: Units) -> tuple[Tensor, Tensor]:
    return model.get_parameter(units.writes).chunk(units.parts)[units.part], model.get_parameter(units.reads)


def passed_on(model: nn.Module, units: Units, number: int) -> Tensor:
    """What a unit adds to the output of the layer that reads it, for each of two inputs."""
    seen: list[Tensor] = []
    _, read = weights(model, units)
    module, _, own = units.reads.rpartition(".")
    width = read.shape[1] // units.count
    share = slice(number * width, (number + 1) * width)
    assert own == "weight"
    reader = model.get_submodule(module)
    with torch.no_grad(), reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        for batch in IMAGES if any(isinstance(each, nn.Conv2d) for each in model.modules()) else TOKENS:
            mask = (torch.ones_like(batch), torch.zeros_like(batch)) if hasattr(model, "config") else ()
            model(batch, *mask)
    return torch.stack([each[..., share] @ read[:, share].T for each in seen]).flatten(1, -2)


@pytest.mark.parametrize("name", MODELS)
def test_no_input_changes_what_a_dead_unit_adds_and_some_input_changes_every_other(name: str) -> None:
    model = prepared(name)
    described = units_of(model)
    assert len(described) == 2 * (1 if name == "albert" else 2)
    for units in described:
        dead = dead_units.dead_units(units, dict(model.named_parameters())).tolist()
        expected = [0, 2, 3] if units.kind == "heads" else [0, 2]
        # a neuron has one channel, of which the fourth lost the row
        assert [number for number, is_dead in enumerate(dead) if is_dead] == sorted({*expected, 3})
        if units.reads.endswith("out_proj.weight"):
            # torch's own attention never calls that module: see the next test
            continue
        for number, is_dead in enumerate(dead):
            added = passed_on(model, units, number)
            changes = (added - added[:1, :1]).abs().max()
            # attention weights sum to one up to rounding
            assert (changes < 1e-4) if is_dead else (changes > 1e-3), (units, number, changes)


@pytest.mark.parametrize("name", ["torchvision", "torch"])
@torch.no_grad()
def test_a_dead_head_of_torchs_attention_is_constant(name: str) -> None:
    model = prepared(name)
    for units in units_of(model):
        if units.kind == "heads":
            attention = model.get_submodule(units.layer)
            assert isinstance(attention, nn.MultiheadAttention)
            width = attention.head_dim
            dead = dead_units.dead_units(units, dict(model.named_parameters()))
            for number in range(units.count):
                alone = nn.MultiheadAttention(16, 4, batch_first=True)
                alone.load_state_dict(attention.state_dict())
                others = [each for each in range(16) if each // width != number]
                alone.out_proj.weight[:, others] = 0
                outputs = torch.stack([alone(x, x, x)[0] for x in torch.randn(2, 2, 5, 16)]).flatten(0, 2)
                changes = (outputs - outputs[0]).abs().max()
                assert bool(dead[number]) == bool(changes < 1e-5), changes


def test_channels_count_by_hand() -> None:
    units = heads("", 2, "value", "output")
    # head 0: a row without a reader, and a column without a writer; head 1: its last channel is whole
    value = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 2]])
    output = torch.tensor([[0.0, 3, 1, 0], [0, 0, 0, 1]])
    assert dead_units.dead_units(units, {"value": value, "output": output}).tolist() == [True, False]
    # without the reader's weight, zero rows alone count; without the writer's, zero columns
    assert dead_units.dead_units(units, {"value": value}).tolist() == [False, False]
    assert dead_units.dead_units(units, {"output": output != 0}).tolist() == [False, False]
    inner = neurons("mlp", 4, "value", "output")
    named = {"mlp.value": value, "mlp.output": output, "value": value}
    assert dead_units.count([inner, units, replace(units, writes="no", reads="no")], named) == {
        "neurons": {"mlp": UnitCount(4, 3)},
        "heads": {"": UnitCount(2, 0)},
    }


def test_sums_over_layers() -> None:
    counts = {"heads": {"a": UnitCount(4, 1), "b": UnitCount(4, 3)}, "neurons": {"a": UnitCount(9, 0)}}
    assert dead_units.together(counts) == {"heads": UnitCount(8, 4), "neurons": UnitCount(9, 0)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)),
        nn.MultiheadAttention(4, 2, add_zero_attn=True),
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        # a norm mixes the channels of heads and neurons
        Attention(8, 2, scale_norm=True, norm_layer=nn.LayerNorm),
        Mlp(8, 12, norm_layer=nn.LayerNorm),
    ],
)
def test_what_describes_nothing_or_mixes_channels_has_no_units(model: nn.Module) -> None:
    assert units_of(model) == []


def test_attention_with_values_of_another_width_has_a_projection_of_its_own() -> None:
    (units,) = units_of(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))
    assert units == Units("heads", "", 2, "v_proj_weight", "out_proj.weight")


def test_an_encoder_of_another_layout_has_none() -> None:
    # its feed-forward layers are gated
    assert units_of(encoder("modernbert", **SIZES)) == []


def test_a_model_describes_its_own() -> None:
    class Own(nn.Module):
        def heads_and_neurons(self) -> list[Units]:
            return [neurons("mlp", 3, "up.weight", "down.weight")]

    assert units_of(Own()) == [Units("neurons", "mlp", 3, "mlp.up.weight", "mlp.down.weight")]


def test_the_command_counts_heads_and_neurons_of_a_run_and_over_its_masks(tmp_path: Path) -> None:
    """At 97 %, so that some neurons die."""
    run = tmp_path / "run"
    settings = ("--set", "sparsity.target=0.97", "--set", "data.val_examples=4")
    trained = run_acdc("train", write_recipe(tmp_path), "--out", run, *settings)
    assert trained.exit_code == 0, trained.output
    shown = run_acdc("analyze", "channels", run, "--out", tmp_path / "found")
    assert shown.exit_code == 0, shown.output
    (counts,) = json.loads((tmp_path / "found/channels-run.json").read_text())["results"]["models"].values()

    from safetensors.torch import load_file

    state = load_file(run / "sparse.safetensors")
    dead = 0
    for number in range(2):
        layer = f"bert.encoder.layer.{number}"
        rows = (state[f"{layer}.intermediate.dense.weight"] == 0).all(1)
        columns = (state[f"{layer}.output.dense.weight"] == 0).all(0)
        count = int((rows | columns).sum())
        assert counts["neurons"]["layers"][layer] == {"total": 64, "dead": count}
        dead += count
    assert dead > 0
    assert (counts["neurons"]["total"], counts["neurons"]["dead"]) == (128, dead)
    assert (counts["heads"]["total"], sorted(counts["heads"]["layers"])) == (4, sorted(counts["neurons"]["layers"]))
    then = counts["pruned_layers_over_time"]
    # the last mask is that of the model
    assert then[-1]["neurons"] == {"total": 128, "dead": dead}
    assert then[0]["heads"] == {"total": 4, "dead": 0}
    names = {file.name for file in (tmp_path / "found").iterdir()}
    assert {f"channels-run{what}" for what in ("-units.csv", "-units.svg", "-units-over-time.csv")} <= names
    lines = (tmp_path / "found/channels-run-units.csv").read_text().splitlines()
    assert lines[0] == "model,layer,kind,total,dead"
    assert len(lines) == 1 + 4
    assert [line.split()[1:3] for line in shown.stdout.splitlines() if " heads " in line] == [["heads", "4"]]
