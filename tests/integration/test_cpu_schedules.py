"""Every kind of loop nest that the CPU's schedules meet computes what ONNX Runtime computes, at every vector width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from build_fixtures import home_with_tools, model
from cli_fixtures import Cli
from onnx import TensorProto, helper, numpy_helper
from test_build import TWO, assert_right, good, ran, zig

from controller import sources
from controller.build import BuildRequest, build
from controller.home import Home

__all__ = ["zig"]


@pytest.fixture
def home(tmp_path: Path, zig: Path) -> Home:
    return home_with_tools(tmp_path / "home", zig)


def mixed(path: Path) -> Path:
    """Convolutions plain, strided, dilated, depthwise, grouped, pointwise, with odd sizes; pooling, softmax, joins."""
    noise = np.random.default_rng(1)
    weights: dict[str, Any] = {}
    nodes: list[Any] = []

    def weight(name: str, *shape: int) -> str:
        weights[name] = noise.standard_normal(shape) * 0.2
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=f"node-{output}", **attributes))
        return output

    x = add("Conv", ["image", weight("w1", 24, 3, 3, 3), weight("b1", 24)], "c1", pads=[1, 1, 1, 1])
    x = add("Relu", [x], "r1")
    strided = add("Conv", [x, weight("w2", 32, 24, 3, 3)], "c2", pads=[1, 0, 0, 1], strides=[2, 2])
    depthwise = add("Conv", [strided, weight("w3", 32, 1, 3, 3)], "c3", pads=[1, 1, 1, 1], group=32)
    pointwise = add("Conv", [depthwise, weight("w4", 10, 32, 1, 1)], "c4")
    dilated = add("Conv", [strided, weight("w5", 7, 32, 3, 3)], "c5", pads=[2, 2, 2, 2], dilations=[2, 2])
    grouped = add("Conv", [strided, weight("w6", 8, 16, 3, 3)], "c6", pads=[1, 1, 1, 1], group=2)
    joined = add("Concat", [pointwise, dilated, grouped], "joined", axis=1)
    gate = add("Sigmoid", [joined], "gate")
    swish = add("Mul", [joined, gate], "swish")
    pooled = add("MaxPool", [swish], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    average = add("AveragePool", [pooled], "average", kernel_shape=[2, 2], strides=[1, 1])
    turned = add("Transpose", [average], "turned", perm=[0, 2, 3, 1])
    flat = add("Flatten", [turned], "flat", axis=1)
    hidden = add("Gemm", [flat, weight("w7", 40, 25 * 25), weight("b7", 40)], "hidden", transB=1)
    norm = add("LayerNormalization", [hidden, weight("scale", 40), weight("shift", 40)], "norm", axis=-1)
    scores = add("MatMul", [norm, weight("w8", 40, 100)], "scores")
    add("Softmax", [scores], "probabilities", axis=-1)
    outputs: dict[str, list[int | str]] = {"probabilities": [2, 100], "pooled": [2, 25, 6, 6]}
    onnx.save(model(nodes, {"image": [2, 3, 23, 25]}, outputs, weights), path)
    return path


def rows(path: Path) -> Path:
    """Attention, sums along and across rows, sorting, and convolutions that no kernel is for; of 2×32×157."""
    noise = np.random.default_rng(2)
    nodes: list[Any] = []
    weights: list[Any] = []

    def constant(value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        weights.append(numpy_helper.from_array(array, f"constant{len(weights)}"))
        return str(weights[-1].name)

    def noisy(*shape: int) -> str:
        return constant(noise.standard_normal(shape) * 0.2)

    def add(operator: str, inputs: list[str], output: str, more: Sequence[str] = (), **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output, *more], name=f"node-{output}", **attributes))
        return output

    def as_floats(name: str) -> None:
        add("Cast", [name], f"{name}_floats", to=TensorProto.FLOAT)

    columns = add("Transpose", ["rows"], "columns", perm=[0, 2, 1])
    attention = add("Softmax", [add("MatMul", [columns, "rows"], "products")], "attention", axis=-1)
    values = add("MatMul", [attention, columns], "values")
    linear = add("Add", [add("MatMul", [values, noisy(32, 48)], "linear"), noisy(48)], "biased")
    add("Add", [add("Mul", [linear, add("Sigmoid", [linear], "gate")], "swish"), add("Exp", [linear], "power")], "sum")
    add("ReduceMean", ["rows"], "row_means", axes=[2], keepdims=0)
    add("ReduceMean", ["rows"], "column_means", axes=[1], keepdims=0)
    add("ReduceMax", ["rows"], "largest", axes=[0, 1], keepdims=0)
    add("ReduceSum", [values, constant(np.array([2]))], "sums", keepdims=0)
    as_floats(add("ArgMax", ["rows"], "where", axis=2, keepdims=0))
    add("TopK", ["rows", constant(np.array([5]))], "top", ["places"], axis=2)
    as_floats("places")
    add("CumSum", ["rows", constant(np.array(1))], "running")
    add("Tanh", [add("Erf", ["rows"], "erf")], "tanh")
    add("Conv", ["rows", noisy(6, 32, 3)], "line", pads=[1, 1])
    solid = add("Reshape", ["rows", constant(np.array([2, 4, 8, 1, 157]))], "solid")
    add("Conv", [solid, noisy(3, 4, 3, 1, 3)], "block", pads=[1, 0, 1, 1, 0, 1])
    picture = add("Reshape", ["rows", constant(np.array([2, 8, 4, 157]))], "picture")
    add("ConvTranspose", [picture, noisy(8, 5, 3, 3)], "larger", strides=[2, 2])
    cut = ([1, 2], [30, 100], [1, 2], [3, 2])
    add("Slice", ["rows", *(constant(np.array(part)) for part in cut)], "cut")
    add("Where", [add("Greater", ["rows", constant(0.0)], "positive"), "rows", noisy(157)], "chosen")
    outputs = {
        "sum": [2, 157, 48],
        "row_means": [2, 32],
        "column_means": [2, 157],
        "largest": [157],
        "sums": [2, 157],
        "where_floats": [2, 32],
        "top": [2, 32, 5],
        "places_floats": [2, 32, 5],
        "running": [2, 32, 157],
        "tanh": [2, 32, 157],
        "line": [2, 6, 157],
        "block": [2, 3, 8, 1, 157],
        "larger": [2, 5, 9, 315],
        "cut": [2, 10, 49],
        "chosen": [2, 32, 157],
    }
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    given = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [2, 32, 157])
    graph = helper.make_graph(nodes, "rows", [given], described, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


MODELS = {"mixed": mixed, "rows": rows}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mcpu", ["host", "x86-64-v3", "x86-64-v2", "generic"])
def test_every_nest_is_computed_right(name: str, mcpu: str, home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(MODELS[name](tmp_path / f"{name}.onnx")), home=home)
    (built,) = build([BuildRequest(source, "x86", {"mcpu": mcpu})], home=home)
    found = ran(good(built), tmp_path, threads=TWO)
    if "lacks" in str(found["unmet"]):
        pytest.fail(f"this machine cannot check {mcpu}: {found['unmet']}")
    assert_right(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["arm64", "armv7"])
def test_every_nest_compiles_for_arm(name: str, target: str, home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(MODELS[name](tmp_path / f"{name}.onnx")), home=home)
    (built,) = build([BuildRequest(source, target)], home=home)
    assert good(built).size > 10_000


def test_an_operator_without_fast_code_is_named_and_runs(home: Home, tmp_path: Path) -> None:
    """By the build and by the same build out of the cache, on standard error and in the document."""
    sums = helper.make_node("CumSum", ["image", "axis"], ["sums"], name="sums")
    axis = numpy_helper.from_array(np.array(1), "axis")
    image, result = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 300, 64]) for n in ("image", "sums"))
    again = helper.make_node("Neg", ["sums"], ["less"], name="less")
    less = helper.make_tensor_value_info("less", TensorProto.FLOAT, [8, 300, 64])
    graph = helper.make_graph([sums, again], "sums", [image], [result, less], [axis])
    path = tmp_path / "sums.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

    cli = Cli(home.cache.parent)
    for cached in (False, True):
        called = cli("build", path, "--target", "x86", "--json")
        assert called.code == 0, called.err
        (report,) = called.document["builds"]
        assert report["cached"] is cached
        (warning,) = report["warnings"]
        assert "cumsum" in warning and warning in called.err

    (built,) = build([BuildRequest(sources.resolve(str(path), home=home), "x86")], home=home)
    assert good(built).cached
    assert_right(ran(built, tmp_path))


def test_what_has_kernels_is_not_named(home: Home, tmp_path: Path) -> None:
    (built,) = build([BuildRequest(sources.resolve(str(mixed(tmp_path / "mixed.onnx")), home=home), "x86")], home=home)
    manifest = good(built).manifest
    assert manifest is not None and not manifest.warnings
    assert b"warnings" not in built.manifest_bytes
