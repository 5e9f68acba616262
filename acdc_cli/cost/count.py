"""The operations of a model on one sample, in the order of the forward pass, counted without its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from acdc_cli import memory
from acdc_cli.data.data_set import kind_of
from acdc_cli.errors import ModelError
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.sparsity.prunable import layer_name

Kind = Literal["conv", "linear", "attention", "norm", "activation", "pool", "blur"]


@dataclass(frozen=True)
class Operation:
    """One call on one sample."""

    name: str
    """Name of the layer whose weight it uses, as in `prunable.Layer.name`, else of the module around it;
    for attention's own products, `blocks.0.attn (scores)` and `(values)`."""
    kind: Kind
    parameter_name: str | None
    """The weight that is multiplied, as in `sparsity.prunable.Layer.parameter_name`; None if it is not a parameter."""
    weights: int
    """Size of that parameter; 0 if there is none."""
    positions: int
    """How often each of these weights is used: output positions of a convolution (padding counts as input), over all
    parts of the image if it is cut into several; tokens of a linear layer."""
    same_positions: int
    """`positions`, but a padded, strided first convolution counts as if its padding were pixels and it padded by
    "same": 224 + 2·3 pixels with stride 2 give 115, not 112. RigL's counter does so (convention C), because its
    ResNet-50 pads the image in a separate layer, and no later input."""
    elements: int
    """Elements of the output."""
    macs: int
    """Multiply-accumulates while no weight is zero, of convolutions, linear layers, attention and blurs, else 0."""
    bias: bool
    """Whether a convolution or linear layer has a bias."""
    taps: int
    """Inputs of one output of a pooling or blur, else 0."""


def operations(model: nn.Module, size: int, block: DataBlock | None = None) -> list[Operation]:
    """The operations on one sample of this size, in eval mode; a memory of preceding samples is full.

    The model is not touched: tensors on the meta device, which have shapes but no memory, replace its own, and calls
    are recorded where torch hands them to a device. So operations by functions (`F.relu`, attention) count like those
    by modules. Additions, softmax and gates are left out.
    block: the data, which says what a sample is; None: an image of size x size pixels.
    Raises ModelError if the model takes no samples of this size.
    """
    # tied weights by their first name, as in sparsity.prunable
    parameters = {name: weight.to("meta") for name, weight in model.named_parameters()}
    buffers = {name: buffer.to("meta") for name, buffer in model.named_buffers()}
    dtype = next((weight.dtype for weight in parameters.values()), None)
    block = block or ImagesBlock(name="images", batch_size=1)
    # prepared on the CPU: on the meta device torch would do so in Python, for which it imports its compiler
    meta, cpu, kind = torch.device("meta"), torch.device("cpu"), kind_of(block)
    prepared = kind.preparation(block, cpu, torch.contiguous_format)(kind.blank(size, cpu), False)
    sample = tuple(
        None if each is None else each.to(meta, dtype if each.is_floating_point() else each.dtype) for each in prepared
    )
    try:
        with torch.no_grad(), meta, _in_eval_mode(model), memory.set_aside(model), _scopes(model) as scopes:
            recorder = _Recorder(parameters, buffers, scopes)
            remembered = -1
            # until the memory is full
            while (now := memory.length(model)) > remembered:
                remembered = now
                recorder.operations.clear()
                with recorder:
                    torch.func.functional_call(model, {**parameters, **buffers}, sample)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as e:
        raise ModelError(f"the model takes no {block.noun} of {size} {block.size_unit} ({e}); {block.size_keys}") from e
    return recorder.operations


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _scopes(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running, outermost first."""
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, inputs: running.append(name)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    handles = [
        handle
        for name, module in model.named_modules()
        # before BlurPool's own hook, so that a blur belongs to its convolution
        for handle in (module.register_forward_pre_hook(enter(name), prepend=True), module.register_forward_hook(leave))
    ]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Turns the calls that reach a device into operations."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing here is compiled; to keep its compiler out, torch would import it, which takes a second
        return False

    def __init__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], scopes: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._parameters = parameters
        self._scopes = scopes
        # by storage, because a linear layer multiplies by a transposed view of its weight
        self._parameter_names = {_storage(weight): name for name, weight in parameters.items()}
        self._buffers = {_storage(buffer) for buffer in buffers.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket.__name__.removesuffix("_")
        result: Any
        # shapes that torch would find by running it in Python, for which it imports its compiler
        if packet == "native_batch_norm":
            # in eval mode its output is like its input
            nothing = args[0].new_empty(0)
            result = (torch.empty_like(args[0]), nothing, nothing)
        elif packet == "mean" and len(args) == 3 and args[1]:
            result = args[0].new_empty(_reduced(args[0].shape, args[1], args[2]))
        elif packet == "addmm":
            result = args[1].new_empty(args[1].shape[0], args[2].shape[1])
        else:
            result = func(*args, **(kwargs or {}))
        if packet == "convolution":
            self._convolution(args, result)
        elif packet in _FACTORS:
            left, right = (args[number] for number in _FACTORS[packet])
            self._product(left, right, result)
        elif (kind := _ELEMENTWISE.get(packet)) and not self._is_weight(args[0]):
            output = result[0] if isinstance(result, tuple) else result
            self._record(self._scope, kind, output, taps=_taps(packet, args, output) if kind == "pool" else 0)
        return result

    def _convolution(self, args: Sequence[Any], output: Tensor) -> None:
        image, weight, _, stride, padding, _, transposed = args[:7]
        # windows and attention heads come as a batch, so one image may have several
        batch, _, *side = (image if transposed else output).shape
        positions = batch * prod(side)
        macs = positions * weight.numel()
        if _storage(weight) in self._buffers:
            self._record(f"{self._scope} (blur)", "blur", output, macs=macs, taps=prod(weight.shape[2:]))
            return
        first = not any(operation.kind == "conv" for operation in self.operations)
        same = _same(image.shape[2:], side, stride, padding) if first and not transposed else side
        name = self._parameter_name(weight)
        self._record(self._layer(name), "conv", output, name, positions, batch * prod(same), macs)

    def _product(self, left: Tensor, right: Tensor, output: Tensor) -> None:
        """(…, m, k) times (…, k, n)."""
        macs = output.numel() * left.shape[-1]
        weight = next((factor for factor in (right, left) if self._is_weight(factor)), None)
        if weight is None:
            self._record(f"{self._scope} ({self._attention_part()})", "attention", output, macs=macs)
            return
        name = self._parameter_names[_storage(weight)]
        positions = macs // self._parameters[name].numel()
        self._record(self._layer(name), "linear", output, name, positions, positions, macs)

    def _record(
        self,
        name: str,
        kind: Kind,
        output: Tensor,
        parameter_name: str | None = None,
        positions: int = 0,
        same_positions: int = 0,
        macs: int = 0,
        taps: int = 0,
    ) -> None:
        bias = parameter_name is not None and f"{parameter_name.removesuffix('weight')}bias" in self._parameters
        weights = self._parameters[parameter_name].numel() if parameter_name else 0
        self.operations.append(
            Operation(name, kind, parameter_name, weights, positions, same_positions, output.numel(), macs, bias, taps)
        )

    @property
    def _scope(self) -> str:
        return self._scopes[-1]

    def _layer(self, parameter_name: str | None) -> str:
        return layer_name(parameter_name) if parameter_name else self._scope

    def _is_weight(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._parameter_names

    def _parameter_name(self, weight: Tensor) -> str | None:
        """The parameter itself, or that of the module that computes this weight from it (standardisation)."""
        if self._is_weight(weight):
            return self._parameter_names[_storage(weight)]
        own = f"{self._scope}.weight".removeprefix(".")
        return own if own in self._parameters and self._parameters[own].shape == weight.shape else None

    def _attention_part(self) -> str:
        """Attention multiplies twice: queries by keys, then the scores by values."""
        before = sum(name.kind == "attention" and name.name.startswith(f"{self._scope} (") for name in self.operations)
        return ("scores", "values")[before % 2]


_FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Where the two matrices are among a product's arguments. On the meta device all else is made of these: linear layers,
einsum, attention."""

_ELEMENTWISE: dict[str, Kind] = {
    **dict.fromkeys(["native_batch_norm", "native_layer_norm", "native_group_norm", "_fused_rms_norm"], "norm"),
    **dict.fromkeys(["relu", "gelu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh"], "activation"),
    **dict.fromkeys(["elu", "leaky_relu", "mish", "softplus", "_prelu_kernel"], "activation"),
    **dict.fromkeys(["max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "mean"], "pool"),
}
"""Global average pooling is a mean."""


def _reduced(shape: Sequence[int], dimensions: Sequence[int], keep: bool) -> list[int]:
    """The shape after a reduction over these dimensions; keep: they stay, with size 1."""
    gone = {dimension % len(shape) for dimension in dimensions}
    return [1 if number in gone else size for number, size in enumerate(shape) if keep or number not in gone]


def _taps(packet: str, args: Sequence[Any], output: Tensor) -> int:
    if packet in ("max_pool2d_with_indices", "avg_pool2d"):
        return prod(args[1])
    return int(args[0].numel() // output.numel())


def _same(image: Sequence[int], output: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    """The output's sides if a padded, strided convolution took its padded input with padding "same"."""
    return [
        -(-(size + 2 * pad) // step) if pad and step > 1 else side
        for size, side, step, pad in zip(image, output, stride, padding, strict=True)
    ]


def _storage(tensor: Tensor) -> int:
    """An identity of the storage, even without memory, as on the meta device; views share it."""
    return int(tensor.untyped_storage()._cdata)
