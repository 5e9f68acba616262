from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_trainer import FewImages, MiniRun
from torch import Tensor, nn
from torch._dynamo.callback import CallbackArgs, callback_handler
from torch._dynamo.utils import counters

from acdc_cli.data.batches import Batch
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training import compiling
from acdc_cli.training.compiling import Compilations, Compiled
from acdc_cli.training.evaluate import evaluate
from acdc_cli.training.precision import Precision
from acdc_cli.training.progress import tell_compiled

CPU = torch.device("cpu")
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that knows no graph, and a log of its own."""
    torch.compiler.reset()
    log = compiling._Log()
    for module in ("compiling", "evaluate", "progress"):
        monkeypatch.setattr(f"acdc_cli.training.{module}.LOG", log)
    yield
    torch.compiler.reset()


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """torch.compile does nothing but to note the images that it is called with."""
    shown: list[Tensor] = []

    def compile(forward: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        def noted(images: Tensor) -> Tensor:
            shown.append(images)
            return forward(images)

        return noted

    monkeypatch.setattr(torch, "compile", compile)
    return shown


class Sevenths(FewImages):
    """Seven images in batches of three, three and one."""

    def __init__(self) -> None:
        super().__init__(samples=7, batch_size=3)
        self.steps = 3
        # as loaders give them: NHWC in memory
        self.images = self.images.contiguous(memory_format=LAST)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        parts = torch.arange(7).split(3)
        yield (Batch(self.images[part], self.labels[part], part) for part in parts)


def exact_model() -> nn.Module:
    """Its weights are such that every sum is exact in float32, in whatever order a kernel takes it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).to(memory_format=LAST)
    for parameter in model.parameters():
        parameter.data = torch.randint_like(parameter, -2, 3) / 16
    return model.eval()


def exact_forward(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: model((images.float() / 64).contiguous(memory_format=LAST))


def test_the_last_batch_of_an_evaluation_is_filled_up_and_each_image_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = uncompiled(monkeypatch)
    model = exact_model()
    forward = exact_forward(model)
    compiled = Compiled(forward, model, "default")
    judged = [
        evaluate(model, each, Sevenths(), Classification(), Precision("fp32", CPU)) for each in (forward, compiled)
    ]
    assert judged[0] == judged[1]
    assert judged[1]["samples"] == 7
    assert [len(images) for images in shown] == [3, 3, 3]
    assert {images.stride() for images in shown} == {shown[0].stride()}
    assert len({images.is_inference() for images in shown}) == 1


def test_only_what_needs_no_gradient_is_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = uncompiled(monkeypatch)
    model = exact_model()
    compiled = Compiled(exact_forward(model), model, "default")
    for count in (4, 2):
        assert compiled(torch.zeros(count, 3, 8, 8, dtype=torch.uint8)).shape == (count, 3)
    with torch.no_grad():
        # another size of images has its own largest batch
        for count, side in ((2, 8), (5, 8), (4, 8), (1, 8)):
            assert compiled(torch.zeros(count, 3, side, side, dtype=torch.uint8)).shape == (count, 3)
    assert [len(images) for images in shown] == [4, 2, 2, 5, 5, 5]


@pytest.mark.parametrize(("mode", "moved"), [("default", False), ("reduce-overhead", True)])
def test_gradients_leave_a_graphs_memory_before_it_is_written_again(
    monkeypatch: pytest.MonkeyPatch, mode: compiling.Mode, moved: bool
) -> None:
    uncompiled(monkeypatch)
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    model = exact_model()
    compiled = Compiled(exact_forward(model), model, mode)
    images = torch.ones(2, 3, 8, 8, dtype=torch.uint8)
    compiled(images).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    before = [gradient.clone() for gradient in gradients if gradient is not None]
    compiled(images)
    for gradient, value, parameter in zip(gradients, before, model.parameters(), strict=True):
        assert (parameter.grad is not gradient) == moved
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, value)
    assert len(begun) == 2 * moved


def test_a_line_says_what_was_compiled() -> None:
    compilations = Compilations(2, 63.6, ("training on 1024 images of 160 px", "evaluation on 500 images of 224 px"))
    assert str(compilations) == (
        "compiled 2 graphs in 64 s: training on 1024 images of 160 px, evaluation on 500 images of 224 px"
    )
    assert str(Compilations(1, 0.2, ("training on 8 images of 8 px",))).startswith("compiled 1 graph in 0 s: ")


@pytest.mark.filterwarnings("default")
def test_each_graph_is_counted_and_one_that_is_built_again_has_torchs_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # graphs without kernels, which take seconds
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **_: real(forward, dynamic=False, backend="eager"))
    bars: list[str] = []
    model = nn.Identity().eval()
    compiled = Compiled(lambda inputs: model(inputs) + 1, model, "default")
    callback_handler.register_start_callback(lambda event: bars.append(str(compiling.LOG)))
    compiled(torch.zeros(4, 3, 8, 8))
    told = tell_compiled()
    assert told["compile_seconds"] > 0
    assert "compiled 1 graph in 0 s: gradients on 4 images of 8 px\n" in capsys.readouterr().err
    compiled(torch.zeros(4, 3, 8, 8))
    assert tell_compiled() == {}
    compiled(torch.zeros(4, 3, 8, 8).contiguous(memory_format=LAST))
    [cause] = compiling.LOG.take().causes
    assert cause.startswith("gradients on 4 images of 8 px again (tensor 'inputs' stride mismatch at index ")
    compiling.LOG._causes["gradients"] = "forgotten"
    assert compiling.LOG.take().causes == ("gradients again (torch gives no reason)",)
    assert [text.startswith(" · compiling for ") for text in bars] == [True, True]
    # another compiled model, in the same process
    Compiled(lambda inputs: inputs, model, "default")
    assert len(callback_handler.start_callbacks) == 2


# what the compiler has to say about this Python
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_run_has_one_graph_for_each_shape_and_tells_when_it_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    run = MiniRun(tmp_path / "run", 3, {"method": "dense"}, compiled="reduce-overhead", val=Sevenths())
    counted = counters["stats"]["unique_graphs"]

    def watched(event: CallbackArgs) -> None:
        seen.append(str(compiling.LOG))

    callback_handler.register_start_callback(watched)
    run.fit()
    assert counters["stats"]["unique_graphs"] - counted == 2
    said = capsys.readouterr().err
    assert said.count("compiled") == 1
    assert "compiled 2 graphs in " in said
    assert ": training on 4 images of 8 px, evaluation on 3 images of 8 px\n" in said
    assert all(text.startswith(" · compiling for ") for text in seen)
    assert seen
    assert str(compiling.LOG) == ""
    records = run.directory.records()
    assert records[0]["compile_seconds"] > 0
    assert ["compile_seconds" in record for record in records] == [True, False, False]
    # what nobody expects is told with torch's reason
    with torch.inference_mode():
        run.forward(torch.zeros(3, 3, 8, 8, dtype=torch.uint8).contiguous(memory_format=torch.contiguous_format))
    [cause] = compiling.LOG.take().causes
    assert cause.startswith("evaluation on 3 images of 8 px again (tensor 'inputs' stride mismatch at index ")
