import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acdc_cli.errors import ModelError
from acdc_cli.models import build
from acdc_cli.models.weights import classes_in, load_weights, plain_state_dict


def small(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build.find("resnet8")(num_classes=classes)


def save_torch(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet8"},
        lambda state: {"model": state},
        lambda state: OrderedDict((f"module.{name}", value) for name, value in state.items()),
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "model", "distributed", "compiled", "nested and both"],
)
def test_a_torch_file_is_read_whatever_wraps_its_state_dict(wrap, tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2)
    load_weights(model, save_torch(wrap(source.state_dict()), tmp_path / "weights.pt"))
    assert_same_weights(model, source)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2).to(memory_format=torch.channels_last)
    save_file(plain_state_dict(source), tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert_same_weights(model, source)


def test_a_compiled_model_reads_and_gives_plain_names(tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2)
    compiled = torch.compile(model, backend="eager")
    load_weights(compiled, save_torch(source.state_dict(), tmp_path / "weights.pt"))
    assert_same_weights(model, source)
    assert list(plain_state_dict(compiled)) == list(model.state_dict())
    assert plain_state_dict(nn.ModuleDict({"module": model})).keys() == model.state_dict().keys()


def test_a_checkpoint_of_the_time_before_batch_counters_is_read(tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2)
    state = {name: value for name, value in source.state_dict().items() if "num_batches_tracked" not in name}
    load_weights(model, save_torch(state, tmp_path / "old.pt"))
    assert_same_weights(model, source)


def test_half_precision_weights_become_the_models_precision(tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2)
    load_weights(model, save_torch(source.half().state_dict(), tmp_path / "half.pt"))
    assert_same_weights(model, source.float())


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("opened",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_torch({"state_dict": small().state_dict(), "args": Malicious()}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="can run code"):
        load_weights(small(), path)
    assert not Path("opened").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.pt", b""), ("text.pt", b"hello"), ("text.safetensors", b"hello"), ("cut.pt", None)],
)
def test_a_damaged_file_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        content = save_torch(small().state_dict(), path).read_bytes()[:1000]
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        load_weights(small(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no weight file .*nothing\.pt"):
        load_weights(small(), tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("content", "contained"), [({"epoch": 3, "loss": 0.1}, "keys epoch, loss"), ([1, 2], "a list"), ({}, "a dict")]
)
def test_a_file_without_a_state_dict_says_what_it_holds(content: object, contained: str, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=rf"holds no weights of this model: it has no tensors \({contained}\); name a file"
    ):
        load_weights(small(), save_torch(content, tmp_path / "other.pt"))


def test_another_number_of_classes_is_told_as_that(tmp_path: Path) -> None:
    path = save_torch(small(classes=1000).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="is for 1000 classes, but the data has 10"):
        load_weights(small(), path)


def test_every_misfit_is_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(small().state_dict())
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean"):
        del state[name]
    state["head.weight"] = torch.zeros(2)
    state["layer1.0.conv1.weight"] = torch.zeros(16, 16, 1, 1)
    model = small(seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(model, save_torch(state, tmp_path / "weights.pt"))
    message = str(caught.value)
    assert "4 missing: conv1.weight [16, 3, 3, 3], bn1.weight [16], bn1.bias [16], … 1 more" in message
    assert "1 unknown: head.weight" in message
    assert "1 of another shape: layer1.0.conv1.weight is [16, 16, 1, 1], not [16, 16, 3, 3]" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_number_of_classes_is_that_of_the_files_classifier(tmp_path: Path) -> None:
    state = small(classes=7).state_dict()
    assert classes_in(small(), save_torch(state, tmp_path / "weights.pt")) == 7
    del state["fc.weight"], state["fc.bias"]
    with pytest.raises(
        ModelError, match=r"headless\.pt has no fc\.weight, the classifier of the model; name the model"
    ):
        classes_in(small(), save_torch(state, tmp_path / "headless.pt"))
