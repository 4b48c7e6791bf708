"""Small models made at test time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from controller.home import Home


def convnet(path: Path, *, seed: int = 0, head_seed: int | None = None, batch: int | str = 1) -> Path:
    """Convolution, batch norm, ReLU, pooling, dense layer; 1×3×16×16 to 1×10. The head has a seed of its own."""
    body = np.random.default_rng(seed)
    head = np.random.default_rng(seed + 1000 if head_seed is None else head_seed)
    weights = {
        "conv.weight": body.standard_normal((8, 3, 3, 3)),
        "conv.bias": body.standard_normal(8),
        **{f"norm.{name}": np.abs(body.standard_normal(8)) + 0.5 for name in ("scale", "shift", "mean", "variance")},
        "head.weight": head.standard_normal((8, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "norm.scale", "norm.shift", "norm.mean", "norm.variance"], ["n"], name="norm"
        ),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "head.weight"], ["scores"], name="head"),
    ]
    onnx.save(model(nodes, {"image": [batch, 3, 16, 16]}, {"scores": [batch, 10]}, weights), path)
    return path


def model(
    nodes: list[Any],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, Any] | None = None,
    *,
    opset: int = 18,
) -> onnx.ModelProto:
    def values(shapes: dict[str, list[int | str]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", values(inputs), values(outputs), stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def home_with_tools(folder: Path, shared: Path) -> Home:
    """A home of its own that shares what Zig makes once per machine: it takes seconds."""
    home = Home.find(folder)
    home.cache.mkdir(parents=True, exist_ok=True)
    shared.mkdir(parents=True, exist_ok=True)
    (home.cache / "zig").symlink_to(shared)
    return home


def copied(home: Home, folder: Path) -> Home:
    """A home with the builds of another."""
    shutil.copytree(home.cache, folder / "cache", symlinks=True)
    return Home.find(folder)
