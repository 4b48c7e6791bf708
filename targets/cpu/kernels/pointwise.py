"""Pointwise work that has no producer to go into: one pass over a blocked picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Image, kernel
from targets.cpu.kernels.jobs import jobs, rows_per_job, size_bytes, split_job
from targets.cpu.kernels.program import Bound, Program
from targets.cpu.layout import ImageType


@dataclass(frozen=True, slots=True)
class Pointwise:
    """``y`` is ``program`` of ``x``; both and the operands have blocks of one width, and borders of their own."""

    x: ImageType
    y: ImageType
    program: Program


def pointwise(spec: Pointwise, name: str) -> Any:
    """Arguments: x, the program's operands, y. Raises ValueError when shapes or widths of blocks differ."""
    (batch, _, height, width), lanes = spec.x.shape, spec.x.layout.block
    if spec.y.shape != spec.x.shape or spec.y.layout.block != lanes:
        raise ValueError(f"{spec.x} and {spec.y} differ in more than their border")
    blocks = spec.x.blocks
    rows = rows_per_job(spec.y, height, blocks)
    images = [operand.type for operand in spec.program.operands if operand.kind == "image"]
    touched = sum(size_bytes(image) for image in (spec.x, spec.y, *images))

    def body() -> None:
        x = Image.argument("x", spec.x)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        strips = height // rows
        with jobs(batch * blocks * strips, touched) as job:
            n, block, strip = split_job(job, spec.y, blocks, strips)
            first = strip * rows
            with T.serial(0, rows) as r, T.serial(0, width) as column:
                where = (n, block, first + r, column)
                y.put(*where, program(x.floats(*where), lanes, *where))
            y.clear_border(n, block, first, rows)

    return kernel(name, body)
