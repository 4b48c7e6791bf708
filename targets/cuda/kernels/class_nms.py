"""Non-maximum suppression within each class, as ``targets.detection.operators.class_nms`` defines it.

Four launches: each class sorts its best candidates; a picture counts what takes part; each class drops what better
boxes of its own overlap; a picture sorts what is left of all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel
from targets.cuda.kernels.blocks import (
    SHARED_BYTES,
    atomic_add,
    each,
    f32,
    grid,
    product,
    register,
    shared,
    u64,
    wait,
)
from targets.cuda.kernels.keys import (
    THREADS,
    best_sorted,
    fits,
    key_of,
    kth_largest,
    place_of,
    power_of_two,
    score_of,
)

Expr = Any

#: `targets.detection.operators.SHIFTED_BOXES`, which only torch can import.
SHIFTED_BOXES = 1000


@dataclass(frozen=True, slots=True)
class ClassNms:
    """Shapes and parameters of the operator. ``shared_boxes``: one box for all classes."""

    batch: int
    classes: int
    boxes: int
    shared_boxes: bool
    score_threshold: float
    iou_threshold: float
    per_class: int
    total: int
    most: int
    min_size: float
    shifted: bool

    @property
    def sorted(self) -> int:
        """Candidates of a class that take part."""
        return min(self.per_class or self.boxes, self.boxes)

    @property
    def kept(self) -> int:
        """Candidates of a class that can be among the results."""
        return min(self.sorted, self.most)


def class_nms(spec: ClassNms, name: str) -> Any:
    """Arguments: boxes, scores; then boxes, scores, labels int64 and counts int32 of what is kept.

    With ``shifted``, coordinates are taken for not negative, as those of boxes clipped to a picture are: the reference
    lets boxes left of the picture or above it meet those of the class before.
    """
    rows = spec.batch * spec.classes
    corners_of = 1 if spec.shared_boxes else spec.classes

    def body() -> None:
        boxes = argument("boxes", (spec.batch, corners_of, spec.boxes, 4))
        scores = argument("scores", (spec.batch, spec.classes, spec.boxes))
        outputs = (
            argument("kept_boxes", (spec.batch, spec.most, 4)),
            argument("kept_scores", (spec.batch, spec.most)),
            argument("labels", (spec.batch, spec.most), "int64"),
            argument("counts", (spec.batch,), "int32"),
        )
        keys = T.alloc_buffer((rows * spec.boxes,), "uint64")
        order = T.alloc_buffer((rows * spec.sorted,), "uint64")
        least = T.alloc_buffer((spec.batch,), "uint64")
        shift = T.alloc_buffer((spec.batch,), "float32")
        kept = T.alloc_buffer((rows * spec.kept,), "uint64")
        _sort_classes(spec, boxes, scores, keys, order)
        if spec.total or spec.shifted:
            _limit(spec, boxes, order, least, shift)
        _suppress(spec, boxes, order, least, shift, kept)
        _merge(spec, boxes, kept, outputs)

    return kernel(name, body)


def _sort_classes(spec: ClassNms, boxes: Any, scores: Any, keys: Any, order: Any) -> None:
    """The keys of each class's best candidates, best first, into ``order``."""
    rows = spec.batch * spec.classes
    size = power_of_two(spec.sorted)
    scratch = None if fits(spec.sorted) else T.alloc_buffer((rows * size,), "uint64")
    with grid(rows, THREADS) as (row, thread):
        picture, label = row // spec.classes, row % spec.classes
        with each(spec.boxes, thread, THREADS) as box:
            score = T.bind(scores[picture, label, box])
            valid = score > f32(spec.score_threshold)
            if spec.min_size > 0:
                corner = [boxes[picture, 0 if spec.shared_boxes else label, box, side] for side in range(4)]
                wide, high = corner[2] - corner[0], corner[3] - corner[1]
                valid = tirx.all(valid, wide >= f32(spec.min_size), high >= f32(spec.min_size))
            key = tirx.Select(valid, key_of(score, label * spec.boxes + box), u64(0))
            T.buffer_store(keys, key, [row * spec.boxes + box])
        wait()

        def store(rank: Expr, key: Expr) -> None:
            T.buffer_store(order, key, [row * spec.sorted + rank])

        best_sorted(
            lambda index: keys[row * spec.boxes + index],
            spec.boxes,
            spec.sorted,
            thread,
            store,
            None if scratch is None else (scratch, row * size),
        )


def _limit(spec: ClassNms, boxes: Any, order: Any, least: Any, shift: Any) -> None:
    """Of each picture the least key that takes part, and by how much classes are moved apart: 0 for too many."""
    count = spec.classes * spec.sorted
    with grid(spec.batch, THREADS) as (picture, thread):

        def load(index: Expr) -> Expr:
            return order[picture * count + index]

        limit = kth_largest(load, count, spec.total, thread) if 0 < spec.total < count else register(u64(0), "uint64")
        number = shared((1,), "int32")
        largest = shared((THREADS,), "float32")
        own = register(f32(-np.inf), "float32")
        with T.If(thread == 0), T.Then():
            T.buffer_store(number, tirx.const(0, "int32"), [0])
        wait()
        with each(count, thread, THREADS) as index:
            key = T.bind(load(index))
            with T.If(tirx.all(key > u64(0), key >= limit[0])), T.Then():
                T.evaluate(atomic_add(number, 0, tirx.const(1, "int32")))
                for value in _corners(spec, boxes, picture, place_of(key)):
                    T.buffer_store(own, tirx.max(own[0], value), [0])
        T.buffer_store(largest, own[0], [thread])
        wait()
        with T.If(thread == 0), T.Then():
            with T.serial(0, THREADS) as other:
                T.buffer_store(own, tirx.max(own[0], largest[other]), [0])
            few = tirx.all(number[0] > 0, number[0] <= SHIFTED_BOXES) if spec.shifted else tirx.const(False, "bool")
            T.buffer_store(shift, tirx.Select(few, own[0] + f32(1.0), f32(0.0)), [picture])
            T.buffer_store(least, limit[0], [picture])


def _suppress(spec: ClassNms, boxes: Any, order: Any, least: Any, shift: Any, kept: Any) -> None:
    """The keys of each class that no better box of it overlaps, best first, into ``kept``; zeros behind them.

    Threads share the comparisons of one kept box with all that are behind it: as many rounds as boxes are kept.
    """
    count = spec.sorted
    limited, threads = bool(spec.total or spec.shifted), 256
    inside = count * 20 + 64 <= SHARED_BYTES
    rows = spec.batch * spec.classes
    outside = None if inside else T.alloc_buffer((rows * count * 4,), "float32")
    flags = None if inside else T.alloc_buffer((rows * count,), "int32")
    with grid(rows, threads) as (row, thread):
        picture, label = row // spec.classes, row % spec.classes
        corners = shared((count * 4,), "float32") if outside is None else outside
        alive = shared((count,), "int32") if flags is None else flags
        base = tirx.const(0, "int32") if inside else row * count
        number = shared((1,), "int32")
        with T.If(thread == 0), T.Then():
            T.buffer_store(number, tirx.const(0, "int32"), [0])
        with each(spec.kept, thread, threads) as index:
            T.buffer_store(kept, u64(0), [row * spec.kept + index])
        wait()
        limit = T.bind(tirx.max(least[picture], u64(1)) if limited else u64(1))
        moved = T.bind(product(tirx.Cast("float32", label), shift[picture]) if limited else f32(0.0))
        with each(count, thread, threads) as index:
            key = T.bind(order[row * count + index])
            takes_part = T.bind(key >= limit)
            T.buffer_store(alive, tirx.Cast("int32", takes_part), [base + index])
            with T.If(takes_part), T.Then():
                T.evaluate(atomic_add(number, 0, tirx.const(1, "int32")))
                for side, value in enumerate(_corners(spec, boxes, picture, place_of(key))):
                    T.buffer_store(corners, value + moved, [(base + index) * 4 + side])
        wait()
        found = register(tirx.const(0, "int32"), "int32")
        candidates = T.bind(number[0])
        with T.serial(0, candidates) as index, T.If(tirx.all(found[0] < spec.kept, alive[base + index] > 0)), T.Then():
            with T.If(thread == 0), T.Then():
                T.buffer_store(kept, order[row * count + index], [row * spec.kept + found[0]])
            T.buffer_store(found, found[0] + 1, [0])
            one = [T.bind(corners[(base + index) * 4 + side]) for side in range(4)]
            with each(candidates - index - 1, thread, threads) as step:
                other = T.bind(index + 1 + step)
                here = [T.bind(corners[(base + other) * 4 + side]) for side in range(4)]
                with T.If(_overlap(one, here) > f32(_at_most(spec.iou_threshold))), T.Then():
                    T.buffer_store(alive, tirx.const(0, "int32"), [base + other])
            wait()


def _merge(spec: ClassNms, boxes: Any, kept: Any, outputs: tuple[Any, Any, Any, Any]) -> None:
    """The best of all classes into the results."""
    count = spec.classes * spec.kept
    best = min(spec.most, count)
    kept_boxes, kept_scores, labels, counts = outputs
    scratch = None if fits(best) else T.alloc_buffer((spec.batch * power_of_two(best),), "uint64")
    with grid(spec.batch, THREADS) as (picture, thread):
        number = shared((1,), "int32")
        with T.If(thread == 0), T.Then():
            T.buffer_store(number, tirx.const(0, "int32"), [0])
        with each(spec.most, thread, THREADS) as row:
            for side in range(4):
                T.buffer_store(kept_boxes, f32(0.0), [picture, row, side])
            T.buffer_store(kept_scores, f32(0.0), [picture, row])
            T.buffer_store(labels, tirx.const(0, "int64"), [picture, row])
        wait()

        def store(rank: Expr, key: Expr) -> None:
            key = T.bind(key)
            with T.If(key > u64(0)), T.Then():
                T.evaluate(atomic_add(number, 0, tirx.const(1, "int32")))
                place = T.bind(place_of(key))
                for side, value in enumerate(_corners(spec, boxes, picture, place)):
                    T.buffer_store(kept_boxes, value, [picture, rank, side])
                T.buffer_store(kept_scores, score_of(key), [picture, rank])
                T.buffer_store(labels, tirx.Cast("int64", place // spec.boxes), [picture, rank])

        best_sorted(
            lambda index: kept[picture * count + index],
            count,
            best,
            thread,
            store,
            None if scratch is None else (scratch, picture * power_of_two(best)),
        )
        wait()
        with T.If(thread == 0), T.Then():
            T.buffer_store(counts, number[0], [picture])


def _corners(spec: ClassNms, boxes: Any, picture: Expr, place: Expr) -> list[Expr]:
    """The corners of the candidate at ``place``, class by class and box by box."""
    label, box = place // spec.boxes, place % spec.boxes
    return [boxes[picture, 0 if spec.shared_boxes else label, box, side] for side in range(4)]


def _overlap(one: list[Expr], other: list[Expr]) -> Expr:
    """Intersection over union, rounded at each step as torchvision rounds it on a CPU."""
    wide = tirx.max(tirx.min(one[2], other[2]) - tirx.max(one[0], other[0]), f32(0.0))
    high = tirx.max(tirx.min(one[3], other[3]) - tirx.max(one[1], other[1]), f32(0.0))
    common = product(wide, high)
    areas = [product(box[2] - box[0], box[3] - box[1]) for box in (one, other)]
    return common / (areas[0] + areas[1] - common)


def _at_most(threshold: float) -> float:
    """The largest float32 that is no more than ``threshold``: what is above one is above the other."""
    rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > threshold else rounded)
