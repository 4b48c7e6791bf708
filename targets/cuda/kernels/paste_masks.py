"""Masks of boxes laid into whole pictures, as ``targets.detection.operators.paste_masks`` defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel
from targets.cuda.kernels.blocks import each, f32, grid, product

Expr = Any

_THREADS = 256
#: Rows of a picture that one block writes.
_ROWS = 16


@dataclass(frozen=True, slots=True)
class PasteMasks:
    """Masks are (batch, most, size, size), results (batch, most, height, width)."""

    batch: int
    most: int
    size: int
    height: int
    width: int


def paste_masks(spec: PasteMasks, name: str) -> Any:
    """Arguments: masks, boxes (batch, most, 4), counts (batch,) int32, result uint8. A thread is a pixel."""
    bands = -(-spec.height // _ROWS)

    def body() -> None:
        masks = argument("masks", (spec.batch, spec.most, spec.size, spec.size))
        boxes = argument("boxes", (spec.batch, spec.most, 4))
        counts = argument("counts", (spec.batch,), "int32")
        result = argument("result", (spec.batch, spec.most, spec.height, spec.width), "uint8")
        with grid(spec.batch * spec.most * bands, _THREADS) as (block, thread):
            picture = T.bind(block // (spec.most * bands))
            row = T.bind(block // bands % spec.most)
            band = T.bind(block % bands)
            corners = [T.bind(boxes[picture, row, side]) for side in range(4)]
            left, wide = _extent(spec, corners[0], corners[2])
            top, high = _extent(spec, corners[1], corners[3])
            with each(_ROWS * spec.width, thread, _THREADS) as index:
                y, x = T.bind(band * _ROWS + index // spec.width), T.bind(index % spec.width)
                with T.If(y < spec.height), T.Then():
                    value = T.alloc_buffer((1,), "float32", scope="local")
                    T.buffer_store(value, f32(0.0), [0])
                    inside = tirx.all(row < counts[picture], y >= top, y < top + high, x >= left, x < left + wide)
                    with T.If(inside), T.Then():
                        T.buffer_store(value, _sample(spec, masks, picture, row, y - top, high, x - left, wide), [0])
                    scaled = tirx.min(tirx.max(tirx.floor(product(value[0], f32(256.0))), f32(0.0)), f32(255.0))
                    T.buffer_store(result, tirx.Cast("uint8", scaled), [picture, row, y, x])

    return kernel(name, body)


def _extent(spec: PasteMasks, low: Expr, high: Expr) -> tuple[Expr, Expr]:
    """The first pixel of a box that has grown by a cell on each side, and how many it has: as torchvision does."""
    half = product(high - low, f32(0.5))
    centre = product(high + low, f32(0.5))
    grown = product(half, f32((spec.size + 2) / spec.size))
    first = T.bind(tirx.Cast("int32", centre - grown))
    last = T.bind(tirx.Cast("int32", centre + grown))
    return first, T.bind(tirx.max(last - first + 1, 1))


def _sample(spec: PasteMasks, masks: Any, picture: Expr, row: Expr, y: Expr, high: Expr, x: Expr, wide: Expr) -> Expr:
    """The mask, with a border of zeros, stretched to the box: the nearest four cells."""
    top, bottom, low_y, high_y = _between(spec, y, high)
    left, right, low_x, high_x = _between(spec, x, wide)

    def cell(down: Expr, across: Expr) -> Expr:
        inside = tirx.all(down >= 1, down <= spec.size, across >= 1, across <= spec.size)
        return tirx.if_then_else(inside, masks[picture, row, down - 1, across - 1], f32(0.0))

    upper = product(low_x, cell(top, left)) + product(high_x, cell(top, right))
    lower = product(low_x, cell(bottom, left)) + product(high_x, cell(bottom, right))
    return product(low_y, upper) + product(high_y, lower)


def _between(spec: PasteMasks, at: Expr, length: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """The two cells of a mask that the pixel ``at`` of ``length`` lies between, and the share of each."""
    padded = spec.size + 2
    scale = f32(padded) / tirx.Cast("float32", length)
    real = T.bind(tirx.max(product(tirx.Cast("float32", at) + f32(0.5), scale) - f32(0.5), f32(0.0)))
    low = T.bind(tirx.min(tirx.Cast("int32", real), padded - 1))
    part = T.bind(real - tirx.Cast("float32", low))
    return low, tirx.min(low + 1, padded - 1), f32(1.0) - part, part
