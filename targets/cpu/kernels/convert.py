"""From one layout of a picture to another: plain to blocked and back, and a border more, less or none.

Between plain and blocked a square of pixels and channels is transposed in registers, so both sides are read and
written in whole vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Image, kernel, splat
from targets.cpu.kernels.jobs import jobs, size_bytes, split_job
from targets.cpu.layout import ImageType

Expr = Any

#: Bytes that a plain picture's rows are copied by; processors with narrower vectors take several for it.
RUN = 64


@dataclass(frozen=True, slots=True)
class Convert:
    """``y`` is ``x`` in another layout; its border and its lanes beyond C get what stands for zero, or ``fill``."""

    x: ImageType
    y: ImageType
    fill: int | None = None


def convert(spec: Convert, name: str) -> Any:
    """Arguments: x, y. Raises ValueError when more than the layout differs, and between blocks of two widths."""
    (batch, channels, height, width), a, b = spec.x.shape, spec.x.layout.block, spec.y.layout.block
    if replace(spec.y, layout=spec.x.layout) != spec.x:
        raise ValueError(f"{spec.x} and {spec.y} differ in more than their layout")
    if a != b and 1 not in (a, b):
        raise ValueError(f"a kernel has vectors of one width, not of {a} and of {b}")
    blocks = min(spec.x.blocks, spec.y.blocks)
    full, rest = divmod(channels, max(a, b))
    pixels = min(width, RUN // np.dtype(spec.x.dtype).itemsize if a == b == 1 else max(a, b))
    fill = spec.y.zero_point if spec.fill is None else spec.fill
    touched = size_bytes(spec.x) + size_bytes(spec.y)

    def body() -> None:
        x, y = Image.argument("x", spec.x), Image.argument("y", spec.y)

        def in_columns(move: Any) -> None:
            """The last pixels of a row are taken with some that were moved before."""
            with T.serial(0, -(-width // pixels)) as tile:
                move(tirx.min(tile * pixels, width - pixels))

        def by_channels(move: Any) -> None:
            """The last block has channels of its own number."""
            if not rest or not full:
                in_columns(lambda column: move(column, rest or b * a))
                return
            with T.If(block < full):
                with T.Then():
                    in_columns(lambda column: move(column, a * b))
                with T.Else():
                    in_columns(lambda column: move(column, rest))

        def block_rows(column: Expr, lanes: int) -> None:
            """Pixels of a few channels to channels of a few pixels."""
            runs = [_widened(x.run(n, block * b + lane, row, column, pixels), pixels, b) for lane in range(lanes)]
            runs += [splat(fill, b, spec.x.dtype)] * (b - lanes)
            for pixel, value in enumerate(transposed(runs)[:pixels]):
                y.put(n, block, row, column + pixel, value)

        def plain_rows(column: Expr, lanes: int) -> None:
            """And back; lanes beyond C are left."""
            vectors = [x.vector(n, block, row, column + min(pixel, pixels - 1)) for pixel in range(a)]
            for lane, value in enumerate(transposed(vectors)[:lanes]):
                y.put_run(n, block * a + lane, row, column, _narrowed(value, pixels), pixels)

        def copy_plain(column: Expr) -> None:
            y.put_run(n, block, row, column, x.run(n, block, row, column, pixels), pixels)

        with jobs(batch * blocks * height, touched) as job:
            n, block, row = split_job(job, spec.y, blocks, height)
            if a == b == 1:
                in_columns(copy_plain)
            elif a == b:
                with T.serial(0, width) as column:
                    y.put(n, block, row, column, x.vector(n, block, row, column))
            else:
                by_channels(block_rows if a == 1 else plain_rows)
            if b > 1 or a == 1:
                y.clear_border(n, block, row, 1, fill)
            else:
                with T.serial(0, tirx.min(a, channels - block * a)) as lane:
                    y.clear_border(n, block * a + lane, row, 1, fill)

    return kernel(name, body)


def transposed(rows: list[Expr]) -> list[Expr]:
    """A square of registers by its diagonal: blocks of 1, 2, 4, … beside the diagonal change places."""
    size, distance = len(rows), 1
    while distance < size:
        low = [lane if not lane & distance else size + lane - distance for lane in range(size)]
        high = [lane + distance if not lane & distance else size + lane for lane in range(size)]
        pairs = [(i, i + distance) for i in range(size) if not i & distance]
        changed = list(rows)
        for i, j in pairs:
            changed[i] = T.bind(tirx.Shuffle([rows[i], rows[j]], low))
            changed[j] = T.bind(tirx.Shuffle([rows[i], rows[j]], high))
        rows, distance = changed, 2 * distance
    return rows


def _widened(value: Expr, lanes: int, to: int) -> Expr:
    """Lanes beyond those that are there repeat the last."""
    if lanes == to:
        return value
    if lanes == 1:
        return splat(value, to)
    # A shuffle takes no more lanes than it is given.
    return tirx.Shuffle([T.bind(value)] * -(-to // lanes), [min(lane, lanes - 1) for lane in range(to)])


def _narrowed(value: Expr, lanes: int) -> Expr:
    return tirx.Shuffle([value], list(range(lanes)))
