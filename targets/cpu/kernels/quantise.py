"""A plain picture of few channels to integers, all channels of a pixel beside each other: what a first layer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.convert import transposed
from targets.cpu.kernels.images import Image, kernel, splat
from targets.cpu.kernels.jobs import jobs, size_bytes
from targets.cpu.kernels.program import Bound, Program
from targets.cpu.layout import ImageType

Expr = Any


#: Channels that a product of bytes takes at once.
WORD = 4


@dataclass(frozen=True, slots=True)
class Quantise:
    """``x`` is plain, ``y`` has all its channels in one block; the program gives what is stored."""

    x: ImageType
    y: ImageType
    program: Program


def quantise(spec: Quantise, name: str) -> Any:
    """Arguments: x, the program's operands, y. Raises ValueError when y has several blocks, or more pixels than a row.

    Channels are loaded for as many pixels as a block has lanes, and the square is transposed in registers.
    """
    (batch, channels, height, width), lanes = spec.x.shape, spec.y.layout.block
    if spec.y.shape != spec.x.shape or spec.y.blocks != 1 or width < lanes:
        raise ValueError(f"{spec.y} does not hold {spec.x} as one block of channels")

    def body() -> None:
        x = Image.argument("x", spec.x)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        with jobs(batch * height, size_bytes(spec.x) + size_bytes(spec.y)) as job:
            n, row = job // height, job % height
            with T.serial(0, -(-width // lanes)) as tile:
                column = tirx.min(tile * lanes, width - lanes)
                runs: list[Expr] = [T.bind(x.run(n, channel, row, column, lanes)) for channel in range(channels)]
                runs += [splat(0.0, lanes)] * (lanes - channels)
                for pixel, value in enumerate(transposed(runs)):
                    where = (n, 0, row, column + pixel)
                    y.put(*where, program(value, lanes, *where))
            y.clear_border(n, 0, row, 1)

    return kernel(name, body)
