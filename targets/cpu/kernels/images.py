"""Pictures inside a kernel: loads and stores by logical coordinates, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.layout import ImageType

Expr = Any


def kernel(name: str, body: Callable[[], None]) -> Any:
    """The ``tirx.PrimFunc`` that ``body`` builds; its first statements declare the arguments, outputs last.

    It is marked as finished, so no pass schedules it again or fuses anything into it.
    """
    from tvm.script.ir_builder import IRBuilder

    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        # 8: kOpaque of TVM's fusion.
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})
        body()
    return builder.get()


def argument(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """A buffer that the caller passes."""
    return T.arg(name, T.buffer(shape, dtype))


def flat(*buffers: Any) -> list[Any]:
    """Each buffer as the numbers that lie one after the other in it. All arguments must have been declared before."""
    sizes = [math.prod(int(size) for size in buffer.shape) for buffer in buffers]
    return [T.decl_buffer((size,), b.dtype, data=b.data) for size, b in zip(sizes, buffers, strict=True)]


def ramp(start: Expr, lanes: int, step: int = 1) -> Expr:
    """Indices of one vector, ``step`` apart."""
    start = tirx.IntImm("int32", start) if isinstance(start, int) else start
    return start if lanes == 1 else tirx.Ramp(start, step, lanes)


def splat(value: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """One value in every lane."""
    value = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


#: 1.5 · 2²³, where neighbours of float32 are one apart, and its bits.
_UNIT, _UNIT_BITS = 12582912.0, 0x4B400000


def rounded(value: Expr, lanes: int, plus: int = 0) -> Expr:
    """float32 × lanes, |value| < 2²², as int32: the nearest whole number, halves to even, ``plus`` another.

    Adding a number whose neighbours are one apart rounds as the processor does, and every processor has it in vectors,
    which is not so of an instruction that rounds.
    """
    suffix = "" if lanes == 1 else f"x{lanes}"
    bits = tirx.reinterpret(f"int32{suffix}", value + splat(_UNIT, lanes))
    return bits - splat(_UNIT_BITS - plus, lanes, "int32")


def registers(count: int, lanes: int, dtype: str = "float32") -> list[Any]:
    """Buffers of one vector each, which LLVM keeps in registers as long as they are loaded and stored whole.

    TVM puts what is smaller than 1 KiB on the stack if its scope is not ``local``; all else is a call of the runtime.
    """
    return [T.alloc_buffer((lanes,), dtype) for _ in range(count)]


class Cell:
    """One number that changes, of a thread's own; it starts as ``value``."""

    def __init__(self, value: Expr, dtype: str = "int32") -> None:
        self._dtype = dtype
        self._buffer = T.alloc_buffer((1,), dtype)
        self.set(value)

    @property
    def value(self) -> Expr:
        """What it is now."""
        return self._buffer[0]

    def set(self, value: Expr) -> None:
        """Make it another."""
        value = tirx.const(value, self._dtype) if isinstance(value, int | float) else value
        T.buffer_store(self._buffer, value, [0])


def rounded_product(a: Expr, b: Expr, lanes: int) -> Expr:
    """a · b in float32, rounded before anything is added to it: LLVM makes one operation of both else."""
    dtype = "float32" if lanes == 1 else f"float32x{lanes}"
    return T.bind(tirx.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", a * b))


def any_lane(condition: Expr, lanes: int) -> Expr:
    """Whether something holds in one lane at least."""
    if lanes == 1:
        return condition
    bits = tirx.Cast(f"int32x{lanes}", condition)
    return tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.or", bits) != tirx.const(0, "int32")


class Registers:
    """Vectors by number, in buffers of :func:`registers`."""

    def __init__(self, count: int, lanes: int, dtype: str = "float32") -> None:
        self._buffers, self._all = registers(count, lanes, dtype), ramp(0, lanes)

    def __getitem__(self, index: int) -> Expr:
        return self._buffers[index][self._all]

    def __setitem__(self, index: int, value: Expr) -> None:
        T.buffer_store(self._buffers[index], value, [self._all])


def prefetch(element: Expr) -> None:
    """Ask for the cache line of a buffer's element; it may lie behind the buffer's end."""
    read, second_level, data = tirx.IntImm("int32", 0), tirx.IntImm("int32", 2), tirx.IntImm("int32", 1)
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(element), read, second_level, data))


@dataclass(frozen=True, slots=True)
class Image:
    """A buffer of pictures. Coordinates are the picture's own: (0, 0) is its first pixel, the border is around it."""

    type: ImageType
    buffer: Any

    @classmethod
    def argument(cls, name: str, of: ImageType) -> Image:
        return cls(of, argument(name, of.physical, of.dtype))

    def _at(self, n: Expr, block: Expr, y: Expr, x: Expr) -> list[Expr]:
        return [n, block, y + self.type.layout.top, x + self.type.layout.left]

    def _block_at(self, n: Expr, block: Expr, y: Expr, x: Expr) -> list[Expr]:
        at = self._at(n, block, y, x)
        return at if self.type.layout.block == 1 else [*at, ramp(0, self.type.layout.block)]

    def scalar(self, n: Expr, block: Expr, y: Expr, x: Expr, lane: Expr) -> Expr:
        """One channel of one pixel."""
        at = self._at(n, block, y, x)
        return self.buffer[tuple(at if self.type.layout.block == 1 else [*at, lane])]

    def vector(self, n: Expr, block: Expr, y: Expr, x: Expr) -> Expr:
        """A block of channels of one pixel."""
        return self.buffer[tuple(self._block_at(n, block, y, x))]

    def floats(self, n: Expr, block: Expr, y: Expr, x: Expr) -> Expr:
        """A block of channels of one pixel as float32; integers as they are, zero point and all."""
        value, lanes = self.vector(n, block, y, x), self.type.layout.block
        if self.type.dtype == "float32":
            return value
        return tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", value)

    def put(self, n: Expr, block: Expr, y: Expr, x: Expr, value: Expr) -> None:
        """Store a block of channels of one pixel.

        float32 for a picture of integers is in steps of its scale and within its range: it is rounded, and the zero
        point added.
        """
        of, lanes = self.type, self.type.layout.block
        if of.dtype != "float32" and str(value.ty.dtype).startswith("float32"):
            value = tirx.Cast(of.dtype if lanes == 1 else f"{of.dtype}x{lanes}", rounded(value, lanes, of.zero_point))
        T.buffer_store(self.buffer, value, self._block_at(n, block, y, x))

    def run(self, n: Expr, channel: Expr, y: Expr, x: Expr, pixels: int) -> Expr:
        """So many neighbouring pixels of one channel of a plain picture."""
        return self.buffer[tuple(self._run_at(n, channel, y, x, pixels))]

    def put_run(self, n: Expr, channel: Expr, y: Expr, x: Expr, value: Expr, pixels: int) -> None:
        """Store neighbouring pixels of one channel of a plain picture."""
        T.buffer_store(self.buffer, value, self._run_at(n, channel, y, x, pixels))

    def _run_at(self, n: Expr, channel: Expr, y: Expr, x: Expr, pixels: int) -> list[Expr]:
        *row, column = self._at(n, channel, y, x)
        return [*row, ramp(column, pixels)]

    def clear_border(self, n: Expr, block: Expr, row: Expr, rows: int, fill: int | None = None) -> None:
        """Fill the border beside ``rows`` rows from ``row`` on, and that above and below the picture with them.

        What stands for zero is taken unless ``fill`` is given.

        A job that writes rows calls it for these: together the jobs of a picture fill its whole border.
        """
        layout, (_, _, height, width) = self.type.layout, self.type.shape
        if not layout.bordered:
            return
        blank = splat(self.type.zero_point if fill is None else fill, layout.block, self.type.dtype)

        def fill_row(y: Expr, start: int, stop: int) -> None:
            if stop > start:
                with T.serial(start, stop) as x:
                    self.put(n, block, y, x, blank)

        def fill_rows(start: int, stop: int) -> None:
            with T.serial(start, stop) as y:
                fill_row(y, -layout.left, width + layout.right)

        if layout.left or layout.right:
            with T.serial(0, rows) as r:
                fill_row(row + r, -layout.left, 0)
                fill_row(row + r, width, width + layout.right)
        if layout.top:
            with T.If(row == 0), T.Then():
                fill_rows(-layout.top, 0)
        if layout.bottom:
            with T.If(row + rows >= height), T.Then():
                fill_rows(height, height + layout.bottom)
