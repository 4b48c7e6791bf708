"""Which layout every value has: blocks of one vector where kernels work, and the border that their readers need."""

from __future__ import annotations

from targets.cpu.graph import (
    Concatenation,
    Convolution,
    GlobalAverage,
    Graph,
    IntegerConvolution,
    Layer,
    Matrix,
    Opaque,
    Pointwise,
    Pooling,
    Quantisation,
    Resizing,
    Separable,
    Value,
)
from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.quantise import WORD
from targets.cpu.layout import PLAIN, Layout, Shape

#: A border may make a buffer so much larger; a reader that wants more gets a copy of its own.
GROWTH = 1.6
#: The same of a border that lets a sum be written over what it adds to: every kernel in between writes it.
GROWTH_OF_SUMS = 1.2


def border(window: Window, x: Shape, y: Shape) -> tuple[int, int, int, int]:
    """Rows and columns outside of ``x`` that a window reads on its way over ``y``: top, left, bottom, right."""
    top, left, _, _ = window.padding
    reach = [
        max(0, (y[2 + i] - 1) * window.stride[i] + (window.kernel[i] - 1) * window.dilation[i] + 1 - before - x[2 + i])
        for i, before in enumerate((top, left))
    ]
    return top, left, reach[0], reach[1]


def has_kernel(layer: Layer, blocked: set[Value], lanes: int) -> bool:
    """Whether a kernel runs this layer, given which values are in blocks."""
    work = layer.work
    # Integers were chosen for kernels that there are.
    integers = any(value.dtype != "float32" for value in (*layer.reads, layer.output))
    if isinstance(work, Convolution | Separable | Matrix | Quantisation) or integers:
        return True
    if layer.output.rank != 4 and not isinstance(work, GlobalAverage):
        return False
    if not all(value in blocked for value in layer.inputs):
        return False
    if isinstance(work, Concatenation):
        return all(value.shape is not None and value.shape[1] % lanes == 0 for value in layer.inputs[:-1])
    if isinstance(work, Resizing):
        return work.method in ("nearest_neighbor", "linear")
    if isinstance(work, Pooling):
        return work.kind == "max" or work.window.dilation == (1, 1)
    return True


def demote(graph: Graph, lanes: int) -> set[Value]:
    """Give layers that no kernel runs back to Relax; returns the values that are in blocks."""
    blocked: set[Value] = set()
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, Layer):
            continue
        if not has_kernel(node, blocked, lanes):
            graph.nodes[index] = Opaque(node.bindings, list(dict.fromkeys(node.reads)), node.output)
            node.output.producer = graph.nodes[index]
        elif not isinstance(node.work, Matrix):
            blocked.add(node.output)
    return blocked


def wanted(layer: Layer, value: Value, blocked: set[Value], lanes: int) -> Layout:
    """The layout in which a layer with a kernel reads one of its inputs."""
    work = layer.work
    if isinstance(work, Matrix) or value.shape is None:
        return PLAIN
    # Few channels, as a picture has them, would leave most of a block empty.
    block = 1 if isinstance(work, Convolution) and value not in blocked and value.shape[1] < lanes else lanes
    if value not in layer.inputs:
        return Layout(lanes)
    if isinstance(work, Quantisation) and work.word:
        return PLAIN
    if isinstance(work, IntegerConvolution):
        return Layout(width(value, lanes), *border(work.window, *_shapes(layer)))
    if isinstance(work, Separable):
        return Layout(lanes, *border(work.depthwise.window, *_shapes(layer)))
    # Pools read pixels of the picture alone.
    if isinstance(work, Convolution):
        return Layout(block, *border(work.window, *_shapes(layer)))
    return Layout(block)


def width(value: Value, lanes: int) -> int:
    """Channels in a block of the value."""
    work = value.producer.work if isinstance(value.producer, Layer) else None
    return WORD if isinstance(work, Quantisation) and work.word else lanes


class Layouts:
    """For each value, and each block that readers want it in, the layout that serves as many of them as it can."""

    def __init__(self, graph: Graph, lanes: int) -> None:
        self.lanes = lanes
        self.blocked = demote(graph, lanes)
        self._shared: dict[tuple[Value, int], Layout] = {}
        for node in graph.nodes:
            for value in dict.fromkeys(node.reads):
                if isinstance(node, Layer) and value.shape is not None:
                    self._share(value, wanted(node, value, self.blocked, lanes))
        self._lay_sums_over_operands(graph)

    def home(self, value: Value) -> Layout:
        """The layout in which a layer with a kernel gives its result."""
        block = width(value, self.lanes)
        return self._shared.get((value, block), Layout(block)) if value in self.blocked else PLAIN

    def shared(self, value: Value, want: Layout) -> Layout:
        """The layout to convert a value to where ``want`` is wanted."""
        shared = self._shared.get((value, want.block), want)
        return shared if shared.covers(want) else want

    def _lay_sums_over_operands(self, graph: Graph) -> None:
        """Give a sum the border of an operand that is read for the last time, and that one the sum's.

        It can then be written over the operand. In a chain of residual blocks all are laid alike, or a second buffer
        is needed; borders of later ones go back to earlier ones, then those of earlier ones forward.
        """
        last = {value: node for node in graph.nodes for value in node.reads} | dict.fromkeys(graph.results)
        pairs = [
            (operand, node.output)
            for node in reversed(graph.nodes)
            if isinstance(node, Layer) and isinstance(node.work, Convolution | Separable | Pointwise)
            for operand in node.operands
            if isinstance(operand, Value)
            and last[operand] is node
            and (operand.shape, operand.dtype) == (node.output.shape, node.output.dtype)
            and {operand, node.output} <= self.blocked
        ]
        own = {value: self.home(value) for pair in pairs for value in pair}
        for pair in (*pairs, *reversed(pairs)):
            first, second = map(self.home, pair)
            both = _union(first, second)
            shape = pair[0].shape
            assert shape is not None
            if all(_pixels(both, shape) <= GROWTH_OF_SUMS * _pixels(own[value], shape) for value in pair):
                self._shared.update({(value, both.block): both for value in pair})

    def _share(self, value: Value, want: Layout) -> None:
        have = self._shared.get((value, want.block), Layout(want.block))
        both = _union(have, want)
        if value.shape is not None and _pixels(both, value.shape) <= GROWTH * value.shape[2] * value.shape[3] + 64:
            self._shared[value, want.block] = both


def _union(one: Layout, other: Layout) -> Layout:
    """The least border that covers both."""
    return Layout(one.block, *(max(pair) for pair in zip(one.border, other.border, strict=True)))


def _pixels(layout: Layout, shape: Shape) -> int:
    return (layout.top + shape[2] + layout.bottom) * (layout.left + shape[3] + layout.right)


def _shapes(layer: Layer) -> tuple[Shape, Shape]:
    x, y = layer.inputs[0].shape, layer.output.shape
    assert x is not None and y is not None
    return x, y
