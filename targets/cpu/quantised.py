"""Quantised values become integers, and convolutions of integers with integers are computed as such.

Until here a quantised value is a number on a grid, and a network that is quantised is one of float32 that rounds: right
on every processor, without this pass too. Whether weights are on a grid is read off the weights themselves: numbers
that are whole multiples of one scale a channel, to float32's precision, give the same sums computed as integers,
whoever made them so. So scales that were folded into the weights before do no harm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from targets.cpu import choose
from targets.cpu.graph import (
    WITH_PROGRAM,
    Array,
    Convolution,
    GlobalAverage,
    Graph,
    Grid,
    IntegerConvolution,
    Layer,
    Matrix,
    Opaque,
    Pointwise,
    Pooling,
    Quantisation,
    Value,
)
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.products import PLAIN, PMADDWD, SDOT, VPDPBUSD, Product
from targets.cpu.kernels.program import Operand, Result, Step
from targets.cpu.kernels.quantise import WORD
from targets.cpu.layouts import demote
from targets.cpu.processors import Processor

Weights = npt.NDArray[np.int8]
Argument = Result | Operand | float

#: How far a multiple of a scale may be from a whole number: float32 divided twice is off by 128 · 2⁻²².
NEAR = 1e-4
#: Products of bytes that fit a 32-bit sum.
LONGEST = 2**16


def product(processor: Processor) -> Product:
    """The processor's way of multiplying small integers."""
    if processor.int8 in ("vnni", "avxvnni"):
        return VPDPBUSD
    if processor.int8 == "dot":
        return SDOT
    return PLAIN if choose.by_lane(processor) else PMADDWD


def on_grid(weights: Array) -> tuple[Weights, npt.NDArray[np.float64]] | None:
    """Weights as integers and a scale for each of the first dimension, if they are their product."""
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    peaks = np.abs(rows).max(axis=1, initial=0.0)
    scales = np.where(peaks > 0, peaks, 1.0) / 127
    # Few numbers tell nearly every row that is on no such grid.
    few = rows[:, :32]
    left = np.arange(len(rows))
    for top in range(127, 0, -1):
        scales[left] = np.where(peaks[left] > 0, peaks[left], 1.0) / top
        left = left[~_whole(few[left] / scales[left, None])]
        if not left.size:
            break
    numbers = rows / scales[:, None]
    if left.size or not _whole(numbers).all():
        return None
    return np.rint(numbers).astype(np.int8).reshape(weights.shape), scales


def _whole(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows have nothing but whole numbers."""
    return np.asarray((np.abs(numbers - np.rint(numbers)) < NEAR).all(axis=1), np.bool_)


def quantise(graph: Graph, processor: Processor) -> None:
    """Store as integers what integer convolutions read, wherever it is made."""
    how = product(processor)
    kernels = {
        layer: found for layer in graph.nodes if isinstance(layer, Layer) and (found := _integers(layer)) is not None
    }
    stored = _stored(graph, kernels)
    for value in stored:
        _enter(value)
    demote(graph, processor.lanes)
    twins: dict[Value, Value] = {}
    nodes: list[Layer | Opaque] = []
    for node in graph.nodes:
        if isinstance(node, Layer):
            if node in kernels and node.inputs[0] in twins:
                _multiply(node, *kernels[node])
            _read(node, twins)
            value = node.output
            if value in stored and _can_store(node):
                twins[value] = _store(node, how)
        nodes.append(node)
    graph.nodes = _with_floats(graph, nodes, twins)
    for node in graph.nodes:
        if isinstance(node, Layer) and isinstance(node.work, Quantisation):
            node.work = Quantisation(_is_word(graph, node.output))


# --- Which values -----------------------------------------------------------------------------------------------


def _integers(layer: Layer) -> tuple[Weights, npt.NDArray[np.float64]] | None:
    """The weights of a layer as integers, and their scales, if it can be computed with them."""
    work = layer.work
    if not isinstance(work, Convolution | Matrix) or layer.inputs[0].grid is None:
        return None
    if work.weights[0].size >= LONGEST or (isinstance(work, Convolution) and work.groups != 1):
        return None
    return on_grid(work.weights)


def _stored(graph: Graph, kernels: dict[Layer, tuple[Weights, npt.NDArray[np.float64]]]) -> set[Value]:
    """Values to store as integers: inputs of convolutions of integers, of maxima that give such, and what they give."""
    stored = {layer.inputs[0] for layer in kernels}
    numbers = {*graph.results, *(value for node in graph.nodes for value in _numbers(node))}
    stored.update(layer.output for layer in kernels if layer.output.grid is not None and layer.output not in numbers)
    for node in reversed(graph.nodes):
        if isinstance(node, Layer) and node.output in stored and _keeps_grid(node):
            stored.add(node.inputs[0])
    return stored


def _numbers(node: Layer | Opaque) -> list[Value]:
    """What a node reads that it cannot read as integers, unless it multiplies them."""
    if isinstance(node, Opaque):
        return node.inputs
    if not isinstance(node.work, _READS_OPERANDS):
        return list(node.reads)
    return [] if isinstance(node.work, GlobalAverage | Pointwise) else node.inputs


def _keeps_grid(layer: Layer) -> bool:
    """Whether it is a maximum that is on the grid because what it is taken of is."""
    work, grid = layer.work, layer.output.grid
    if not isinstance(work, Pooling) or work.kind != "max" or grid is None or layer.inputs[0].grid != grid:
        return False
    return [step.op for step in layer.steps] == [step.op for step in grid.steps]


def _enter(value: Value) -> None:
    """Rounding of what no kernel gives, such as the network's input, is a layer of its own."""
    layer = value.producer
    if isinstance(layer, Layer) and isinstance(layer.work, Pointwise):
        before = layer.inputs[0].producer
        if not isinstance(before, Layer) or layer.inputs[0].rank != 4:
            layer.work = Quantisation()


def _is_word(graph: Graph, value: Value) -> bool:
    """Whether a picture's channels fit into one word, and nobody reads them in blocks."""
    if value.shape is None or value.rank != 4 or not value.shape[1] <= WORD <= value.shape[3]:
        return False
    if value in graph.results:
        return False
    return all(
        isinstance(node, Layer) and isinstance(node.work, IntegerConvolution) and value not in _operands(node)
        for node in graph.nodes
        if value in node.reads
    )


def _operands(layer: Layer) -> list[Value]:
    return [operand for operand in layer.operands if isinstance(operand, Value)]


def _can_store(layer: Layer) -> bool:
    """Whether its kernel stores integers, and its program ends with a grid's last steps."""
    if isinstance(layer.work, Matrix) or not isinstance(layer.work, (*WITH_PROGRAM, IntegerConvolution, Quantisation)):
        return False
    if isinstance(layer.work, Pooling) and layer.inputs[0].dtype != "float32":
        return True
    return [step.op for step in layer.steps[-2:]] == ["round", "multiply"]


# --- Layers with integers -----------------------------------------------------------------------------------------


def _multiply(layer: Layer, weights: Weights, scales: npt.NDArray[np.float64]) -> None:
    """Make the layer one that multiplies integers; its program begins with the products' scales."""
    x, work = layer.inputs[0], layer.work
    assert x.grid is not None and isinstance(work, Convolution | Matrix)
    scales = scales * x.grid.scale
    bias = np.zeros(len(weights), np.int32)
    names: dict[Argument, Argument] = {}
    skip = 0
    # A bias in whole steps of the products goes into the sums.
    first = layer.steps[0] if layer.steps else None
    if first is not None and first.op == "add" and first.args[0] == Result(0) and isinstance(first.args[1], Operand):
        shift = layer.operands[first.args[1].index]
        if isinstance(shift, np.ndarray) and not any(Result(0) in step.args for step in layer.steps[1:]):
            steps = shift / scales
            if np.abs(steps).max() < 2**30 and (np.abs(steps - np.rint(steps)) < 0.01 + np.abs(steps) * 2**-21).all():
                bias, skip, names = np.rint(steps).astype(np.int32), 1, {Result(1): Result(1)}
    window = work.window if isinstance(work, Convolution) else Window((1, 1))
    layer.work = IntegerConvolution(weights.reshape(*weights.shape[:2], *window.kernel), bias, window)
    layer.operands.append(scales.astype(np.float32))
    names.setdefault(Result(0), Result(1))
    _rewrite(layer, [Step("multiply", (Result(0), Operand(len(layer.operands) - 1)))], names, skip)
    # A division takes as long as a dozen products.
    layer.steps = [_reciprocal(step) for step in layer.steps]


def _reciprocal(step: Step) -> Step:
    if step.op == "divide" and not isinstance(step.args[1], Result | Operand):
        return Step("multiply", (step.args[0], float(np.float32(1 / step.args[1]))))
    return step


def _read(layer: Layer, twins: dict[Value, Value]) -> None:
    """Read integers instead of the numbers that they stand for, where the layer's kernel can."""
    prelude: list[Step] = []
    names: dict[Argument, Argument] = {}

    def number(name: Result | Operand, twin: Value) -> None:
        names[name] = _dequantised(prelude, name, twin)

    x = layer.inputs[0]
    if isinstance(layer.work, Pooling) and x in twins and _keeps_grid(layer):
        layer.inputs[0] = twins[x]
        layer.steps = []
        return
    if x in twins and isinstance(layer.work, Pointwise | GlobalAverage | IntegerConvolution):
        layer.inputs[0] = twins[x]
        if not isinstance(layer.work, IntegerConvolution):
            number(Result(0), twins[x])
    for index, operand in enumerate(layer.operands):
        if isinstance(operand, Value) and operand in twins and isinstance(layer.work, _READS_OPERANDS):
            layer.operands[index] = twins[operand]
            number(Operand(index), twins[operand])
    if prelude or (names and not layer.steps):
        _rewrite(layer, prelude, names, 0)


#: Layers whose operands may be integers.
_READS_OPERANDS = (Convolution, Pooling, GlobalAverage, Pointwise, IntegerConvolution)


def _dequantised(prelude: list[Step], name: Result | Operand, twin: Value) -> Result:
    """Append the steps that make numbers of integers; gives the last one's result."""
    assert twin.grid is not None
    if twin.zero_point:
        prelude.append(Step("subtract", (name, float(twin.zero_point))))
        name = Result(len(prelude))
    prelude.append(Step("multiply", (name, twin.grid.scale)))
    return Result(len(prelude))


def _store(layer: Layer, how: Product) -> Value:
    """Make the layer's output integers; gives that value. The last two steps are what the store does itself."""
    value, grid = layer.output, layer.output.grid
    assert grid is not None
    twin = _twin(value, grid, how)
    if layer.inputs[0].dtype == "float32" or not isinstance(layer.work, Pooling):
        layer.steps = layer.steps[:-2]
    layer.output, twin.producer = twin, layer
    return twin


def _twin(value: Value, grid: Grid, how: Product) -> Value:
    # 16 bits hold a grid around zero as it is; of 8 bits a grid takes all.
    zero_point = 0 if how.activations == "int16" else int(np.iinfo(how.activations).min) - grid.low
    return Value(value.var, value.shape, value.rank, None, grid, how.activations, zero_point)


def _with_floats(graph: Graph, nodes: list[Layer | Opaque], twins: dict[Value, Value]) -> list[Layer | Opaque]:
    """Add what makes numbers of integers again, for those who cannot read integers."""
    wanted = {*graph.results, *(value for node in nodes for value in node.reads)}
    back = {twin: value for value, twin in twins.items() if value in wanted}
    complete: list[Layer | Opaque] = []
    for node in nodes:
        complete.append(node)
        if isinstance(node, Layer) and node.output in back:
            layer = Layer(Pointwise(), [node.output], back[node.output], [])
            _dequantised(layer.steps, Result(0), node.output)
            layer.output.producer = layer
            complete.append(layer)
    return complete


def _rewrite(layer: Layer, prelude: list[Step], names: dict[Argument, Argument], skip: int) -> None:
    """Put ``prelude`` before the steps from ``skip`` on, in which ``names`` say what else is read instead."""
    shift = len(prelude) - skip

    def moved(arg: Argument) -> Argument:
        if arg in names:
            return names[arg]
        return Result(arg.index + shift) if isinstance(arg, Result) and arg.index else arg

    steps = [*prelude, *(Step(step.op, tuple(moved(arg) for arg in step.args)) for step in layer.steps[skip:])]
    read = sorted({arg.index for step in steps for arg in step.args if isinstance(arg, Operand)})
    kept = {Operand(old): Operand(new) for new, old in enumerate(read)}
    layer.steps = [
        replace(step, args=tuple(kept[arg] if isinstance(arg, Operand) else arg for arg in step.args)) for step in steps
    ]
    layer.operands = [layer.operands[index] for index in read]
