"""The prunable weights with their masks: a masked weight, its gradient and its optimiser state are exactly zero.

Some methods train weights that the forward pass does not use. Gradients and optimiser state then have a mask of their
own, the backward mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from acdc_cli.errors import CheckpointError, RunError

T = TypeVar("T")


class Agreement(Protocol):
    """What the masks need from the ranks of a run: `training.distributed.Ranks`."""

    @property
    def size(self) -> int: ...

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors in place with those of rank 0."""

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in order."""


class MaskedParameters:
    """Weights by plain parameter name, each with a boolean mask: True where the weight lives.

    All changes are in place, so that compiled graphs, DDP's buckets and the optimiser keep their tensors. Create it
    once the model has its device and memory layout: masks take both from the weights.

    With several ranks, rank 0's masks are broadcast, and every change checks that all ranks have the same masks and
    weights.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], ranks: Agreement | None = None) -> None:
        """ranks: the ranks of the run, if there are several."""
        self._ranks = ranks
        self.parameters = dict(parameters)
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.parameters.items()}
        self.total = sum(weight.numel() for weight in self.parameters.values())
        self._backward: dict[str, Tensor] | None = None
        self._weight_factors = _Factors({name: weight.detach() for name, weight in self.parameters.items()})
        self._gradient_factors = self._weight_factors
        self._optimizer: Optimizer | None = None

    @property
    def backward_masks(self) -> dict[str, Tensor]:
        """True where a weight has a gradient: the masks themselves, unless `set` was given backward masks."""
        return self.masks if self._backward is None else self._backward

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each weight."""
        return {name: weight.shape for name, weight in self.parameters.items()}

    def attach(self, optimizer: Optimizer) -> None:
        """From now on, keep the state of masked weights in this optimiser at zero, too."""
        self._optimizer = optimizer

    @property
    def learning_rate(self) -> float:
        """Learning rate of these weights at this step."""
        assert self._optimizer is not None
        first = next(iter(self.parameters.values()))
        groups = self._optimizer.param_groups
        return next(float(group["lr"]) for group in groups if any(weight is first for weight in group["params"]))

    def set(self, masks: Mapping[str, Tensor], backward: Mapping[str, Tensor] | None = None) -> None:
        """Set the masks; newly masked weights, their gradients and their optimiser state become zero.

        backward: masks of gradients and optimiser state, if they differ from those of the weights.
        """
        assert masks.keys() == self.masks.keys()
        self.verify()
        self._take(masks, backward)
        self.apply()
        self._gradient_factors.multiply(
            # Adam's step count is a scalar that masked and living weights share
            (name, state)
            for name, state in self._optimizer_state()
            if state.shape == self.masks[name].shape
        )
        self.apply_to_gradients()
        self.verify()

    def fill(self) -> None:
        """Free every weight; those that were masked start from zero."""
        self.verify()
        for mask in self.masks.values():
            mask.fill_(True)
        self._weight_factors.fill()
        self._backward, self._gradient_factors = None, self._weight_factors

    def verify(self) -> None:
        """Raises RunError on all ranks if the masks or weights of one differ from those of rank 0."""
        if self._ranks is None or self._ranks.size == 1:
            return
        everyone = self._ranks.gather(self._fingerprints())
        for rank, fingerprints in enumerate(everyone):
            if differing := [name for name, value in fingerprints.items() if value != everyone[0][name]]:
                raise RunError(
                    f"rank {rank} of {len(everyone)} no longer trains the same model: its {differing[0]} differ from "
                    f"those of rank 0 ({len(differing)} of {len(fingerprints)} tensors differ). Its machine's memory "
                    "or GPU may be faulty: leave that machine out, and continue from the last checkpoint with --resume"
                )

    def apply(self) -> None:
        """Zero the masked weights."""
        self._weight_factors.multiply(self._detached())

    def apply_to(self, tensors: Mapping[str, Tensor]) -> None:
        """Zero these tensors, which have the weights' names and shapes, where the weights are masked."""
        self._weight_factors.multiply(iter(tensors.items()))

    def apply_to_gradients(self) -> None:
        """Zero the masked weights' gradients: one fused call, and none while no weight is masked."""
        named = [(name, weight.grad) for name, weight in self.parameters.items() if weight.grad is not None]
        self._gradient_factors.multiply(iter(named))

    def finite_gradients(self) -> Tensor:
        """Whether every gradient of this step is finite, including those of weights that are never pruned.

        A boolean on the device. If it is false, the optimiser takes no step.
        """
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        weights = [weight for group in groups for weight in group["params"]] or self.parameters.values()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        non_finite, one = torch.zeros((), device=gradients[0].device), torch.ones((), device=gradients[0].device)
        # the gradient scaler's own check: one fused call, which leaves gradients unchanged when it scales by 1
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, non_finite, one)
        return non_finite == 0

    def reset_momentum(self) -> None:
        """Zero the optimiser's state of every parameter on the device, including those that are never pruned.

        Adam's step count is zeroed too, because its bias correction belongs to the averages.
        """
        of_parameters = [] if self._optimizer is None else self._optimizer.state.values()
        if states := [value for state in of_parameters for value in state.values() if isinstance(value, Tensor)]:
            torch._foreach_zero_(states)

    def magnitudes(self) -> dict[str, Tensor]:
        """|w|, and -1 for masked weights, which rank below every living weight, even a zero one."""
        magnitudes = {name: weight.abs() for name, weight in self._detached()}
        if self._weight_factors.kept < self.total:
            for name, magnitude in magnitudes.items():
                magnitude.masked_fill_(~self.masks[name], -1)
        return magnitudes

    def sparsity(self) -> float:
        """Fraction of the prunable weights that is masked, without a fetch from the device."""
        return 1 - self._weight_factors.kept / self.total if self.total else 0.0

    def zeros(self) -> dict[str, int]:
        """Weights of each layer that are exactly zero, masked or not, with one fetch from the device."""
        return dict(zip(self.parameters, count_zeros(list(self.parameters.values())), strict=True))

    def trained(self) -> dict[str, int]:
        """Weights of each layer that have a gradient; empty unless there are backward masks."""
        if self._backward is None:
            return {}
        masked = count_zeros(list(self._backward.values()))
        return {name: mask.numel() - count for (name, mask), count in zip(self._backward.items(), masked, strict=True)}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The masks themselves, not copies, and the backward masks if there are any."""
        backward = {} if self._backward is None else {"backward": dict(self._backward)}
        return {"forward": dict(self.masks), **backward}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the masks of a checkpoint; its weights and optimiser are loaded separately.

        Raises CheckpointError if they are not masks of these weights.
        """
        saved = {name: mask.shape for name, mask in state["forward"].items()}
        current = {name: mask.shape for name, mask in self.masks.items()}
        if differing := [name for name in {**current, **saved} if current.get(name) != saved.get(name)]:
            raise CheckpointError(
                f"the checkpoint has masks of other weights: {len(differing)} differ, the first is {differing[0]}; "
                "resume with the model and keep_dense of the run that wrote it"
            )
        self._take(state["forward"], state.get("backward"))

    def _take(self, masks: Mapping[str, Tensor], backward: Mapping[str, Tensor] | None) -> None:
        self._copy(masks, self.masks)
        self._weight_factors.set(self.masks)
        if backward is None:
            self._backward, self._gradient_factors = None, self._weight_factors
            return
        if self._backward is None:
            self._backward = {name: torch.empty_like(mask) for name, mask in self.masks.items()}
            self._gradient_factors = _Factors({name: weight.detach() for name, weight in self.parameters.items()})
        self._copy(backward, self._backward)
        self._gradient_factors.set(self._backward)

    def _copy(self, masks: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        for name, mask in targets.items():
            mask.copy_(masks[name])
        if self._ranks is not None:
            # rounding may differ from one kind of GPU to another, and a tie's outcome with it
            self._ranks.broadcast_(targets.values())

    def _fingerprints(self) -> dict[str, int]:
        """A number for each layer's weights, masks and backward masks, with one fetch from the device."""
        tensors = {f"weights of {name}": weight for name, weight in self._detached()}
        tensors |= {f"masks of {name}": mask for name, mask in self.masks.items()}
        tensors |= {f"backward masks of {name}": mask for name, mask in (self._backward or {}).items()}
        numbers: list[int] = torch.stack([_fingerprint(tensor) for tensor in tensors.values()]).tolist()
        return dict(zip(tensors, numbers, strict=True))

    def _detached(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.detach()) for name, weight in self.parameters.items())

    def _optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        if self._optimizer is None:
            return
        for name, weight in self.parameters.items():
            # .get, because the state is a defaultdict: reading it must leave no trace in the checkpoint
            state: dict[str, Any] = self._optimizer.state.get(weight, {})
            for value in state.values():
                if isinstance(value, Tensor):
                    yield name, value


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by the bytes of a number."""


def _fingerprint(tensor: Tensor) -> Tensor:
    """The bits as integers, each times an odd number that depends on its position, summed modulo 2^64.

    The sum does not depend on the order in which a device adds, and any change of a single number changes it.
    """
    bits = tensor.reshape(-1).view(_BITS[tensor.element_size()]).long()
    places = torch.arange(len(bits), device=bits.device)
    # 2^64 / golden ratio (Knuth's multiplicative hashing), as a signed integer
    return (bits * (places * -7046029254386353131 | 1)).sum()


class _Factors:
    """Masks as factors in the weights' dtype and layout: a product of unlike tensors would leave the fused path."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._factors = {name: torch.ones_like(weight) for name, weight in weights.items()}
        self.total = sum(weight.numel() for weight in weights.values())
        self.kept = self.total

    def set(self, masks: Mapping[str, Tensor]) -> None:
        for name, factor in self._factors.items():
            factor.copy_(masks[name])
        self.kept = self.total - sum(count_zeros(list(masks.values())))

    def fill(self) -> None:
        for factor in self._factors.values():
            factor.fill_(1)
        self.kept = self.total

    def multiply(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Multiply in place; no work if every factor is 1."""
        if self.kept == self.total:
            return
        named = list(tensors)
        if named:
            torch._foreach_mul_([tensor for _, tensor in named], [self._factors[name] for name, _ in named])


def count_zeros(tensors: Sequence[Tensor]) -> list[int]:
    """Exact zeros in each tensor, with one fetch from the device."""
    if not tensors:
        return []
    nonzero: list[int] = torch.stack([tensor.detach().count_nonzero() for tensor in tensors]).tolist()
    return [tensor.numel() - count for tensor, count in zip(tensors, nonzero, strict=True)]
