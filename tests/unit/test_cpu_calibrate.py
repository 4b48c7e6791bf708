"""A float network made one of integers by samples of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm.relax.frontend.onnx import from_onnx

from targets.base import FleetError
from targets.cpu import passes
from targets.cpu.calibrate import OnThisHost, calibrated
from targets.cpu.machine import MACHINES, machine
from targets.cpu.optimise import optimise
from targets.cpu.rounding import rounding

SHAPE = (1, 3, 20, 24)


def network(nodes: Sequence[Any], weights: dict[str, Any], output: tuple[int, ...]) -> Any:
    """A simplified Relax module that gives the last node's output."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, output)
    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "network", [image], [result], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return passes.simplify()(from_onnx(model, keep_params_in_input=False))


def residual() -> Any:
    """A first layer, a pool, a residual block, a depthwise convolution beside it, a mean and a matrix product."""
    rng = np.random.default_rng(8)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (16, 1, 3, 3), "w5": (10, 16)}
    weights = {name: rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    # An output that is always the same.
    weights["w2"][3] = 0
    weights |= {name: rng.standard_normal(size) * 0.1 for name, size in (("b1", 16), ("b2", 16), ("b5", 10))}
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Conv", ["p", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["c3"], pads=[1, 1, 1, 1]),
        node("Add", ["c3", "p"], ["sum"]),
        node("Conv", ["sum", "w4"], ["c4"], group=16, pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c4"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "w5", "b5"], ["scores"], transB=1),
    ]
    return network(nodes, weights, (1, 10))


def images(count: int, seed: int = 0) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(SHAPE).astype(np.float32)] for _ in range(count)]


def test_what_is_multiplied_is_quantised() -> None:
    module = residual()
    quantised = calibrated(module, images(4))
    _, table = optimise(quantised, MACHINES[machine()].processor("host"))
    names = [row.kernel.rsplit("_", 1)[0] for row in table.layers]
    # The depthwise convolution has no kernel for integers.
    assert names.count("int8_conv2d") == 4 and names.count("depthwise_conv2d") == 1 and "conv2d" not in names
    exact, rounded = OnThisHost(module), OnThisHost(quantised)
    wanted, got = (np.concatenate([run(image)[0] for image in images(8, 1)]) for run in (exact, rounded))
    noise, signal = np.sum((got - wanted) ** 2), np.sum(wanted**2)
    assert 0 < noise < signal / 100, signal / noise
    assert 0 < rounding(quantised) < 0.2 and rounding(module) == 0


def test_one_value_has_one_grid_for_all_who_read_it() -> None:
    """Else a sum would need its numbers twice, and a network that was calibrated twice would lose twice."""
    once = calibrated(residual(), images(2))
    text = once.script()
    # image, p, r2, flat: what is multiplied.
    assert text.count("R.quantize(") == text.count("R.dequantize(") == 4
    image = images(1, 5)[0]
    np.testing.assert_allclose(OnThisHost(calibrated(once, images(2)))(image)[0], OnThisHost(once)(image)[0], atol=0.05)


def test_a_network_without_products_stays() -> None:
    module = network([helper.make_node("Relu", ["image"], ["positive"])], {}, SHAPE)
    assert "quantize" not in calibrated(module, images(1)).script()


@pytest.mark.parametrize(
    ("samples", "said"), [([], "not one sample"), ([[np.full(SHAPE, np.nan, np.float32)]], "not all finite")]
)
def test_samples_that_say_nothing(samples: list[list[Any]], said: str) -> None:
    with pytest.raises(FleetError, match=said) as error:
        calibrated(residual(), samples)
    assert error.value.code == "bad-calibration"
