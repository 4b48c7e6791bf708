"""Pictures inside a kernel: loads and stores by logical coordinates, whatever the layout."""

from __future__ import annotations

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

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        # 8: kOpaque of TVM's fusion.
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})
        body()
    return builder.get()


def argument(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """A buffer that the caller passes."""
    return T.arg(name, T.buffer(shape, dtype))


def ramp(start: Expr, lanes: int) -> Expr:
    """Indices of one vector."""
    start = tirx.IntImm("int32", start) if isinstance(start, int) else start
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def splat(value: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """One value in every lane."""
    value = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


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

    def put(self, n: Expr, block: Expr, y: Expr, x: Expr, value: Expr) -> None:
        """Store a block of channels of one pixel."""
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

    def clear_border(self, n: Expr, block: Expr, row: Expr, rows: int, fill: int = 0) -> None:
        """Fill the border beside ``rows`` rows from ``row`` on, and the border above and below the picture with them.

        A job that writes rows calls it for these: together the jobs of a picture fill its whole border.
        """
        layout, (_, _, height, width) = self.type.layout, self.type.shape
        if not layout.bordered:
            return
        blank = splat(fill, layout.block, self.type.dtype)

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
