"""Quantised networks as ONNX has them: what is multiplied as integers, and that the results are ONNX Runtime's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from targets.cpu import passes
from targets.cpu.compile import tvm_target
from targets.cpu.layers import LayerTable
from targets.cpu.machine import MACHINES, Processor, cpu_features, machine
from targets.cpu.optimise import optimise
from targets.cpu.quantised import on_grid, product
from targets.cpu.rounding import SPREAD, rounding
from targets.cpu.schedule import schedule

HERE = MACHINES[machine()]
#: Of processors that multiply integers in the same way, with vectors of the same width, one.
HOSTS = {
    (product(processor).name, processor.lanes): processor
    for processor in HERE.processors.values()
    if cpu_features().issuperset(processor.features)
}


class Network:
    """An ONNX model that is written operator by operator; values are tensors' names."""

    def __init__(self, dtype: str, zero_point: int) -> None:
        self._rng = np.random.default_rng(7)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._type, self._zero_point = np.dtype(dtype), zero_point

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def quantised(self, value: str, scale: float, zero_point: int | None = None) -> str:
        point = self._zero_point if zero_point is None else zero_point
        how = (self.constant(np.float32(scale)), self.constant(self._type.type(point)))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, *how), *how)

    def weights(self, *shape: int) -> tuple[str, np.ndarray[Any, Any]]:
        """Dequantised weights of their own scale for each output, and the scales."""
        scales = self._rng.uniform(0.002, 0.02, shape[0]).astype(np.float32)
        numbers = self._rng.integers(-127, 128, shape, np.int8)
        points = np.zeros(shape[0], np.int8)
        names = [self.constant(each) for each in (numbers, scales, points)]
        return self.add("DequantizeLinear", *names, axis=0), scales

    def conv(self, value: str, scale: float, outputs: int, inputs: int, size: int, **attributes: Any) -> str:
        """With a bias in steps of the products, as quantisers give it."""
        weights, scales = self.weights(outputs, inputs, size, size)
        bias = self._rng.integers(-9000, 9000, outputs).astype(np.int32)
        names = [self.constant(each) for each in (bias, (scales * np.float32(scale)), np.zeros(outputs, np.int32))]
        return self.add("Conv", value, weights, self.add("DequantizeLinear", *names, axis=0), **attributes)

    def model(self, shape: tuple[int, ...], *outputs: tuple[str, tuple[int, ...]]) -> Any:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in outputs]
        graph = helper.make_graph(self._nodes, "network", [image], results, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def compiled(model: Any, processor: Processor) -> tuple[Any, LayerTable]:
    """The network in a virtual machine, and the kernels that it calls."""
    with tvm_target(HERE, processor):
        module, table = optimise(passes.simplify()(from_onnx(model, keep_params_in_input=False)), processor)
        executable = tvm.compile(module, relax_pipeline=passes.lower(schedule(processor)))
    return relax.VirtualMachine(executable, tvm.cpu()), table


def kernels(table: LayerTable) -> list[str]:
    """Their names without numbers."""
    return [row.kernel.rsplit("_", 1)[0] for row in table.layers]


def results(run: Any, image: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    run.set_input("main", tvm.runtime.tensor(image))
    run.invoke_stateful("main")
    outputs = run.get_outputs("main")
    return [each.numpy() for each in (outputs if isinstance(outputs, list | tuple | tvm.ir.Array) else [outputs])]


def expected(model: Any, image: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """What the operators say, in float32 and one by one: nothing is fused or made of integers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {"image": image})
    return found


def residual(dtype: str, zero_point: int) -> Any:
    """A first layer, a pool, a residual block with a projection, a mean and a matrix product; a part stays float."""
    net = Network(dtype, zero_point)
    low = int(np.iinfo(dtype).min)
    x = net.quantised("image", 0.03)
    x = net.quantised(net.conv(x, 0.03, 20, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]), 0.02, low)
    x = net.quantised(net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.02, low)
    y = net.quantised(net.conv(x, 0.02, 40, 20, 3, pads=[1, 1, 1, 1]), 0.05, low)
    y = net.quantised(net.conv(y, 0.05, 40, 40, 3, pads=[2, 2, 2, 2], dilations=[2, 2]), 0.3)
    shortcut = net.quantised(net.conv(x, 0.02, 40, 20, 1), 0.04)
    block = net.quantised(net.add("Relu", net.add("Add", y, shortcut)), 0.2, low)
    narrow = net.quantised(net.conv(block, 0.2, 7, 40, 1), 0.1)
    averaged = net.add("AveragePool", narrow, kernel_shape=[2, 2])
    mean = net.quantised(net.add("GlobalAveragePool", block), 0.05, low)
    flat = net.quantised(net.add("Flatten", mean), 0.05, low)
    weights, _ = net.weights(10, 40)
    scores = net.quantised(net.add("Gemm", flat, weights, net.constant(np.ones(10, np.float32)), transB=1), 0.01)
    return net.model((1, 3, 19, 22), (scores, (1, 10)), (averaged, (1, 7, 4, 5)))


BEST = HERE.processor("host")


@pytest.mark.parametrize(
    ("processor", "dtype", "zero_point"),
    [*((processor, "uint8", 117) for processor in HOSTS.values()), (BEST, "int8", 0), (BEST, "int8", -11)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_quantised_network(processor: Processor, dtype: str, zero_point: int) -> None:
    model = residual(dtype, zero_point)
    run, table = compiled(model, processor)
    names = kernels(table)
    assert names.count("int8_conv2d") == 6 and not {"conv2d", "dense", "winograd"} & set(names)
    image = np.random.default_rng(3).standard_normal((1, 3, 19, 22)).astype(np.float32)
    wanted, got = expected(model, image), results(run, image)
    # A number between two steps may come out as the other one, where sums were rounded in another order.
    for name, want, found in zip(("scores", "averaged"), wanted, got, strict=True):
        assert want.std() > 0.1, f"{name} say nothing"
        step = {"scores": 0.01, "averaged": 0.1}[name]
        assert np.abs(found - want).max() <= 2.01 * step, name
        assert (np.abs(found - want) > step / 8).mean() < 0.1, name


@pytest.mark.parametrize("processor", HOSTS.values(), ids=lambda processor: processor.name)
def test_beside_the_picture_is_zero(processor: Processor) -> None:
    """Of a zero point in the middle: beside the picture a maximum sees nothing, a convolution zero."""
    net = Network("uint8", 200)
    x = net.quantised("image", 0.02)
    x = net.quantised(net.conv(x, 0.02, 16, 4, 1), 0.01)
    x = net.quantised(net.add("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]), 0.01)
    model = net.model((2, 4, 6, 8), (net.conv(x, 0.01, 5, 16, 3, pads=[1, 1, 1, 1]), (2, 5, 6, 8)))
    image = -np.abs(np.random.default_rng(4).standard_normal((2, 4, 6, 8))).astype(np.float32)
    run, table = compiled(model, processor)
    assert kernels(table).count("int8_conv2d") == 2 and "max_pool2d" in kernels(table)
    np.testing.assert_allclose(results(run, image)[0], expected(model, image)[0], rtol=1e-3, atol=2e-3)


def test_a_picture_that_is_convolved_and_added() -> None:
    """A first layer reads its few channels as words, a sum reads them in blocks."""
    net = Network("uint8", 130)
    x = net.quantised("image", 0.02)
    total = net.add("Add", net.add("Relu", net.conv(x, 0.02, 3, 3, 3, pads=[1, 1, 1, 1])), x)
    model = net.model((1, 3, 8, 9), (total, (1, 3, 8, 9)))
    image = np.random.default_rng(6).standard_normal((1, 3, 8, 9)).astype(np.float32)
    run, table = compiled(model, BEST)
    assert kernels(table).count("int8_conv2d") == 1
    np.testing.assert_allclose(results(run, image)[0], expected(model, image)[0], rtol=1e-3, atol=2e-3)


def test_what_no_kernel_multiplies_as_integers_rounds_all_the_same() -> None:
    """Groups, and weights that are on no grid."""
    net = Network("uint8", 120)
    x = net.quantised("image", 0.02)
    weights, _ = net.weights(8, 2, 3, 3)
    x = net.quantised(net.add("Conv", x, weights, group=4), 0.02)
    free = net.constant(np.random.default_rng(0).standard_normal((6, 8, 1, 1)).astype(np.float32))
    model = net.model((1, 8, 9, 9), (net.quantised(net.add("Conv", x, free), 0.03), (1, 6, 7, 7)))
    image = np.random.default_rng(5).standard_normal((1, 8, 9, 9)).astype(np.float32)
    run, table = compiled(model, BEST)
    assert "int8_conv2d" not in kernels(table)
    difference = np.abs(results(run, image)[0] - expected(model, image)[0])
    assert difference.max() <= 0.0301 and (difference > 0.001).mean() < 0.1


def test_weights_on_a_grid_are_found() -> None:
    rng = np.random.default_rng(1)
    numbers = rng.integers(-127, 128, (9, 5, 3, 3))
    numbers[1], numbers[2] = 0, numbers[2] // 64 * 2
    numbers[3] = np.clip(numbers[3], -101, 99)
    scales = rng.uniform(1e-5, 1e3, (9, 1, 1, 1))
    # What stays of the product when a scale was folded into it, as float32.
    weights = ((numbers * scales).astype(np.float32) / np.float32(0.0371)).astype(np.float32)
    found = on_grid(weights)
    assert found is not None
    integers, of_one = found
    np.testing.assert_allclose(integers * of_one[:, None, None, None], weights, rtol=1e-6)
    assert np.abs(integers).max() <= 127 and not integers[1].any()


def test_weights_on_no_grid_are_not() -> None:
    weights = np.random.default_rng(2).standard_normal((4, 5, 3, 3)).astype(np.float32)
    assert on_grid(weights) is None
    # Asymmetric weights, and the one weight that is off.
    assert on_grid(np.arange(256, dtype=np.float32).reshape(1, 256)) is None
    almost = np.arange(-127, 128, dtype=np.float32).reshape(1, 255)
    almost[0, 200] += 0.01
    assert on_grid(almost) is None


def test_how_far_results_of_two_processors_may_be_apart() -> None:
    net = Network("uint8", 120)
    x = net.quantised("image", 0.02)
    weights = np.zeros((2, 1, 2, 2), np.float32)
    weights[0], weights[1] = 0.5, -2.0
    y = net.add("Conv", x, net.constant(weights))
    scaled = net.add("Relu", net.add("Mul", y, net.constant(np.float32(3))))
    steps = net.quantised(scaled, 0.25)
    simplified = [
        passes.simplify()(from_onnx(net.model((1, 1, 5, 5), (result, (1, 2, 4, 4))), keep_params_in_input=False))
        for result in (scaled, steps)
    ]
    # Four numbers, each a step off, by twos and then by three; after the last grid one step of that.
    assert rounding(simplified[0]) == pytest.approx(SPREAD * 0.02 * 4 * 3)
    assert rounding(simplified[1]) == pytest.approx(SPREAD * 0.25)


def test_a_network_that_is_not_quantised_has_no_steps() -> None:
    net = Network("uint8", 120)
    weights = net.constant(np.ones((2, 1, 2, 2), np.float32))
    model = net.model((1, 1, 5, 5), (net.add("Conv", "image", weights), (1, 2, 4, 4)))
    assert rounding(passes.simplify()(from_onnx(model, keep_params_in_input=False))) == 0
