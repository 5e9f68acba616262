"""Training loops that compete with ours, and formulations of the blur: each as its authors would write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.assemble import Resident

Blur = Callable[[nn.Conv2d, Tensor, Tensor], Tensor]
"""(convolution, input, filter of shape (channels, 1, 3, 3)) -> the convolution's output on the blurred input."""


def blur_at_stride_1(conv: nn.Conv2d, x: Tensor, binomial: Tensor) -> Tensor:
    """FFCV's: the blur keeps the size, and the strided convolution drops three quarters of what was blurred."""
    blurred = F.conv2d(x, binomial, padding=1, groups=conv.in_channels)
    return F.conv2d(blurred, conv.weight, stride=conv.stride, padding=conv.padding)


def blur_at_the_stride(conv: nn.Conv2d, x: Tensor, binomial: Tensor) -> Tensor:
    """Before a 1x1 convolution only what it reads is blurred: the same numbers, a quarter of the blur."""
    if conv.kernel_size != (1, 1):
        return blur_at_stride_1(conv, x, binomial)
    return F.conv2d(F.conv2d(x, binomial, padding=1, stride=conv.stride, groups=conv.in_channels), conv.weight)


def blur_by_shifts(conv: nn.Conv2d, x: Tensor, binomial: Tensor) -> Tensor:
    """[1, 2, 1] ⊗ [1, 2, 1] / 16 as sums of shifted slices, which Inductor fuses into what is around them."""
    rows, columns = conv.stride if conv.kernel_size == (1, 1) else (1, 1)
    padded = F.pad(x, (1, 1, 1, 1))
    high, wide = x.shape[-2:]
    tall = sum(weight * padded[..., at : at + high : rows, :] for at, weight in enumerate((0.25, 0.5, 0.25)))
    blurred = sum(weight * tall[..., at : at + wide : columns] for at, weight in enumerate((0.25, 0.5, 0.25)))
    stride = (1, 1) if conv.kernel_size == (1, 1) else conv.stride
    return F.conv2d(blurred.to(x.dtype), conv.weight, stride=stride, padding=conv.padding)


class _Blurred(nn.Module):
    def __init__(self, conv: nn.Conv2d, blur: Blur) -> None:
        super().__init__()
        self.conv, self._blur = conv, blur
        line = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("binomial", (line[:, None] * line / 16).repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._blur(self.conv, x, self.binomial)


def blurred(model: nn.Module, blur: Blur) -> nn.Module:
    """The model with the blur before every strided convolution of 16 or more input channels, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(parent, name, _Blurred(child, blur))
    return model


class Foreign:
    """A loop of others over a model. Images are normalised on the device, as their loaders do it."""

    def __init__(
        self,
        model: nn.Module,
        loader: Resident,
        device: torch.device,
        *,
        dtype: torch.dtype,
        compiled: bool,
        fetch_loss: bool,
    ) -> None:
        """dtype: of autocast; fp16 scales the loss. fetch_loss: at every step. On a CPU all is fp32 and eager."""
        cuda = device.type == "cuda"
        self._model = model.to(device).to(memory_format=torch.channels_last).train()
        self._forward = torch.compile(self._model) if compiled and cuda else self._model
        vectors = [weight for weight in model.parameters() if weight.ndim == 1]
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]
        self._optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9, weight_decay=1e-4)
        self._scaler = torch.amp.GradScaler(device.type, enabled=cuda and dtype == torch.float16)
        self._autocast = torch.autocast(device.type, dtype, enabled=cuda)
        self._images_as = dtype if cuda and dtype == torch.float16 else torch.float32
        self._loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        self._mean = 255 * torch.tensor((0.485, 0.456, 0.406), device=device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor((0.229, 0.224, 0.225), device=device).view(1, 3, 1, 1)
        self._loader, self._fetch_loss = loader, fetch_loss

    def train_epoch(self) -> float:
        """The last loss, in nats."""
        loss = torch.zeros(())
        with self._loader.epoch(0) as batches:
            for batch in batches:
                images = batch.inputs.float().sub_(self._mean).div_(self._std).to(self._images_as)
                self._optimizer.zero_grad(set_to_none=True)
                with self._autocast:
                    loss = self._loss(self._forward(images), batch.targets)
                self._scaler.scale(loss).backward()
                self._scaler.step(self._optimizer)
                self._scaler.update()
                if self._fetch_loss:
                    loss.item()
        return loss.item()


def as_ffcv(model: nn.Module, loader: Resident, device: torch.device) -> Foreign:
    """train_imagenet.py of ffcv-imagenet with its rn50 configuration: fp16, eager, unfused SGD, blur at stride 1.

    model: without a blur.
    """
    model = blurred(model, blur_at_stride_1)
    return Foreign(model, loader, device, dtype=torch.float16, compiled=False, fetch_loss=False)


def as_timm(model: nn.Module, loader: Resident, device: torch.device) -> Foreign:
    """train.py of timm with --amp --amp-dtype bfloat16 --channels-last --torchcompile: it fetches every loss."""
    return Foreign(model, loader, device, dtype=torch.bfloat16, compiled=True, fetch_loss=True)
