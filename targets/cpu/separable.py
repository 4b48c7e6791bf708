"""A depthwise convolution moves into the 1×1 convolution that alone reads it, where one kernel can do both."""

from __future__ import annotations

from dataclasses import replace

from targets.cpu import choose
from targets.cpu.graph import Convolution, Graph, Layer, Opaque, Separable, Value
from targets.cpu.kernels import depthwise
from targets.cpu.kernels import separable as kernels
from targets.cpu.kernels.direct import DirectConv, Window, row_tiles_of, strip_count
from targets.cpu.kernels.jobs import by_rows, size_bytes
from targets.cpu.kernels.program import Program
from targets.cpu.layout import ImageType, Layout
from targets.cpu.processors import Processor

#: From so many rows and pixels on a strip is fast (measured): rows beside it are read again for the next strip, and
#: all weights are read for each.
STRIP_ROWS = 4
STRIP_PIXELS = 96
#: How much longer the busiest thread may work than all do on average.
UNEVEN = 1.05


def join(graph: Graph, processor: Processor) -> None:
    """Replace every such pair by one layer."""
    readers: dict[Value, int] = dict.fromkeys(graph.results, 1)
    for node in graph.nodes:
        for value in node.reads:
            readers[value] = readers.get(value, 0) + 1
    nodes: list[Layer | Opaque] = []
    for node in graph.nodes:
        before = node.inputs[0].producer if isinstance(node, Layer) and node.inputs else None
        if (
            isinstance(node, Layer)
            and isinstance(before, Layer)
            and readers[before.output] == 1
            and (joined := _joined(before, node, processor)) is not None
        ):
            nodes.remove(before)
            node = joined.output.producer = joined
        nodes.append(node)
    graph.nodes = nodes


def _joined(first: Layer, last: Layer, processor: Processor) -> Layer | None:
    work, after = first.work, last.work
    if not isinstance(work, Convolution) or not isinstance(after, Convolution):
        return None
    x, between, y = first.inputs[0], first.output, last.output
    if x.shape is None or between.shape is None or y.shape is None:
        return None
    if not work.groups == x.shape[1] == between.shape[1] >= processor.lanes or after.groups != 1:
        return None
    if (after.window.kernel, after.window.stride, any(after.window.padding)) != ((1, 1), (1, 1), False):
        return None
    if {value.dtype for value in (*first.reads, *last.reads, y)} != {"float32"}:
        return None
    constants = tuple(operand for operand in first.operands if not isinstance(operand, Value))
    if len(constants) < len(first.operands):
        return None
    layout = Layout(processor.lanes)
    if not _worthwhile(between.image(layout), y.image(layout), processor):
        return None
    joined = Separable(work, tuple(first.steps), constants, after.weights)
    return Layer(joined, first.inputs, y, [*first.bindings, *last.bindings], last.steps, last.operands)


def _worthwhile(x: ImageType, y: ImageType, processor: Processor) -> bool:
    """Whether threads divide the picture's rows, which they do evenly."""
    tile = choose.tile(x, y, Window((1, 1)), 1, processor, by_lane=choose.by_lane(processor))
    spec = in_strips(DirectConv(x, y, Window((1, 1)), tile), processor)
    return by_rows(y) and _uneven(spec, processor) <= UNEVEN


def plan(
    x: ImageType, window: Window, program: Program, pointwise: DirectConv, processor: Processor
) -> kernels.Separable:
    """The kernel that gives ``pointwise``'s result from ``x``; ``window`` and ``program`` are the depthwise part's."""
    rows = (spec for spec in depthwise.plans(x, pointwise.x, window, program, processor) if spec.rows == 1)
    first = min(rows, key=lambda spec: depthwise.cycles(spec, processor))
    return kernels.Separable(first, in_strips(pointwise, processor))


def in_strips(spec: DirectConv, processor: Processor) -> DirectConv:
    """The 1×1 convolution with the fewest rows in a strip that are worth it, and that divide the work evenly."""
    rows, cuts = spec.tile.rows, row_tiles_of(spec)
    cut = [replace(spec, tile=replace(spec.tile, depth=0, strip=n)) for n in range(1, cuts + 1) if cuts % n == 0]
    row_bytes = size_bytes(spec.x) // (spec.x.shape[0] * spec.x.shape[2])
    near = [one for one in cut if one.tile.strip * rows * row_bytes <= processor.l2_bytes // 2] or cut[:1]
    even = [one for one in near if _uneven(one, processor) <= UNEVEN] or near
    least = max(STRIP_ROWS, STRIP_PIXELS / spec.y.shape[3])
    return next((one for one in even if one.tile.strip * rows >= least), even[-1])


def _uneven(spec: DirectConv, processor: Processor) -> float:
    """How much longer the busiest thread works than all do on average."""
    jobs = spec.y.shape[0] * strip_count(spec)
    return -(-jobs // processor.cores) * processor.cores / jobs
