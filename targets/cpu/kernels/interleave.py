"""Pixels that were computed apart, by where they lie within a stride, put in their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Image, kernel
from targets.cpu.kernels.jobs import jobs, rows_per_job, size_bytes, split_job
from targets.cpu.kernels.program import NOTHING, Bound, Program
from targets.cpu.layout import ImageType

#: Channels of each place within a stride are a multiple of these: whole blocks for every processor's vectors.
PADDED = 16


@dataclass(frozen=True, slots=True)
class Interleave:
    """``y`` at row q · stride + r, and likewise in columns, is ``x`` at q in the r-th part of its channels.

    Parts are whole blocks, those of the columns within those of the rows; ``y`` may end before ``x`` does.
    """

    x: ImageType
    y: ImageType
    stride: tuple[int, int]
    program: Program = NOTHING


def interleave(spec: Interleave, name: str) -> Any:
    """Arguments: x, the program's operands, y. Raises ValueError when y is not made of x's pixels."""
    (batch, _, height, width), (down, across) = spec.y.shape, spec.stride
    lanes, blocks = spec.y.layout.block, spec.y.blocks
    part = spec.x.blocks // (down * across)
    sizes = (batch, -(-height // down), -(-width // across))
    if spec.x.layout.block != lanes or part < blocks or (spec.x.shape[0], *spec.x.shape[2:]) != sizes:
        raise ValueError(f"{spec.y} is not {spec.x} put apart by {spec.stride}")
    rows = rows_per_job(spec.y, height, blocks)
    images = [operand.type for operand in spec.program.operands if operand.kind == "image"]
    touched = size_bytes(spec.x) + sum(size_bytes(image) for image in (spec.y, *images))

    def body() -> None:
        x = Image.argument("x", spec.x)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        strips = height // rows
        with jobs(batch * blocks * strips, touched) as job:
            n, block, strip = split_job(job, spec.y, blocks, strips)
            first = strip * rows
            with T.serial(0, rows) as r:
                row = first + r
                for column in range(min(across, width)):
                    source = T.bind((row % down * across + column) * part + block)
                    with T.serial(0, -(-(width - column) // across)) as index:
                        where = (n, block, row, index * across + column)
                        y.put(*where, program(x.floats(n, source, row // down, index), lanes, *where))
            y.clear_border(n, block, first, rows)

    return kernel(name, body)
