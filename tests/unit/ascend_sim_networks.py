"""Small ONNX networks for the simulated CANN, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 11


def weights() -> Any:
    """Four 3x3 kernels over three channels, float32."""
    return np.random.default_rng(7).normal(size=(4, 3, 3, 3)).astype(np.float32)


def convolution(shape: tuple[Any, ...], *, domains: tuple[str, ...] = ("",), operator: str = "Relu") -> bytes:
    """``image`` of ``shape`` to ``found``: a padded convolution, then ``operator``."""
    nodes = [
        helper.make_node("Conv", ["image", "kernels"], ["sums"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["sums"], ["found"], name="last"),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("found", TensorProto.FLOAT, ("n", "c", "h", "w"))]
    graph = helper.make_graph(nodes, "net", inputs, outputs, [numpy_helper.from_array(weights(), "kernels")])
    imports = [helper.make_opsetid(domain, OPSET) for domain in domains]
    data: bytes = helper.make_model(graph, opset_imports=imports, ir_version=7).SerializeToString()
    return data


def addition(shape: tuple[Any, ...]) -> bytes:
    """``left`` + ``right``, and their product, both of ``shape``."""
    nodes = [
        helper.make_node("Add", ["left", "right"], ["sum"], name="add"),
        helper.make_node("Mul", ["left", "right"], ["product"], name="mul"),
    ]
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("left", "right")]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("sum", "product")]
    graph = helper.make_graph(nodes, "two", kinds, results)
    imports = [helper.make_opsetid("", OPSET)]
    data: bytes = helper.make_model(graph, opset_imports=imports, ir_version=7).SerializeToString()
    return data


NETWORKS: dict[str, bytes] = {
    "open": convolution(("N", 3, 8, 8)),
    "fixed": convolution((1, 3, 8, 8)),
    "open-image": convolution((1, 3, "H", "W")),
    "two-domains": convolution((1, 3, 8, 8), domains=("", "custom")),
    "unknown-operator": convolution((1, 3, 8, 8), operator="Fancy"),
    "newer-operator": convolution((1, 3, 8, 8), operator="Mish"),
    "two-inputs": addition(("N", 4)),
    "garbage": b"\xff\xfe not a protocol buffer",
    "empty": b"",
    "no-graph": onnx.ModelProto(ir_version=7).SerializeToString(),
}
NETWORKS["cut-short"] = NETWORKS["fixed"][:-20]


def write(folder: Path, name: str) -> Path:
    path = folder / f"{name}.onnx"
    path.write_bytes(NETWORKS[name])
    return path
