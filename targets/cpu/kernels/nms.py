"""Non-maximum suppression: of boxes that overlap, the one with the highest score is kept.

Each class is one job. Only boxes above the score threshold are sorted, and a box is compared with those that were kept,
a vector of them at a time, until enough are: so a class takes time in proportion to its boxes and to what is kept of
them, never to the square of all boxes. Boxes of equal scores come in the order in which they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, flat, kernel, ramp, registers, splat
from targets.cpu.kernels.sort import RowSorter, sortable

Expr = Any


@dataclass(frozen=True, slots=True)
class AllClassNms:
    """ONNX's operator, with Relax's meaning of its thresholds.

    Boxes (batch, boxes, 4) as two opposite corners, scores (batch, classes, boxes). Kept is, in the order of scores, a
    box with a score above ``score_threshold`` and, if the score is positive, an overlap below ``iou_threshold`` with
    those of its class kept before; at most ``most`` in each class.
    """

    batch: int
    classes: int
    boxes: int
    most: int
    iou_threshold: float
    score_threshold: float
    lanes: int


@dataclass(frozen=True, slots=True)
class Nms:
    """Relax's ``non_max_suppression`` without soft scores, over data (batch, boxes, numbers) of a box each.

    A box has a score at ``score_index``, its corners from ``coord_start`` on, and its class at ``id_index``; where that
    is negative, or with ``force``, boxes of all classes suppress each other.
    """

    batch: int
    boxes: int
    numbers: int
    most: int
    iou_threshold: float
    force: bool
    top_k: int
    coord_start: int
    score_index: int
    id_index: int
    #: Give indices and their number; the rows of data otherwise, in the places of what is dropped -1.
    return_indices: bool
    #: Rows of data that are kept come first.
    invalid_to_bottom: bool
    lanes: int


def all_class_nms(spec: AllClassNms, name: str) -> Any:
    """Arguments: boxes, scores, indices (batch · classes · most, 3), their number (1,).

    Indices are batch, class and box; rows beyond the number are not written.
    """
    rows = spec.batch * spec.classes
    # Relax suppresses by marking scores with -1, and so keeps nothing below it, and suppresses nothing up to 0.
    above = max(spec.score_threshold, -1.0)

    def body() -> None:
        boxes = argument("boxes", (spec.batch, spec.boxes, 4))
        scores = argument("scores", (spec.batch, spec.classes, spec.boxes))
        indices = argument("indices", (rows * spec.most, 3), "int64")
        total = argument("total", (1,), "int64")
        (corners,) = flat(boxes)
        selected = T.alloc_buffer((rows, spec.most), "int32")
        counts = T.alloc_buffer((rows,), "int32")
        with T.parallel(0, rows) as row:
            batch, label = row // spec.classes, row % spec.classes
            sorter = RowSorter(spec.boxes, 32)
            sorter.clear()
            with T.serial(0, spec.boxes) as box:
                score = T.bind(scores[batch, label, box])
                with T.If(score > splat(above, 1)), T.Then():
                    sorter.add(sortable(score, "float32", descending=True), box)
            kept = _Kept(spec.most, spec.lanes)

            def choose(box: Expr, _: Expr) -> None:
                here = _box(corners, (batch * spec.boxes + box) * 4)
                alone = kept.overlap(here) < splat(spec.iou_threshold, 1)
                # A threshold of no overlap at all keeps no box, not even the first.
                if above < 0 < spec.iou_threshold:
                    alone = tirx.any(alone, scores[batch, label, box] <= splat(0.0, 1))
                with T.If(alone), T.Then():
                    T.buffer_store(selected, box, [row, kept.number])
                    kept.add(here)

            kept.fill(sorter, choose)
            T.buffer_store(counts, kept.number, [row])
        done = T.alloc_buffer((1,), "int32")
        T.buffer_store(done, _ZERO, [0])
        with T.serial(0, rows) as row:
            with T.serial(0, counts[row]) as index:
                for column, value in enumerate((row // spec.classes, row % spec.classes, selected[row, index])):
                    T.buffer_store(indices, tirx.Cast("int64", value), [done[0] + index, column])
            T.buffer_store(done, done[0] + counts[row], [0])
        T.buffer_store(total, tirx.Cast("int64", done[0]), [0])

    return kernel(name, body)


def nms(spec: Nms, name: str) -> Any:
    """Arguments: data, number of valid boxes (batch,), indices (batch, boxes), and the results.

    Results are the data, or the indices of the boxes that are kept (batch, boxes), -1 behind them, and how many they
    are (batch, 1).
    """
    shape = (spec.batch, spec.boxes, spec.numbers)
    most = min(spec.most, spec.boxes) if spec.most > 0 else spec.boxes

    def body() -> None:
        data = argument("data", shape)
        valid = argument("valid", (spec.batch,), "int32")
        indices = argument("indices", (spec.batch, spec.boxes), "int32")
        if spec.return_indices:
            found = argument("found", (spec.batch, spec.boxes), "int32")
            count = argument("count", (spec.batch, 1), "int32")
        else:
            found = argument("found", shape)
        (numbers,) = flat(data)
        with T.parallel(0, spec.batch) as batch:
            sorter = RowSorter(spec.boxes, 32)
            sorter.clear()
            with T.serial(0, tirx.min(valid[batch], spec.boxes)) as box:
                sorter.add(sortable(data[batch, box, spec.score_index], "float32", descending=True), box)
            kept = _Kept(most, spec.lanes, labelled=spec.id_index >= 0 and not spec.force)
            if spec.return_indices:
                with T.serial(0, spec.boxes) as place:
                    T.buffer_store(found, tirx.const(-1, "int32"), [batch, place])
            else:
                with T.serial(0, spec.boxes) as place, T.serial(0, spec.numbers) as number:
                    T.buffer_store(found, splat(-1.0, 1), [batch, place, number])

            def choose(box: Expr, place: Expr) -> None:
                first = (batch * spec.boxes + box) * spec.numbers
                here = _box(numbers, first + spec.coord_start)
                label = numbers[first + spec.id_index] if kept.labelled else None
                alone = kept.overlap(here, label) < splat(spec.iou_threshold, 1)
                score = numbers[first + spec.score_index]
                with T.If(tirx.all(alone, score > splat(0.0, 1))), T.Then():
                    if spec.return_indices:
                        T.buffer_store(found, indices[batch, box], [batch, kept.number])
                    else:
                        target = kept.number if spec.invalid_to_bottom else place
                        with T.serial(0, spec.numbers) as number:
                            T.buffer_store(found, numbers[first + number], [batch, target, number])
                    kept.add(here, label)

            kept.fill(sorter, choose, spec.top_k)
            if spec.return_indices:
                T.buffer_store(count, kept.number, [batch, 0])

    return kernel(name, body)


_ZERO = tirx.const(0, "int32")


def _box(numbers: Any, at: Expr) -> list[Expr]:
    """Left, top, right, bottom and area of the box whose opposite corners begin at ``at``."""
    corners = [T.bind(numbers[at + index]) for index in range(4)]
    left, top, right, bottom = (
        T.bind(order(corners[axis], corners[axis + 2])) for order in (tirx.min, tirx.max) for axis in (0, 1)
    )
    return [left, top, right, bottom, T.bind((right - left) * (bottom - top))]


class _Kept:
    """The boxes that were kept, each number of theirs by itself, so that a vector holds that of several boxes."""

    def __init__(self, most: int, lanes: int, labelled: bool = False) -> None:
        self.labelled = labelled
        self._most = most
        self._lanes = lanes
        # Boxes of nothing fill up the last vector.
        size = -(-most // lanes) * lanes
        self._numbers = [T.alloc_buffer((size,)) for _ in range(6 if labelled else 5)]
        for numbers in self._numbers:
            with T.serial(0, size // lanes) as index:
                T.buffer_store(numbers, splat(0.0, lanes), [ramp(index * lanes, lanes)])
        self._count = T.alloc_buffer((1,), "int32")
        T.buffer_store(self._count, _ZERO, [0])

    @property
    def number(self) -> Expr:
        return self._count[0]

    def add(self, box: Sequence[Expr], label: Expr | None = None) -> None:
        for numbers, value in zip(self._numbers, [*box, *([label] if self.labelled else [])], strict=True):
            T.buffer_store(numbers, value, [self.number])
        T.buffer_store(self._count, self.number + 1, [0])

    def overlap(self, box: Sequence[Expr], label: Expr | None = None) -> Expr:
        """The largest intersection over union of a box with those that were kept, of its label if they have some."""
        lanes = self._lanes
        whole = ramp(0, lanes)
        (largest,) = registers(1, lanes)
        zero = splat(0.0, lanes)
        T.buffer_store(largest, zero, [whole])
        left, top, right, bottom, area = (splat(number, lanes) for number in box)
        with T.serial(0, (self.number + (lanes - 1)) // lanes) as index:
            at = ramp(index * lanes, lanes)
            other = [T.bind(numbers[at]) for numbers in self._numbers]
            width = tirx.max(zero, tirx.min(right, other[2]) - tirx.max(left, other[0]))
            height = tirx.max(zero, tirx.min(bottom, other[3]) - tirx.max(top, other[1]))
            both = T.bind(width * height)
            union = T.bind(other[4] + area - both)
            ratio = tirx.Select(union <= zero, zero, both / union)
            if self.labelled:
                ratio = tirx.Select(other[5] == splat(label, lanes), ratio, zero)
            T.buffer_store(largest, tirx.max(largest[whole], ratio), [whole])
        result = largest[whole]
        while lanes > 1:
            result = T.bind(result)
            lanes //= 2
            low, high = (tirx.Shuffle([result], list(range(start, start + lanes))) for start in (0, lanes))
            result = tirx.max(low, high)
        return T.bind(result)

    def fill(self, sorter: RowSorter, choose: Callable[[Expr, Expr], None], first: int = 0) -> None:
        """``choose(box, place)`` for what is sorted, in order, until enough are kept; ``first`` of them if not 0."""
        with T.If(sorter.number > 0), T.Then():
            order = sorter.sort()
            place = T.alloc_buffer((1,), "int32")
            T.buffer_store(place, _ZERO, [0])
            limit = tirx.min(sorter.number, first) if first > 0 else sorter.number
            with T.While(tirx.all(place[0] < limit, self.number < self._most)):
                choose(T.bind(order[place[0]]), place[0])
                T.buffer_store(place, place[0] + 1, [0])
