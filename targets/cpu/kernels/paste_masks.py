"""Masks of boxes laid into whole pictures: every row of a mask is resized once, then each row of pixels mixes two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, flat, kernel, ramp, rounded_product, splat

Expr = Any

#: Pixels around a mask that are nothing, as torchvision.models.detection.roi_heads.paste_masks_in_image has them.
PADDING = 1
#: Coordinates beyond are as far outside of a picture as these, and boxes between them have sides that are integers.
_FAR = 1e9


@dataclass(frozen=True, slots=True)
class PasteMasks:
    """``torch.ops.fleet.paste_masks`` of masks (batch, most, side, side); ``lanes`` is at most the width."""

    batch: int
    most: int
    side: int
    height: int
    width: int
    lanes: int


def paste_masks(spec: PasteMasks, name: str) -> Any:
    """Arguments: masks, boxes (batch, most, 4), counts (batch,), y (batch, most, height, width) of uint8."""
    side, width, lanes = spec.side + 2 * PADDING, spec.width, spec.lanes

    def body() -> None:
        masks = argument("masks", (spec.batch, spec.most, spec.side, spec.side))
        boxes = argument("boxes", (spec.batch, spec.most, 4))
        counts = argument("counts", (spec.batch,), "int32")
        y = argument("y", (spec.batch, spec.most, spec.height, width), "uint8")
        numbers, corners, pixels = flat(masks, boxes, y)

        def clear(first: Expr, count: int) -> None:
            # LLVM makes one call of it.
            with T.serial(0, count) as index:
                T.buffer_store(pixels, tirx.const(0, "uint8"), [first + index])

        def lay(mask: Expr, first: Expr) -> None:
            padded = _padded(spec, numbers, mask)
            (left, right), (top, bottom) = (_sides(spec, corners, mask, axis) for axis in range(2))
            begin = T.bind(tirx.min(tirx.max(left, 0), width))
            end = T.bind(tirx.max(tirx.min(right + 1, width), begin))
            vectors = (begin // lanes, (end + lanes - 1) // lanes)
            rows, places = T.alloc_buffer((side * width,)), T.alloc_buffer((2 * lanes,), "int32")

            def start(vector: Expr) -> Expr:
                return T.bind(tirx.min(vector * lanes, width - lanes))

            with T.serial(*vectors) as vector:
                at = start(vector)
                column = ramp(at, lanes)
                lower, upper, here, there = _between(column, left, right, side, lanes)
                inside = tirx.all(column >= splat(begin, lanes, "int32"), column < splat(end, lanes, "int32"))
                blank = splat(0.0, lanes)
                here, there = (T.bind(tirx.Select(inside, each, blank)) for each in (here, there))
                for index, each in enumerate((lower, upper)):
                    T.buffer_store(places, each, [ramp(index * lanes, lanes)])
                with T.serial(0, side) as row:

                    def gathered(index: int) -> Expr:
                        values = [padded[row * side + places[index * lanes + lane]] for lane in range(lanes)]
                        return values[0] if lanes == 1 else T.bind(tirx.Shuffle(values, list(range(lanes))))

                    low, high = gathered(0), gathered(1)
                    T.buffer_store(rows, _mixed(low, high, here, there, lanes), [ramp(row * width + at, lanes)])
            with T.serial(0, spec.height) as row:
                clear(first + row * width, width)
                with T.If(tirx.all(row >= top, row <= bottom)), T.Then():
                    lower, upper, here, there = _between(row, top, bottom, side, 1)
                    here, there = (T.bind(splat(each, lanes)) for each in (here, there))
                    with T.serial(*vectors) as vector:
                        at = start(vector)
                        low, high = (rows[ramp(each * width + at, lanes)] for each in (lower, upper))
                        value = _mixed(low, high, here, there, lanes) * splat(256.0, lanes)
                        value = tirx.min(tirx.max(value, splat(0.0, lanes)), splat(255.0, lanes))
                        byte = tirx.Cast("uint8" if lanes == 1 else f"uint8x{lanes}", value)
                        T.buffer_store(pixels, byte, [ramp(first + row * width + at, lanes)])

        with T.parallel(0, spec.batch * spec.most) as mask:
            first = T.bind(mask * (spec.height * width))
            with T.If(mask % spec.most < counts[mask // spec.most]):
                with T.Then():
                    lay(mask, first)
                with T.Else():
                    clear(first, spec.height * width)

    return kernel(name, body)


def _padded(spec: PasteMasks, masks: Any, mask: Expr) -> Any:
    """A mask with nothing around it."""
    side = spec.side + 2 * PADDING
    padded = T.alloc_buffer((side * side,))
    with T.serial(0, side * side) as index:
        T.buffer_store(padded, splat(0.0, 1), [index])
    with T.serial(0, spec.side) as row, T.serial(0, spec.side) as column:
        value = masks[(mask * spec.side + row) * spec.side + column]
        T.buffer_store(padded, value, [(row + PADDING) * side + column + PADDING])
    return padded


def _sides(spec: PasteMasks, corners: Any, mask: Expr, axis: int) -> tuple[Expr, Expr]:
    """First and last pixel of a box along an axis, made larger by the padding; they may lie outside of the picture."""
    low, high = (T.bind(corners[mask * 4 + axis + 2 * index]) for index in range(2))
    half, larger = splat(0.5, 1), splat((spec.side + 2 * PADDING) / spec.side, 1)
    reach = rounded_product((high - low) * half, larger, 1)
    centre = T.bind((high + low) * half)
    far, near = splat(_FAR, 1), splat(-_FAR, 1)
    ends = (tirx.min(tirx.max(each, near), far) for each in (centre - reach, centre + reach))
    first, last = (T.bind(tirx.Cast("int32", each)) for each in ends)
    return first, last


def _between(pixel: Expr, first: Expr, last: Expr, size: int, lanes: int) -> tuple[Expr, Expr, Expr, Expr]:
    """The two places of ``size`` that pixels of a box are between, and their weights, as torch's interpolation does."""
    integers, floats = ("int32", "float32") if lanes == 1 else (f"int32x{lanes}", f"float32x{lanes}")
    zero, half, one = (splat(number, lanes) for number in (0.0, 0.5, 1.0))
    extent = tirx.Cast("float32", tirx.max(last - first + 1, 1))
    scale = T.bind(splat(splat(float(size), 1) / extent, lanes))
    inside = tirx.Cast(floats, pixel - splat(first, lanes, "int32"))
    at = rounded_product(inside + half, scale, lanes) - half
    at = T.bind(tirx.min(tirx.max(at, zero), splat(float(size), lanes)))
    lower = T.bind(tirx.min(tirx.Cast(integers, at), splat(size - 1, lanes, "int32")))
    upper = T.bind(tirx.min(lower + splat(1, lanes, "int32"), splat(size - 1, lanes, "int32")))
    weight = T.bind(tirx.min(at - tirx.Cast(floats, lower), one))
    return lower, upper, T.bind(one - weight), weight


def _mixed(a: Expr, b: Expr, of_a: Expr, of_b: Expr, lanes: int) -> Expr:
    """The second product is rounded, the first one where the processor has no fused multiply-add: torch has it so."""
    return T.bind(a * of_a + rounded_product(b, of_b, lanes))
