"""The modules of what the CPU keeps: what passes between it and the accelerator is exact, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from relax_networks import Floats, Network, compiled, with_function
from tvm import relax

from targets.cpu.compile import compile_module
from targets.cpu.machine import MACHINES
from targets.vta.config import DEFAULT, PUBLISHED, VtaConfig
from targets.vta.device import RUN
from targets.vta.evaluate import evaluate, evaluate_float, to_floats, to_integers
from targets.vta.graph import Shape
from targets.vta.host_module import CALIBRATE, calibration_module, deployment_module
from targets.vta.layout import pack, packed_shape, unpack
from targets.vta.partition import Partitioned, PartitionOptions, partition
from targets.vta.qgraph import QGraph, QTensor
from targets.vta.quantise import QuantiseOptions, quantise

BATCHED = PUBLISHED["4x8_i8w8a32_15_16_16_18"]
Int8 = npt.NDArray[np.int8]


def passing(shape: Shape, exponents: tuple[int, int], config: VtaConfig) -> tuple[Any, list[Int8], list[Int8]]:
    """A network of one region that gives what is in the second list, and writes what it is given into the first."""
    net = Network(shape)
    made = partition(net.module(net.conv(net.inputs[0], shape[1], kernel=1)), config, PartitionOptions(first_conv=True))
    (graph,) = made.regions
    tensors = {
        name: QTensor(name, graph.tensors[name], exponent)
        for name, exponent in zip((*graph.inputs, *graph.outputs), exponents, strict=True)
    }
    seen: list[Int8] = []
    given: list[Int8] = []

    def region(number: int, inputs: list[Any]) -> Sequence[Int8]:
        assert number == 0 and inputs[0].dtype == np.int8 and inputs[0].shape == packed_shape(shape, config)
        seen.append(unpack(inputs[0], shape, config))
        assert np.array_equal(pack(seen[-1], config), inputs[0])  # what was added is zero
        return [pack(given[0], config)]

    qgraph = QGraph("region-0", tensors, (), graph.inputs, graph.outputs)
    return with_function(RUN, deployment_module(made, [qgraph], config), [1], region), seen, given


HALVES = [0.5, 1.5, 2.5, 3.5, 0.49999997, 0.50000006, 126.5, 126.49999, 127.49999, 127.5, 128]
EXTREMES = [3e37, np.inf, 1e-45, 1e-38, 0.0, 8388609.0]
EDGES = np.array([sign * value for value in (*HALVES, *EXTREMES) for sign in (1, -1)], np.float32)
SHAPE: Shape = (1, 6, 2, 3)


@pytest.mark.parametrize("exponent", [-5, 0, 3])
def test_rounding_is_that_of_the_reference_at_every_edge(exponent: int) -> None:
    run, seen, given_back = passing(SHAPE, (exponent, 1), DEFAULT)
    x = np.resize((EDGES * np.float32(2.0**exponent)).astype(np.float32), SHAPE)
    given_back.append(np.resize(np.arange(-127, 128, 9, dtype=np.int8), SHAPE))
    (y,) = run([x])
    np.testing.assert_array_equal(seen[0], to_integers(x, exponent))
    np.testing.assert_array_equal(y, to_floats(given_back[0], 1))


@pytest.fixture(scope="module")
def converter() -> tuple[Any, list[Int8], list[Int8]]:
    return passing((1, 24, 3, 5), (-3, -20), DEFAULT)


@given(arrays(np.float32, (1, 24, 3, 5), elements=st.floats(-40, 40, width=32)), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rounding_is_that_of_the_reference(converter: tuple[Any, list[Int8], list[Int8]], x: Floats, seed: int) -> None:
    run, seen, given_back = converter
    given_back[:] = [np.random.default_rng(seed).integers(-127, 128, x.shape).astype(np.int8)]
    (y,) = run([x])
    np.testing.assert_array_equal(seen[-1], to_integers(x, -3))
    np.testing.assert_array_equal(y, to_floats(given_back[0], -20))


@pytest.mark.parametrize("config", [DEFAULT, BATCHED], ids=lambda config: config.name)
@pytest.mark.parametrize("shape", [(1, 16, 4, 4), (4, 8, 3, 2), (3, 20, 1, 7), (5, 1, 2, 2), (8, 33, 1, 1)])
def test_every_layout(shape: Shape, config: VtaConfig) -> None:
    run, seen, given_back = passing(shape, (0, 0), config)
    random = np.random.default_rng(0)
    x = random.uniform(-130, 130, shape).astype(np.float32)
    given_back.append(random.integers(-127, 128, shape).astype(np.int8))
    (y,) = run([x])
    np.testing.assert_array_equal(seen[0], to_integers(x, 0))
    np.testing.assert_array_equal(y, given_back[0].astype(np.float32))


def branched() -> Network:
    """Two inputs, two regions (a sigmoid between them), several tensors in and out, a dense layer behind."""
    net = Network((2, 3, 12, 12), (2, 16, 6, 6))
    first = net.relu(net.conv(net.inputs[0], 16, padding=1))
    x = net.emit(relax.op.nn.max_pool2d(first, pool_size=3, strides=2, padding=1))
    y = net.relu(net.add(net.conv(x, 16, padding=1), net.inputs[1]))
    gate = net.emit(relax.op.sigmoid(net.conv(y, 16, kernel=1)))
    z = net.relu(net.conv(net.emit(relax.op.multiply(y, gate)), 20, padding=1, strides=2))
    flat = net.emit(relax.op.reshape(z, (2, 180)))
    net.outputs = [net.dense(net.relu(net.dense(flat, 24)), 7), y]
    return net


def quantised(made: Partitioned, inputs: list[Floats], config: VtaConfig) -> list[QGraph]:
    """Calibrated on what the regions get for these inputs."""
    found: dict[int, QGraph] = {}

    def region(number: int, given: list[Any]) -> list[Any]:
        graph = made.regions[number]
        values = dict(zip(graph.inputs, (np.array(array) for array in given), strict=True))
        found[number], _ = quantise(graph, [values], QuantiseOptions(block=config.block))
        results = evaluate_float(graph, values)
        return [results[name] for name in graph.outputs]

    counts = [len(graph.inputs) for graph in made.regions]
    with_function(CALIBRATE, calibration_module(made), counts, region)(inputs)
    return [found[number] for number in range(len(made.regions))]


@pytest.mark.parametrize("config", [DEFAULT, BATCHED], ids=lambda config: config.name)
def test_a_network_of_several_regions(config: VtaConfig) -> None:
    net = branched()
    module, inputs = net.module(*net.outputs), net.samples()
    made = partition(module, config, PartitionOptions(dense=True))
    assert [(len(graph.inputs), len(graph.outputs)) for graph in made.regions] == [(2, 2), (1, 1)]
    graphs = quantised(made, inputs, config)

    def on_integers(number: int, packed: list[Any]) -> list[Any]:
        graph = graphs[number]
        shapes = [graph.tensors[name].shape for name in graph.inputs]
        given = [unpack(np.array(array), shape, config) for array, shape in zip(packed, shapes, strict=True)]
        values = evaluate(graph, dict(zip(graph.inputs, given, strict=True)))
        return [pack(values[name], config) for name in graph.outputs]

    def in_floats(number: int, given: list[Any]) -> list[Any]:
        graph = graphs[number]
        tensors = graph.tensors
        integers = {n: to_integers(x, tensors[n].exponent) for n, x in zip(graph.inputs, given, strict=True)}
        values = evaluate(graph, integers)
        return [to_floats(values[name], tensors[name].exponent) for name in graph.outputs]

    counts = [len(graph.inputs) for graph in graphs]
    deployed = with_function(RUN, deployment_module(made, graphs, config), counts, on_integers)(inputs)
    around = with_function(CALIBRATE, calibration_module(made), counts, in_floats)(inputs)
    for found, exact, close in zip(deployed, around, compiled(module)(inputs), strict=True):
        np.testing.assert_array_equal(found, exact)
        assert np.abs(found - close).max() < 0.1 * np.abs(close).max()


@pytest.mark.parametrize("machine", MACHINES)
def test_both_modules_compile_for_every_machine(machine: str) -> None:
    net = branched()
    made = partition(net.module(*net.outputs), DEFAULT, PartitionOptions())
    graphs = quantised(made, net.samples(), DEFAULT)
    target = MACHINES[machine]
    for module in (calibration_module(made), deployment_module(made, graphs, DEFAULT)):
        compiled = compile_module(module, target, target.processor(""))
        # What the accelerator has is not among them.
        assert compiled.executable.mod is not None and len(compiled.weights) == 6
