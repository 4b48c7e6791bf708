"""Every kind of loop nest that the CPU's schedules meet computes what ONNX Runtime computes, at every vector width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from build_fixtures import home_with_tools, model
from onnx import helper
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


@pytest.mark.parametrize("mcpu", ["host", "x86-64-v3", "x86-64-v2", "generic"])
def test_every_nest_is_computed_right(mcpu: str, home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(mixed(tmp_path / "mixed.onnx")), home=home)
    (built,) = build([BuildRequest(source, "x86", {"mcpu": mcpu})], home=home)
    found = ran(good(built), tmp_path, threads=TWO)
    if "lacks" in str(found["unmet"]):
        pytest.fail(f"this machine cannot check {mcpu}: {found['unmet']}")
    assert_right(found)


@pytest.mark.parametrize("target", ["arm64", "armv7"])
def test_every_nest_compiles_for_arm(target: str, home: Home, tmp_path: Path) -> None:
    source = sources.resolve(str(mixed(tmp_path / "mixed.onnx")), home=home)
    (built,) = build([BuildRequest(source, target)], home=home)
    assert good(built).size > 10_000


def test_packed_convolutions_are_tiled() -> None:
    """The rule for convolutions is one that fits: without it a network is forty times as slow."""
    from targets.cpu.machine import X86_MACHINE
    from targets.cpu.schedule import tile_sizes

    for name, processor in X86_MACHINE.processors.items():
        for rows, columns in ((56, 56), (7, 7), (13, 13), (1, 1), (19, 38)):
            group, row, column = tile_sizes(4, rows, columns, processor.registers)
            assert group * row * column + row * column <= processor.registers - 2, name
            assert rows % row == 0 and columns % column == 0 and 4 % group == 0
            if rows * columns >= 49:
                assert group * row * column >= 4, (name, rows, columns)
    assert tile_sizes(4, 56, 56, 32) == (1, 1, 14)
