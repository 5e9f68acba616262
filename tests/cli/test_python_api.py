"""acdc.api: the same runs as the commands', and masks in a training loop of one's own."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acdc_cli import api
from acdc_cli.recipe import kinds

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"
STEPS = 6
EPOCHS = 16
"""Of the demo recipes."""


class Loop:
    """A linear network on random numbers, trained as a stranger would train it."""

    def __init__(self, recipe: str = "demo", *overrides: str, losses: bool = True, shaped: bool = True) -> None:
        torch.manual_seed(0)
        self.inputs, self.labels = torch.randn(STEPS, 16, 8), torch.randint(4, (STEPS, 16))
        widths = [(8, 12), (12, 20), (20, 12), (12, 4)]
        self.model = nn.Sequential(*(nn.Sequential(nn.Tanh(), nn.Linear(*width)) for width in widths))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        loaded = api.load_recipe(recipe, overrides)
        self.sparse = api.SparseTraining(
            self.model, self.optimizer, loaded, STEPS, self._losses if losses else None, (8,) if shaped else None
        )

    def _losses(self, batch_size: int) -> Iterator[Tensor]:
        for inputs, labels in zip(
            self.inputs.flatten(0, 1).split(batch_size), self.labels.flatten().split(batch_size), strict=True
        ):
            yield cross_entropy(self.model(inputs), labels)

    def train(self) -> None:
        """One epoch."""
        for inputs, labels in zip(self.inputs, self.labels, strict=True):
            self.optimizer.zero_grad()
            cross_entropy(self.model(inputs), labels).backward()
            self.sparse.step()

    def run(self, epochs: int = EPOCHS) -> list[float]:
        """The sparsity at each epoch's end."""
        sparsities = []
        for epoch in self.sparse.epochs():
            self.train()
            sparsities.append(round(self.sparse.sparsity(), 4))
            if epoch + 1 == epochs:
                break
        return sparsities

    def weights(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.model.parameters()]


def test_the_example_ends_at_its_target(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 16
    assert shown.splitlines()[-1].endswith("sparsity 90.00%")


def test_the_sparse_part_of_the_example_is_ten_lines() -> None:
    lines = EXAMPLE.read_text().partition("optimizer = ")[2].partition("\n\n")[0]
    assert len(lines.splitlines()) <= 10
    assert "sparse.step()" in lines


def test_importing_the_api_imports_no_torch() -> None:
    code = "import acdc_cli.api, sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(shown.split()) & {"torch", "numpy", "timm", "wandb", "matplotlib"}


def test_a_recipe_is_trained_opened_and_evaluated(recipe: Path) -> None:
    loaded = api.load_recipe(recipe, ["epochs=8"])
    assert (loaded.name, loaded.epochs, loaded.sparsity.method) == ("small", 8, "acdc")
    run = api.train(recipe, ["epochs=4"], out=Path("here"))
    assert api.open_run("here").finished
    assert [record["epoch"] for record in api.open_run(run.path).records()] == [0, 1, 2, 3]
    metrics = api.evaluate(run.path, which="sparse")
    assert metrics["top1"] == run.records()[-1]["top1"]
    assert metrics["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_masks_follow_the_phases_of_the_recipe() -> None:
    assert Loop("demo", "sparsity.target=0.75").run() == 2 * [0, 0, 0.75, 0.75] + 3 * [0] + 5 * [0.75]


def test_masked_weights_gradients_and_momentum_are_zero() -> None:
    loop = Loop()
    loop.run()
    for name, weight in loop.sparse.sparsifier.masked.parameters.items():
        masked = ~loop.sparse.sparsifier.masked.masks[name]
        assert masked.any()
        for tensor in (weight, weight.grad, loop.optimizer.state[weight]["momentum_buffer"]):
            assert tensor is not None
            assert (tensor[masked] == 0).all()


# ask for gradients of their own, grow weights, look at the first gradients, have a backward mask
HOOKS = {"obc", "rigl", "snip", "topkast"}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method in HOOKS else pytest.mark.slow)
        for method in sorted({*kinds.methods()} - {"acdc", "dsd", "str"})
    ],
)
def test_every_method_reaches_its_target(method: str) -> None:
    loop = Loop(f"demo_{method}", *(["sparsity.samples=3"] if method == "woodfisher" else []))
    loop.run()
    target = getattr(loop.sparse.sparsifier.config, "target", 0.0)
    assert loop.sparse.sparsity() == pytest.approx(target, abs=5e-3)


def test_dsd_ends_dense() -> None:
    sparsities = Loop("demo_dsd").run()
    assert max(sparsities) > 0.5
    assert sparsities[-1] == 0


def test_str_learns_thresholds_that_the_optimiser_of_the_loop_moves() -> None:
    loop = Loop("demo_str", "sparsity.s_decay=0.1")
    loop.run()
    assert loop.sparse.sparsifier.metrics()["threshold_mean"] > 0.05


def test_top_kast_takes_over_the_decay_of_its_weights() -> None:
    loop = Loop("demo_topkast")
    weights = list(loop.sparse.sparsifier.masked.parameters.values())
    decays = {id(weight): group["weight_decay"] for group in loop.optimizer.param_groups for weight in group["params"]}
    assert {decays.pop(id(weight)) for weight in weights} == {0}
    assert set(decays.values()) == {1e-3}


def test_dense_best_fine_tunes_the_model_that_validated_best() -> None:
    loop = Loop("demo", "sparsity.last_phase=dense_best")
    best: list[Tensor] = []
    for epoch in loop.sparse.epochs():
        if epoch == 11:
            break
        loop.train()
        best = loop.weights() if epoch == 5 else best
        loop.sparse.validated(top1=0.9 if epoch == 5 else 0.5)
    assert all(map(torch.equal, loop.weights(), best))


def test_a_resumed_loop_ends_as_one_that_was_never_interrupted() -> None:
    whole, begun, resumed = Loop(), Loop(), Loop()
    whole.run()
    begun.run(epochs=7)
    resumed.model.load_state_dict(begun.model.state_dict())
    resumed.optimizer.load_state_dict(begun.optimizer.state_dict())
    resumed.sparse.load_state_dict(begun.sparse.state_dict())
    assert len(resumed.run()) == EPOCHS - 7
    assert all(map(torch.equal, resumed.weights(), whole.weights()))


def test_a_loop_resumed_within_an_epoch_does_not_begin_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, resumed, started = Loop(), Loop(), []
    epochs = begun.sparse.epochs()
    next(epochs)
    begun.sparse.step()
    resumed.sparse.load_state_dict(begun.sparse.state_dict())
    monkeypatch.setattr(resumed.sparse.sparsifier, "on_epoch_start", lambda moment: started.append(moment.epoch))
    epochs = resumed.sparse.epochs()
    assert next(epochs) == 0
    for _ in range(STEPS - 1):
        resumed.sparse.step()
    assert next(epochs) == 1
    assert started == [1]


def test_an_epoch_with_another_number_of_steps_is_refused() -> None:
    loop = Loop()
    epochs = loop.sparse.epochs()
    next(epochs)
    loop.sparse.step()
    with pytest.raises(api.AcdcError, match="epoch 0 took 1 steps; steps_per_epoch is 6"):
        next(epochs)


def test_a_method_that_probes_gradients_names_the_argument_it_lacks() -> None:
    loop = Loop("demo_woodfisher", losses=False)
    with pytest.raises(api.AcdcError, match="woodfisher needs SparseTraining"):
        loop.run()


def test_a_method_that_probes_a_blank_example_names_the_argument_it_lacks() -> None:
    with pytest.raises(api.AcdcError, match=r"synflow needs SparseTraining\(input_shape=…\)"):
        Loop("demo_synflow", shaped=False).run()
