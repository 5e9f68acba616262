"""Engines that run an exported model on the CPU. Apart from torch's own, none needs torch in its process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acdc_cli.console import unprinted
from acdc_cli.errors import RunError
from acdc_cli.recipe.suggest import did_you_mean

Array = NDArray[Any]
Runner = Callable[[Array], Array]
"""A batch of images, as the exported model takes them, to logits (batch, classes)."""


@dataclass(frozen=True)
class Engine:
    format: str
    """The export format that it reads."""
    package: str
    """The module to import."""
    install: str
    """The package that pip installs."""
    open: Callable[[Path, int], Runner]
    """Opens a file with a number of threads; 0 leaves the number to the engine."""


def _torch(path: Path, threads: int) -> Runner:
    import torch

    if threads:
        torch.set_num_threads(threads)
    with path.open("rb") as file:
        program = torch.export.load(file).module()

    def run(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = program(torch.from_numpy(images)).numpy()
        return logits

    return run


def _onnxruntime(path: Path, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Array) -> Array:
        logits: Array = session.run(["logits"], {"images": images})[0]
        return logits

    return run


def _mnn(path: Path, threads: int) -> Runner:
    with unprinted():
        import MNN

        # its keyword `thread_num` is ignored: it takes all cores
        manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads or 1},))
        net = MNN.nn.load_module_from_file(str(path), ["images"], ["logits"], runtime_manager=manager)

    def run(images: Array) -> Array:
        kind = MNN.expr.uint8 if images.dtype == np.uint8 else MNN.expr.float
        with unprinted():
            # NCHW for images of either layout: MNN would rearrange any other
            given = MNN.expr.const(images, list(images.shape), MNN.expr.NCHW, kind)
            (logits,) = net.forward([given])
            return np.array(MNN.expr.convert(logits, MNN.expr.NCHW).read())

    return run


def _openvino(path: Path, threads: int) -> Runner:
    import openvino

    # its default on some processors is bfloat16, which the other engines do not use
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", properties)

    def run(images: Array) -> Array:
        # a copy: the engine reuses its output
        return np.array(compiled(images)[0])

    return run


ENGINES = {
    "torch": Engine("pt2", "torch", "torch", _torch),
    "ort": Engine("onnx", "onnxruntime", '"acdc-cli[deploy]"', _onnxruntime),
    "mnn": Engine("mnn", "MNN", '"acdc-cli[mnn]"', _mnn),
    "openvino": Engine("onnx", "openvino", '"acdc-cli[openvino]"', _openvino),
}


def installed() -> list[str]:
    return [name for name, engine in ENGINES.items() if importlib.util.find_spec(engine.package)]


def find(name: str) -> Engine:
    """The engine of this name. Raises RunError if there is none, or its package is missing."""
    if name not in ENGINES:
        raise RunError(f"there is no engine {name}, only {', '.join(ENGINES)}{did_you_mean(name, list(ENGINES))}")
    engine = ENGINES[name]
    if importlib.util.find_spec(engine.package) is None:
        raise RunError(
            f"engine {name} needs the package {engine.package}, which is missing: pip install {engine.install}"
        )
    return engine
