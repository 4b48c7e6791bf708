"""Pointwise work moves into the layer whose result it changes, and constants into that layer's weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from targets.cpu.graph import WITH_PROGRAM, Array, Convolution, Graph, Layer, Matrix, Opaque, Pointwise, Value
from targets.cpu.kernels.program import Operand, Result, Step


def fuse(graph: Graph) -> None:
    """Merge every pointwise layer into the layers before it, as far as nobody else reads what these give."""
    # Who reads a value, named by what that one gives; None is the function's result.
    readers: dict[Value, set[Value | None]] = {value: {None} for value in graph.results}
    for node in graph.nodes:
        for value in node.reads:
            readers.setdefault(value, set()).add(node.output)
    nodes: list[Layer | Opaque] = []
    for node in graph.nodes:
        while isinstance(node, Layer) and (before := _before(node, readers, nodes)) is not None:
            nodes.remove(before)
            for value in before.reads:
                readers[value] = readers[value] - {before.output} | {node.output}
            node = node.output.producer = _merged(before, node)
        nodes.append(node)
    graph.nodes = nodes
    for node in nodes:
        if isinstance(node, Layer) and isinstance(node.work, Convolution | Matrix):
            _fold(node)


def _before(layer: Layer, readers: dict[Value, set[Value | None]], nodes: list[Layer | Opaque]) -> Layer | None:
    """The last of the layers that the pointwise ``layer`` can be merged into."""
    if not isinstance(layer.work, Pointwise):
        return None
    found = []
    for value in dict.fromkeys(layer.reads):
        before = value.producer
        alike = value.shape == layer.output.shape and value.rank == layer.output.rank
        if not alike or not isinstance(before, Layer) or not isinstance(before.work, WITH_PROGRAM):
            continue
        if readers[value] != {layer.output}:
            continue
        if isinstance(before.work, Matrix) and any(each is not value for each in layer.reads):
            continue
        found.append(before)
    return max(found, key=nodes.index, default=None)


def _merged(before: Layer, layer: Layer) -> Layer:
    """One layer that does what ``before`` and then the pointwise ``layer`` do."""
    operands = list(before.operands)
    shift = len(before.steps)

    def known(operand: Value | Array) -> Result | Operand:
        if operand is before.output:
            return Result(shift)
        if isinstance(before.work, Pointwise) and operand is before.inputs[0]:
            return Result(0)
        for index, other in enumerate(operands):
            if other is operand:
                return Operand(index)
        operands.append(operand)
        return Operand(len(operands) - 1)

    def moved(arg: Result | Operand | float) -> Result | Operand | float:
        if isinstance(arg, Operand):
            return known(layer.operands[arg.index])
        if isinstance(arg, Result):
            return Result(arg.index + shift) if arg.index else known(layer.inputs[0])
        return arg

    steps = [*before.steps, *(Step(step.op, tuple(moved(arg) for arg in step.args)) for step in layer.steps)]
    return Layer(before.work, before.inputs, layer.output, [*before.bindings, *layer.bindings], steps, operands)


# --- Constants into weights ---------------------------------------------------------------------------------


def _fold(layer: Layer) -> None:
    """Scales go into the weights and all shifts become one bias: what a batch norm is, wherever it stood."""
    work = layer.work
    assert isinstance(work, Convolution | Matrix)
    channels = len(work.weights)
    scale, shift = np.ones(channels), np.zeros(channels)
    folded = 0
    while folded < len(layer.steps):
        number = _constant(layer, folded)
        if number is None:
            break
        match layer.steps[folded].op:
            case "add":
                shift = shift + number
            case "subtract":
                shift = shift - number
            case "multiply":
                scale, shift = scale * number, shift * number
            case "divide":
                scale, shift = scale / number, shift / number
        folded += 1
    if not folded:
        return
    per_output = scale.reshape(-1, *[1] * (work.weights.ndim - 1))
    layer.work = replace(work, weights=(work.weights * per_output).astype(np.float32))
    # A bias of zeros stays: which parameters there are depends on the network, never on its weights.
    biased = any(step.op in ("add", "subtract") for step in layer.steps[:folded])
    rest, offset = layer.steps[folded:], -folded
    if biased:
        rest.insert(0, Step("add", (Result(folded), Operand(len(layer.operands)))))
        layer.operands.append(np.broadcast_to(shift, channels).astype(np.float32))
    _renumber(layer, rest, offset, biased)


def _constant(layer: Layer, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | float | None:
    """The constant that step ``index`` adds to or multiplies with the value before it, if that is all it does."""
    step = layer.steps[index]
    if step.op not in ("add", "subtract", "multiply", "divide"):
        return None
    first, second = step.args
    if step.op in ("add", "multiply") and second == Result(index):
        first, second = second, first
    later = [arg for other in layer.steps[index + 1 :] for arg in other.args]
    if first != Result(index) or isinstance(second, Result) or Result(index) in later:
        return None
    if isinstance(second, Operand):
        values = layer.operands[second.index]
        return values.astype(np.float64) if isinstance(values, np.ndarray) else None
    return float(second)


def _renumber(layer: Layer, steps: list[Step], offset: int, biased: bool) -> None:
    """Make ``steps`` the layer's program: results are counted from the first of them, unread operands go."""
    read = sorted({arg.index for step in steps for arg in step.args if isinstance(arg, Operand)})

    def moved(arg: Result | Operand | float, first: bool) -> Result | Operand | float:
        if isinstance(arg, Operand):
            return Operand(read.index(arg.index))
        if isinstance(arg, Result):
            return Result(arg.index + offset + (1 if biased and not first else 0))
        return arg

    layer.steps = [Step(s.op, tuple(moved(arg, i == 0 and biased) for arg in s.args)) for i, s in enumerate(steps)]
    layer.operands = [layer.operands[index] for index in read]
