"""Non-maximum suppression within classes, best first over all of them: what a detector ends with.

Only the best few are wanted of many candidates, so candidates come in rounds, each of all that score within a range.
The best score of every segment of boxes is looked up first; it says where the range has to begin so that there are
enough, and which segments hold none of them. A candidate is compared with what was kept of its class, a vector of boxes
at a time: time grows with the candidates and with what is kept, never with the square of the candidates.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Cell, any_lane, argument, flat, kernel, ramp, rounded_product, splat
from targets.cpu.kernels.jobs import jobs
from targets.cpu.kernels.sort import RowSorter, sortable

Expr = Any

#: Boxes of a class that have one best score.
SEGMENT = 64
#: Up to so many candidates of a picture are moved apart by their classes (torchvision.ops.boxes.batched_nms).
SHIFTED_BOXES = 1000
#: How many segments a round has at least to find candidates in, for each box that is wanted; the next rounds look in
#: :data:`MORE` times as many each.
SEGMENTS_PER_BOX, MORE = 2, 4
#: The best scores of segments are counted by their leading bits below the best of all.
_BUCKETS, _BUCKET_BITS = 2048, 16
#: The key of a segment without candidates: no score has it.
_NONE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ClassNms:
    """``torch.ops.fleet.class_nms`` over boxes (batch, groups, boxes, 4) and scores (batch, classes, boxes).

    ``groups`` is 1, boxes that all classes share, or the number of classes. ``lanes`` is at most ``boxes``.
    """

    batch: int
    groups: int
    classes: int
    boxes: int
    score_threshold: float
    iou_threshold: float
    per_class: int
    total: int
    most: int
    min_size: float
    shifted: bool
    lanes: int

    @property
    def segments(self) -> int:
        """Segments of a class."""
        return -(-self.boxes // SEGMENT)


def float_below(number: float) -> float:
    """The largest float32 that is no larger: no other float32 lies between, so both are passed by the same ones."""
    nearest = np.float32(number)
    return float(nearest if float(nearest) <= number else np.nextafter(nearest, np.float32(-np.inf)))


def class_nms(spec: ClassNms, name: str) -> Any:
    """Arguments: boxes, scores, and the results: boxes (batch, most, 4), scores, labels (batch, most), counts."""
    rows = spec.batch * spec.classes

    def body() -> None:
        boxes = argument("boxes", (spec.batch, spec.groups, spec.boxes, 4))
        scores = argument("scores", (spec.batch, spec.classes, spec.boxes))
        results = (
            argument("kept", (spec.batch, spec.most, 4)),
            argument("best", (spec.batch, spec.most)),
            argument("labels", (spec.batch, spec.most), "int64"),
            argument("counts", (spec.batch,), "int32"),
        )
        corners, numbers = flat(boxes, scores)
        keys = T.alloc_buffer((rows * spec.segments,), "uint32")
        valid = T.alloc_buffer((rows,), "int32")
        with jobs(rows, 4 * rows * spec.boxes) as row:
            candidates = _Candidates(spec, corners, numbers, keys, row // spec.classes)
            candidates.look(row)
            if spec.shifted:
                count = Cell(0)
                candidates.each(row % spec.classes, lambda *_: count.set(count.value + 1))
                T.buffer_store(valid, count.value, [row])
        with T.parallel(0, spec.batch) as picture:
            candidates = _Candidates(spec, corners, numbers, keys, picture)
            _select(spec, candidates, valid, results)

    return kernel(name, body)


def _key(value: int) -> Expr:
    return tirx.const(value, "uint32")


class _Candidates:
    """Those of one picture: scores above the threshold, of boxes that are large enough."""

    def __init__(self, spec: ClassNms, corners: Any, scores: Any, keys: Any, picture: Expr) -> None:
        self._spec = spec
        self._corners = corners
        self._scores = scores
        self._keys = keys
        self._picture = picture

    def look(self, row: Expr) -> None:
        """Find the best score of each segment of a row of all scores; boxes beyond a segment may count as its own."""
        spec = self._spec
        count, lanes = spec.boxes, spec.lanes
        with T.serial(0, spec.segments) as segment:
            vectors = [
                self._scores[ramp(row * count + tirx.min(segment * SEGMENT + start, count - lanes), lanes)]
                for start in range(0, SEGMENT, lanes)
            ]
            while len(vectors) > 1:
                vectors = [T.bind(tirx.max(a, b)) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            (best,), width = vectors, lanes
            while width > 1:
                best, width = T.bind(best), width // 2
                low, high = (tirx.Shuffle([best], list(range(start, start + width))) for start in (0, width))
                best = tirx.max(low, high)
            best = T.bind(best)
            key = sortable(best, "float32", descending=True)
            above = best > splat(spec.score_threshold, 1)
            T.buffer_store(self._keys, tirx.Select(above, key, _key(_NONE)), [row * spec.segments + segment])

    def segments(self) -> tuple[Callable[[Expr], Expr], int]:
        """The key of each segment of the picture by its number, and how many there are."""
        count = self._spec.classes * self._spec.segments
        return lambda index: self._keys[self._picture * count + index], count

    def each(
        self, label: Expr, take: Callable[[Expr, Expr], None], start: Expr | None = None, end: Expr | None = None
    ) -> None:
        """``take(key, box)`` for candidates of a class, those with keys from ``start`` up to ``end``, in order."""
        spec = self._spec
        row = self._picture * spec.classes + label

        def within(key: Expr) -> list[Expr]:
            return ([] if start is None else [key >= start]) + ([] if end is None else [key < end])

        def some(best: Expr) -> Expr:
            return best != _key(_NONE) if end is None else best < end

        with T.serial(0, spec.segments) as segment, T.If(some(self._keys[row * spec.segments + segment])), T.Then():
            first = segment * SEGMENT
            with T.serial(first, tirx.min(first + SEGMENT, spec.boxes)) as box:
                score = T.bind(self._scores[row * spec.boxes + box])
                key = sortable(score, "float32", descending=True)
                with T.If(tirx.all(score > splat(spec.score_threshold, 1), *within(key))), T.Then():
                    if spec.min_size > 0:
                        x0, y0, x1, y1 = self.box(label, box)
                        least = splat(spec.min_size, 1)
                        with T.If(tirx.all(x1 - x0 >= least, y1 - y0 >= least)), T.Then():
                            take(key, box)
                    else:
                        take(key, box)

    def box(self, label: Expr, box: Expr) -> list[Expr]:
        """Corners of a box of a class."""
        spec = self._spec
        group = self._picture * spec.groups + (label if spec.groups > 1 else 0)
        return [T.bind(self._corners[(group * spec.boxes + box) * 4 + index]) for index in range(4)]

    def score(self, label: Expr, box: Expr) -> Expr:
        """Score of a box for a class."""
        return self._scores[(self._picture * self._spec.classes + label) * self._spec.boxes + box]

    @property
    def picture(self) -> Expr:
        """Its number."""
        return self._picture


def _select(spec: ClassNms, candidates: _Candidates, valid: Any, results: tuple[Any, Any, Any, Any]) -> None:
    """Fill a picture's rows of the results."""
    kept_boxes, best, labels, counts = results
    picture = candidates.picture
    with T.serial(0, spec.most) as place:
        for index in range(4):
            T.buffer_store(kept_boxes, splat(0.0, 1), [picture, place, index])
        T.buffer_store(best, splat(0.0, 1), [picture, place])
        T.buffer_store(labels, tirx.const(0, "int64"), [picture, place])

    entitled = _Entitled(spec)
    # All candidates of a picture are moved apart, or none.
    apart = Cell(0)
    if spec.shifted:
        with T.serial(0, spec.classes) as label:
            count = valid[picture * spec.classes + label]
            apart.set(apart.value + (tirx.min(count, spec.per_class) if spec.per_class else count))
        count = tirx.min(apart.value, spec.total) if spec.total else apart.value
        apart.set(tirx.Cast("int32", count <= SHIFTED_BOXES))
    distance = Cell(0.0, "float32")

    def adding(label: Expr) -> Callable[[Expr, Expr], None]:
        return lambda key, box: sorter.add(key, label * spec.boxes + box)

    kept = _Kept(spec)
    sorter = RowSorter(spec.classes * spec.boxes, 32)
    start, end = Cell(0, "uint32"), Cell(0, "uint32")
    wanted = Cell(SEGMENTS_PER_BOX * spec.most)
    with T.While(tirx.all(end.value != _key(_NONE), kept.number < spec.most, entitled.some_left())):
        start.set(end.value)
        _end_of_round(candidates, start.value, wanted.value, end)
        if spec.shifted:
            with T.If(apart.value == 1), T.Then():
                end.set(_key(_NONE))
        wanted.set(wanted.value * MORE)
        sorter.clear()
        with T.serial(0, spec.classes) as label:
            candidates.each(label, adding(label), start.value, end.value)
        with T.If(sorter.number > 0), T.Then():
            order = sorter.sort()
            if spec.shifted:
                with T.If(apart.value == 1), T.Then():
                    _measure(spec, candidates, order, sorter.number, distance)
            place = Cell(0)
            with T.While(tirx.all(place.value < sorter.number, kept.number < spec.most, entitled.some_left())):
                candidate = T.bind(order[place.value])
                place.set(place.value + 1)
                label, box = T.bind(candidate // spec.boxes), T.bind(candidate % spec.boxes)
                with entitled.to_take_part(label):
                    here = candidates.box(label, box)
                    moved, among = here, label
                    if spec.shifted:
                        offset = rounded_product(tirx.Cast("float32", label), distance.value, 1)
                        offset = T.bind(tirx.if_then_else(apart.value == 1, offset, splat(0.0, 1)))
                        moved = [T.bind(each + offset) for each in here]
                        among = T.bind(tirx.if_then_else(apart.value == 1, tirx.const(0, "int32"), label))
                    area = rounded_product(moved[2] - moved[0], moved[3] - moved[1], 1)
                    with T.If(kept.overlaps([*moved, area], among) == 0), T.Then():
                        row = T.bind(kept.number)
                        for index in range(4):
                            T.buffer_store(kept_boxes, here[index], [picture, row, index])
                        T.buffer_store(best, candidates.score(label, box), [picture, row])
                        T.buffer_store(labels, tirx.Cast("int64", label), [picture, row])
                        kept.add([*moved, area], among)
    T.buffer_store(counts, kept.number, [picture])


def _end_of_round(candidates: _Candidates, start: Expr, wanted: Expr, end: Cell) -> None:
    """Set the key before which a round ends: so many segments have their best within it, or all that are left."""
    key, count = candidates.segments()
    lowest = Cell(_NONE, "uint32")
    with T.serial(0, count) as index:
        here = T.bind(key(index))
        lowest.set(tirx.min(lowest.value, tirx.Select(here >= start, here, _key(_NONE))))
    counts = T.alloc_buffer((_BUCKETS,), "int32")
    with T.serial(0, _BUCKETS) as index:
        T.buffer_store(counts, tirx.const(0, "int32"), [index])
    last = _key(_BUCKETS - 1)
    bits = _key(_BUCKET_BITS)
    with T.serial(0, count) as index:
        here = T.bind(key(index))
        with T.If(tirx.all(here >= start, here != _key(_NONE))), T.Then():
            at = T.bind(tirx.Cast("int32", tirx.min((here - lowest.value) >> bits, last)))
            T.buffer_store(counts, counts[at] + 1, [at])
    found, limit = Cell(0), Cell(0, "uint32")
    with T.While(tirx.all(limit.value < last, found.value < wanted)):
        found.set(found.value + counts[tirx.Cast("int32", limit.value)])
        limit.set(limit.value + _key(1))
    step = T.bind(limit.value << bits)
    # What lies between it and the last key of all.
    rest = tirx.any(limit.value == last, step >= (_key(_NONE) ^ lowest.value))
    end.set(tirx.Select(rest, _key(_NONE), lowest.value + step))


def _measure(spec: ClassNms, candidates: _Candidates, order: Any, number: Expr, distance: Cell) -> None:
    """Set the distance that classes are moved apart by: the largest coordinate of what takes part, and one."""
    entitled = _Entitled(spec)
    largest = Cell(-math.inf, "float32")
    place = Cell(0)
    with T.While(tirx.all(place.value < number, entitled.some_left())):
        candidate = T.bind(order[place.value])
        place.set(place.value + 1)
        label = T.bind(candidate // spec.boxes)
        with entitled.to_take_part(label):
            for each in candidates.box(label, candidate % spec.boxes):
                largest.set(tirx.max(largest.value, each))
    distance.set(largest.value + splat(1.0, 1))


class _Entitled:
    """Which candidates take part: the first of each class, and the first of all."""

    def __init__(self, spec: ClassNms) -> None:
        self._spec = spec
        self._of_class = T.alloc_buffer((spec.classes,), "int32") if spec.per_class else None
        self._total = Cell(0)
        if self._of_class is not None:
            with T.serial(0, spec.classes) as label:
                T.buffer_store(self._of_class, tirx.const(0, "int32"), [label])

    def some_left(self) -> Expr:
        """Whether there may be another."""
        return self._total.value < self._spec.total if self._spec.total else tirx.const(True)

    def to_take_part(self, label: Expr) -> Any:
        """What is done if the next candidate, of this class, takes part."""
        stack = contextlib.ExitStack()
        if self._of_class is not None:
            count = T.bind(self._of_class[label])
            T.buffer_store(self._of_class, count + 1, [label])
            stack.enter_context(T.If(count < self._spec.per_class))
            stack.enter_context(T.Then())
        self._total.set(self._total.value + 1)
        return stack


class _Kept:
    """The boxes that were kept, those of each class in a chain of vectors."""

    def __init__(self, spec: ClassNms) -> None:
        self._lanes = spec.lanes
        self._threshold = float_below(spec.iou_threshold)
        most = -(-spec.most // spec.lanes) + min(spec.classes, spec.most)
        self._numbers = [T.alloc_buffer((most * spec.lanes,)) for _ in range(5)]
        self._next = T.alloc_buffer((most,), "int32")
        self._first, self._of_class = (T.alloc_buffer((spec.classes,), "int32") for _ in range(2))
        self._vectors, self._count = Cell(0), Cell(0)
        with T.serial(0, spec.classes) as label:
            T.buffer_store(self._first, tirx.const(-1, "int32"), [label])
            T.buffer_store(self._of_class, tirx.const(0, "int32"), [label])

    @property
    def number(self) -> Expr:
        """How many there are."""
        return self._count.value

    def add(self, box: list[Expr], label: Expr) -> None:
        """Keep a box: its corners and its area."""
        lanes = self._lanes
        lane = T.bind(self._of_class[label] % lanes)
        with T.If(lane == 0), T.Then():
            vector = T.bind(self._vectors.value)
            # An area that is no number overlaps nothing.
            for numbers, blank in zip(self._numbers, (0.0, 0.0, 0.0, 0.0, math.nan), strict=True):
                T.buffer_store(numbers, splat(blank, lanes), [ramp(vector * lanes, lanes)])
            T.buffer_store(self._next, self._first[label], [vector])
            T.buffer_store(self._first, vector, [label])
            self._vectors.set(vector + 1)
        at = T.bind(self._first[label] * lanes + lane)
        for numbers, value in zip(self._numbers, box, strict=True):
            T.buffer_store(numbers, value, [at])
        T.buffer_store(self._of_class, self._of_class[label] + 1, [label])
        self._count.set(self.number + 1)

    def overlaps(self, box: list[Expr], label: Expr) -> Expr:
        """1 if one of the class overlaps a box by more than the threshold, else 0."""
        lanes = self._lanes
        hit, vector = Cell(0), Cell(self._first[label])
        left, top, right, bottom, area = (T.bind(splat(number, lanes)) for number in box)
        zero = splat(0.0, lanes)
        with T.While(tirx.all(hit.value == 0, vector.value >= 0)):
            at = ramp(vector.value * lanes, lanes)
            x0, y0, x1, y1, its_area = (T.bind(numbers[at]) for numbers in self._numbers)
            width = tirx.max(zero, tirx.min(right, x1) - tirx.max(left, x0))
            height = tirx.max(zero, tirx.min(bottom, y1) - tirx.max(top, y0))
            both = rounded_product(width, height, lanes)
            ratio = both / (its_area + area - both)
            hit.set(tirx.Cast("int32", any_lane(ratio > splat(self._threshold, lanes), lanes)))
            vector.set(self._next[vector.value])
        return hit.value
