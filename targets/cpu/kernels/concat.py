"""Blocked pictures one after the other along their channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Image, kernel
from targets.cpu.kernels.jobs import jobs, rows_per_job, size_bytes, split_job
from targets.cpu.layout import ImageType

Expr = Any


@dataclass(frozen=True, slots=True)
class Concat:
    """``y`` has the channels of all ``xs``; all but the last have whole blocks of them. Borders may differ."""

    xs: tuple[ImageType, ...]
    y: ImageType


def concat(spec: Concat, name: str) -> Any:
    """Arguments: xs, y. Raises ValueError when y is not that, or a block of it would come from two pictures."""
    batch, _, height, width = spec.y.shape
    lanes = spec.y.layout.block
    if any(x.layout.block != lanes or x.dtype != spec.y.dtype for x in spec.xs):
        raise ValueError("pictures that are joined have blocks of one width, and one element type")
    if any(x.shape[1] % lanes for x in spec.xs[:-1]):
        raise ValueError(f"only the last of the pictures that are joined may end within a block of {lanes}")
    whole = (batch, sum(x.shape[1] for x in spec.xs), height, width)
    if whole != spec.y.shape or any((x.shape[0], *x.shape[2:]) != (batch, height, width) for x in spec.xs):
        raise ValueError(f"{spec.y} is not what {spec.xs} are together")
    ends = list(accumulate(x.blocks for x in spec.xs))
    rows = rows_per_job(spec.y, height, ends[-1])
    strips = height // rows

    def body() -> None:
        xs = [Image.argument(f"x{index}", x) for index, x in enumerate(spec.xs)]
        y = Image.argument("y", spec.y)
        with jobs(batch * ends[-1] * strips, 2 * size_bytes(spec.y)) as job:
            n, block, strip = split_job(job, spec.y, ends[-1], strips)
            first = strip * rows

            def copy(parts: Sequence[tuple[Image, int]], start: int) -> None:
                """From the picture that the block is in: the first whose end lies beyond it."""
                (x, end), *others = parts
                if not others:
                    with T.serial(0, rows) as r, T.serial(0, width) as column:
                        y.put(n, block, first + r, column, x.vector(n, block - start, first + r, column))
                    return
                with T.If(block < end):
                    with T.Then():
                        copy([(x, end)], start)
                    with T.Else():
                        copy(others, end)

            copy(list(zip(xs, ends, strict=True)), 0)
            y.clear_border(n, block, first, rows)

    return kernel(name, body)
