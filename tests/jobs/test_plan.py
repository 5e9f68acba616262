"""A run's course and price, from its recipe alone."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from acdc_cli.errors import DataError, ModelError, RecipeError, RunError
from acdc_cli.jobs import setup
from acdc_cli.jobs.plan_figure import draw
from acdc_cli.jobs.plan_tables import _percent, epoch_rows, layer_rows
from acdc_cli.jobs.run_plan import Plan, plan
from acdc_cli.models import build
from acdc_cli.recipe import shipped
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.load import load
from acdc_cli.schedule.sizes import sizes

SHORT = (
    "epochs=6",
    "sparsity.warmup_epochs=1",
    "sparsity.sparse_epochs=1",
    "sparsity.dense_epochs=1",
    "sparsity.last_dense_epochs=1",
    "sparsity.last_sparse_epochs=1",
)
DENSE_AND_SPARSE = ["dense", "sparse"] * 3

CONV1, PRUNABLE, CLASSIFIER = 432, 73_728, 640
"""Weights of ResNet-8, of which the first convolution and the classifier are kept dense."""
KEPT = 7_373
"""A tenth of the others."""

# 28 x 28 pixels in the first group of layers, 14 x 14 in the second, 7 x 7 in the third
PRUNABLE_MACS = 2 * 16 * 16 * 9 * 784 + (16 + 32) * 32 * 9 * 196 + (32 + 64) * 64 * 9 * 49
DENSE_MACS = CONV1 * 784 + CLASSIFIER


def planned(name: str = "demo", *overrides: str) -> Plan:
    return plan(load(name, overrides))


def test_the_epochs_are_those_that_training_will_have(in_tmp: Path) -> None:
    epochs = planned("demo", *SHORT).epochs
    assert [epoch.epoch for epoch in epochs] == list(range(6))
    assert [epoch.phase for epoch in epochs] == DENSE_AND_SPARSE
    assert [epoch.sparsity for epoch in epochs] == pytest.approx([0, 1 - KEPT / PRUNABLE] * 3)
    zeros_of_all = (PRUNABLE - KEPT) / (CONV1 + PRUNABLE + CLASSIFIER)
    assert [epoch.sparsity_all for epoch in epochs] == pytest.approx([0, zeros_of_all] * 3)
    assert [epoch.resolution for epoch in epochs] == [28] * 6


def test_the_learning_rate_is_that_of_an_epochs_first_and_last_step(in_tmp: Path) -> None:
    # 4,000 digits in batches of 64: 62 steps; one epoch of warm-up to 0.1, then 61/62 of 5 epochs at most
    straight = "optim.schedule={name: linear, warmup_epochs: 1}"
    epochs = planned("demo", *SHORT, straight).epochs
    assert [epoch.lr_start for epoch in epochs] == pytest.approx([0, 0.1, 0.08, 0.06, 0.04, 0.02])
    step = 0.02 / 62
    rates = [0.1 * 61 / 62, 0.08 + step, 0.06 + step, 0.04 + step, 0.02 + step, step]
    assert [epoch.lr_end for epoch in epochs] == pytest.approx(rates)


def test_dense_epochs_cost_three_forward_passes_and_sparse_ones_what_is_left_of_them(in_tmp: Path) -> None:
    plan = planned("demo", *SHORT)
    dense = 2 * (DENSE_MACS + PRUNABLE_MACS)
    sparse = 2 * DENSE_MACS + 2 * PRUNABLE_MACS * Fraction(KEPT, PRUNABLE)
    assert [epoch.forward_flops for epoch in plan.epochs] == [dense, sparse] * 3
    assert [epoch.train_flops for epoch in plan.epochs] == [3 * dense, 3 * sparse] * 3
    costs = [0, 1, sparse / dense, 1, sparse / dense, 1, sparse / dense]
    so_far = [float(sum(costs[: epoch + 2]) / 6) for epoch in range(6)]
    assert [epoch.cost for epoch in plan.epochs] == pytest.approx(so_far)
    assert plan.totals.train_ratio == pytest.approx(so_far[-1])
    assert plan.totals.train_flops == 3 * 62 * 64 * 3 * (dense + sparse)
    assert plan.totals.inference_flops == sparse
    assert plan.totals.inference_ratio == pytest.approx(float(sparse / dense))


def test_the_totals_count_parameters_images_and_steps(in_tmp: Path) -> None:
    totals = planned("demo", *SHORT).totals
    model = build.build(load("demo").model, 10)
    params = sum(weight.numel() for weight in model.parameters())
    assert (totals.params, totals.nonzero) == (params, params - PRUNABLE + KEPT)
    assert (totals.steps, totals.images) == (6 * 62, 6 * 62 * 64)
    assert totals.convention == "A"


def test_resolution_sets_the_price_of_its_epochs_and_validation_that_of_inference(in_tmp: Path) -> None:
    sizes = "data.resolution=[{since: 0, size: 20}, {since: 0.5, size: 28}]"
    plan = planned("demo", *SHORT, sizes, "data.val_crop=24", "sparsity={method: dense}")
    assert [epoch.resolution for epoch in plan.epochs] == [20] * 3 + [28] * 3
    # sides of 20 are halved to 10 and to 5
    small = 2 * (CONV1 * 400 + CLASSIFIER + 2 * 2304 * 400 + 48 * 288 * 100 + 96 * 576 * 25)
    assert [epoch.forward_flops for epoch in plan.epochs[:3]] == [small] * 3
    at_24 = 2 * (CONV1 * 576 + CLASSIFIER + 2 * 2304 * 576 + 48 * 288 * 144 + 96 * 576 * 36)
    assert plan.totals.inference_flops == at_24
    assert (plan.totals.train_ratio, plan.totals.inference_ratio) == (1, 1)


def test_a_ramps_sizes_are_those_that_training_will_ask_for(in_tmp: Path) -> None:
    ramp = "data.resolution={start_size: 16, end_size: 28, end: 4, step: 4}"
    plan = planned("demo", *SHORT, ramp, "sparsity={method: dense}")
    # 16, 19, 22 and 25 at epochs 0 to 3: 4, 4.75, 5.5 and 6.25 times 4
    assert [epoch.resolution for epoch in plan.epochs] == [16, 20, 24, 24, 28, 28]
    assert sizes(load("demo", [*SHORT, ramp])) == [epoch.resolution for epoch in plan.epochs]
    costs = [epoch.train_flops for epoch in plan.epochs]
    assert costs[0] < costs[1] < costs[2] == costs[3] < costs[4] == costs[5]


def test_an_average_takes_memory_and_room_in_the_checkpoint_but_no_training(in_tmp: Path) -> None:
    plain, averaged = planned("demo", *SHORT), planned("demo", *SHORT, "ema={decay: 0.9}")
    assert averaged.totals == plain.totals
    assert averaged.epochs == plain.epochs
    assert (plain.memory.ema, averaged.memory.ema) == (0, averaged.memory.weights)
    model = build.build(load("demo").model, 10)
    tensors = len(model.state_dict())
    assert averaged.checkpoint - plain.checkpoint == averaged.memory.weights + 300 * tensors


def test_gradients_that_a_method_asks_for_are_part_of_every_total(in_tmp: Path) -> None:
    # 250 pieces of 8 images in one pass, at epoch 2, when nothing is pruned yet
    once = "sparsity={method: woodfisher, target: 0.9, begin: 2, end: 2, samples: 250, fisher_batch_size: 8}"
    plan = planned("demo", "epochs=4", once)
    dense = 2 * (DENSE_MACS + PRUNABLE_MACS)
    sparse = 2 * DENSE_MACS + 2 * PRUNABLE_MACS * Fraction(KEPT, PRUNABLE)
    images = 62 * 64
    epochs = [3 * dense, 3 * dense, 3 * sparse + Fraction(2000, images) * 3 * dense, 3 * sparse]
    assert [epoch.train_flops for epoch in plan.epochs] == epochs
    assert plan.totals.train_flops == images * sum(epochs)
    assert plan.epochs[-1].cost == plan.totals.train_ratio == pytest.approx(float(sum(epochs) / (12 * dense)))


def test_repeats_change_which_images_are_seen_and_not_what_a_run_costs(in_tmp: Path) -> None:
    plain, repeated = (plan(load("demo", [*SHORT, f"data.augmentation.repeats={count}"])) for count in (1, 4))
    assert repeated.totals == plain.totals
    assert set(repeated.notes) - set(plain.notes) == {
        "an epoch shows one in 4 images, 4 times each (data.augmentation.repeats)"
    }


def test_the_json_has_the_keys_that_programs_read(in_tmp: Path) -> None:
    document = json.loads(json.dumps(planned("demo", *SHORT).as_dict()))
    assert {"epochs", "layers", "totals", "warnings"} <= document.keys()
    epoch = {"epoch", "phase", "sparsity", "lr_start", "lr_end", "resolution", "forward_flops", "train_flops"}
    assert epoch <= document["epochs"][0].keys()
    assert {"name", "shape", "prunable", "why", "density"} <= document["layers"][0].keys()
    totals = {"params", "nonzero", "inference_flops", "train_flops", "inference_ratio", "train_ratio", "convention"}
    assert totals | {"images", "steps"} <= document["totals"].keys()
    assert document["epochs"][0]["forward_flops"] == 2 * (DENSE_MACS + PRUNABLE_MACS)
    assert isinstance(document["epochs"][0]["forward_flops"], int)


def test_layers_say_why_they_stay_dense(in_tmp: Path) -> None:
    ranked = {layer.name: layer for layer in planned("demo").layers}
    assert (ranked["conv1"].prunable, ranked["conv1"].why, ranked["conv1"].density) == (False, "keep_dense: first", 1)
    inner = ranked["layer1.0.conv1"]
    assert (inner.shape, inner.prunable, inner.why, inner.density) == ((16, 16, 3, 3), True, None, None)
    (first, *_) = planned("demo", "sparsity={method: dense}").layers
    assert (first.prunable, first.why, first.density) == (False, "method: dense", 1)
    (first, *_) = planned("demo", "sparsity.pattern=2:4", "sparsity.target=0.5", "sparsity.keep_dense=[]").layers
    assert (first.prunable, first.why, first.density) == (False, "pattern: 2:4 does not divide the channels", 1)


def test_layers_have_the_density_of_the_sparsest_epoch_where_it_is_fixed(in_tmp: Path) -> None:
    plan = planned("demo", "sparsity.distribution=uniform", "sparsity.last_phase=dense_last")
    densities = {layer.name: layer.density for layer in plan.layers}
    assert densities["layer1.0.conv1"] == 230 / 2304
    assert densities["layer3.0.conv2"] == 3686 / 36864
    assert not any("unknown before training" in note for note in plan.notes)


def test_one_ranking_of_all_weights_is_priced_evenly_and_said_so(in_tmp: Path) -> None:
    (note,) = [note for note in planned("demo").notes if "density" in note]
    assert note == (
        "the densities of individual layers depend on the weights and are unknown before training: "
        "FLOPs assume the same density in all pruned layers"
    )


def test_a_learned_sparsity_is_no_number(in_tmp: Path) -> None:
    plan = planned("demo_str")
    assert plan.epochs[-1].sparsity is None
    assert plan.totals.nonzero is None
    assert "str learns its sparsity" in " ".join(plan.notes)
    assert epoch_rows(plan)[0][2:4] == ("?", "?")
    json.dumps(plan.as_dict())


def test_a_run_that_ends_dense_has_all_its_parameters(in_tmp: Path) -> None:
    totals = planned("demo_dsd").totals
    assert totals.nonzero == totals.params
    assert totals.inference_ratio == 1
    assert totals.train_ratio < 1


def test_like_epochs_are_one_row_and_every_nth_is_one_of_its_own(in_tmp: Path) -> None:
    plan = planned("demo")
    assert [(row[0], row[1]) for row in epoch_rows(plan)] == [
        ("0-1", "dense"),
        ("2-3", "sparse"),
        ("4-5", "dense"),
        ("6-7", "sparse"),
        ("8-10", "dense"),
        ("11-15", "sparse"),
    ]
    assert epoch_rows(plan)[-1][2] == "90.00"
    assert epoch_rows(plan)[-1][-1] == f"{plan.totals.train_ratio:.3f}"
    assert [row[0] for row in epoch_rows(plan, every=6)] == ["0", "6", "12", "15"]
    # a ramp's first epochs are as dense as those before it, and a phase of their own
    ramp = planned("demo", "sparsity={method: gmp, target: 0.9, begin: 2, end: 12}")
    assert [row[:2] for row in epoch_rows(ramp)][:2] == [("0-1", "dense"), ("2-6", "ramp")]


def test_nearly_all_and_hardly_any_are_not_rounded_to_all_and_nothing(in_tmp: Path) -> None:
    # 1 of 73,728 weights stays, in a layer of 36,864
    plan = planned("demo", "epochs=16", "sparsity.target=0.99999", "sparsity.distribution=erk")
    assert [row[2] for row in epoch_rows(plan)] == ["0.00", "99.999"] * 3
    densities = [row[3] for row in layer_rows(plan) if row[4] == ""]
    assert sorted(densities) == ["0.00%"] * 5 + ["0.003%"]
    assert [_percent(share) for share in (0.0, 1.0, 0.5, 0.99995, None)] == ["0.00", "100.00", "50.00", "99.995", "?"]


def test_rounds_of_a_lottery_have_their_own_clock(in_tmp: Path) -> None:
    plan = planned(
        "demo",
        "epochs=10",
        "optim.schedule={name: linear, warmup_epochs: 1}",
        "sparsity={method: lottery, target: 0.75, prune: 0.5, rewind_to: 1, keep_dense: []}",
    )
    # rounds of 4 epochs, of which the second and third start again at epoch 1, at the peak
    rates = [0, 0.1, 0.2 / 3, 0.1 / 3, *[0.1, 0.2 / 3, 0.1 / 3] * 2]
    assert [epoch.lr_start for epoch in plan.epochs] == pytest.approx(rates)
    assert [epoch.phase for epoch in plan.epochs] == ["dense"] * 4 + ["ramp"] * 3 + ["sparse"] * 3


# a few of them by default; `test_lint.py` has all of them judged
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % 10 == 0 else pytest.mark.slow)
        for number, name in enumerate(shipped.names())
    ],
)
def test_every_shipped_recipe_is_planned_without_doubt(in_tmp: Path, name: str) -> None:
    plan = planned(name)
    assert plan.warnings == []
    assert len(plan.epochs) == load(name).epochs
    assert plan.totals.train_ratio > 0
    assert {len(row) for row in epoch_rows(plan)} == {10}
    assert len(layer_rows(plan)) == len(plan.layers) > 5


def test_no_weight_is_ever_made_and_none_is_loaded(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    construct = build.build

    def watched(block: ModelBlock, classes: int) -> nn.Module:
        made.append(construct(block, classes))
        return made[-1]

    monkeypatch.setattr(build, "build", watched)
    planned("resnet50_95", "sparsity.from_checkpoint=nowhere.pt")
    planned("resnet50_95", "model.weights=nowhere.pt")
    assert len(made) == 2
    for model in made:
        assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_a_model_that_needs_values_to_be_built_is_planned_and_draws_nothing(in_tmp: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = setup.without_weights(load("demo_dense", ["model.name=torchvision:regnet_y_400mf"]), 1000)
    assert sum(weight.numel() for weight in model.parameters()) == 4_344_144
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert torch.equal(torch.get_rng_state(), before)
    plan = planned("demo_dense", "model.name=torchvision:regnet_y_400mf")
    assert plan.totals.train_flops == 3 * plan.totals.inference_flops * plan.totals.images


def test_planning_resnet50_runs_it_once_for_each_size_of_images_and_without_weights(in_tmp: Path) -> None:
    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            passes.append(inputs[0].device.type)

    passes: list[str] = []
    noting = register_module_forward_pre_hook(note)
    try:
        plan = planned("resnet50_95")
    finally:
        noting.remove()
    sizes = {epoch.resolution for epoch in plan.epochs} | {load("resnet50_95").data.val_crop}
    assert passes == len(sizes) * ["meta"]


def test_a_set_that_is_not_there_has_the_size_that_its_name_tells(in_tmp: Path) -> None:
    plan = planned("resnet50_95")
    assert plan.totals.steps == 100 * (1_281_167 // 1024)
    assert "imagenet was not found: its 1,281,167 training images are assumed" in plan.notes
    with pytest.raises(DataError, match="folder has no train and val"):
        planned("demo", "data.name=folder")
    with pytest.raises(DataError, match=r"data.batch_size 5000 is more than the 4000 images of demo"):
        planned("demo", "data.batch_size=5000")


def test_an_incomplete_last_batch_is_not_counted_and_said_so(in_tmp: Path) -> None:
    # 1,281,167 - 1,251 · 1,024
    (note,) = [note for note in planned("resnet50_95").notes if "last batch" in note]
    assert "143 of 1,281,167 images" in note
    assert planned("resnet50_95").totals.images == 100 * (1_281_167 - 143)
    # 4,000 images
    assert not any("last batch" in note for note in planned("demo", "data.batch_size=100").notes)


def test_a_size_that_the_model_refuses_is_told_with_the_keys_that_set_it(in_tmp: Path) -> None:
    with pytest.raises(ModelError, match=r"takes no images of 28 pixels .*; training crops are data.resolution"):
        planned("demo", "model.name=timm:vit_tiny_patch16_224")


def test_what_the_start_took_to_train_is_not_counted_and_said_so(in_tmp: Path) -> None:
    note = "the cost of training elsewhere.pt is not counted"
    assert note in planned("demo_woodfisher", "sparsity.from_checkpoint=elsewhere.pt").notes
    assert note in planned("demo_dense", "model.weights=elsewhere.pt").notes
    assert not any("the cost of training" in each for each in planned("demo_woodfisher").notes)
    taught = planned("demo_dense", "task.teacher=elsewhere")
    assert "elsewhere was not found: a dense resnet8 is assumed to teach" in taught.notes


def test_what_training_would_refuse_is_refused(in_tmp: Path) -> None:
    with pytest.raises(RecipeError, match=r"sparsity\.every: .* step 1000"):
        planned("demo_rigl", "sparsity.every=1000", "sparsity.every_epochs=null")


def test_the_figure_is_drawn_in_the_format_of_its_name(in_tmp: Path) -> None:
    # without a target there is no course of sparsity
    for name in ("demo", "demo_str"):
        draw(planned(name), Path(f"{name}.svg"))
        assert Path(f"{name}.svg").read_text().startswith("<?xml")
    with pytest.raises(RunError, match=r"--plot: plan.mp3 must end in one of .*png"):
        draw(planned("demo"), Path("plan.mp3"))
    with pytest.raises(RunError, match=r"plan\.png cannot be written"):
        draw(planned("demo"), Path("nowhere/plan.png"))


def test_memory_counts_weights_gradients_momentum_masks_and_what_a_method_keeps(in_tmp: Path) -> None:
    sgd, bigger = planned("demo").memory, planned("demo_topkast").memory
    weights = 4 * planned("demo").totals.params
    assert (sgd.gradients, sgd.optimizer, sgd.method) == (weights, weights, 0)
    # a boolean and a float a weight; twice, and the weights themselves, where others learn than act
    assert sgd.masks == 5 * PRUNABLE
    assert bigger.masks == 2 * sgd.masks
    adamw = "optim={name: adamw, lr: 0.01, weight_decay: 0.1, schedule: {name: cosine}}"
    assert planned("demo", adamw).memory.optimizer == 2 * weights
