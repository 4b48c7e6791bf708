"""The instruction stream while it is made: instructions in an order in which they could run one after the other.

Nothing here says what may run at once: `tokens` finds that out from what each instruction reads and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.base import ModelError
from targets.vta import isa
from targets.vta.config import VtaConfig
from targets.vta.isa import AluOp, Memory, Opcode

if TYPE_CHECKING:
    import numpy.typing as npt

    Uops = npt.NDArray[np.int64]


class Stream:
    """Instructions, and the micro-ops that each GEMM and ALU instruction runs, shape (n, 3) of dst, src and wgt."""

    def __init__(self, config: VtaConfig) -> None:
        self.config = config
        self.rows: list[tuple[int, ...]] = []
        self.uops: list[Uops | None] = []
        #: All lists that were ever needed, as they will lie in memory.
        self.pool: list[Uops] = []
        self._pool_size = 0
        self._pooled: dict[bytes, int] = {}
        self._resident: dict[bytes, int] = {}
        self._used = 0

    def __len__(self) -> int:
        return len(self.rows)

    # --- Micro-ops ------------------------------------------------------------------------------

    def place(self, uops: Uops) -> int:
        """The index in the UOP buffer at which these micro-ops lie together; loads them where they do not yet."""
        key = uops.tobytes()
        if key in self._resident:
            return self._resident[key]
        count = len(uops)
        if count > self.config.uop_depth:
            raise ModelError(f"{count} micro-ops at once; the accelerator holds {self.config.uop_depth}")
        if self._used + count > self.config.uop_depth:
            # Instructions that use the old ones come before this load in the same queue: nothing to wait for.
            self._resident.clear()
            self._used = 0
        if key not in self._pooled:
            self._pooled[key] = self._pool_size
            self.pool.append(uops)
            self._pool_size += count
        base = self._used
        self._used += count
        self._resident[key] = base
        self.load(Memory.UOP, base, self._pooled[key], 1, count, count)
        return base

    # --- Instructions ---------------------------------------------------------------------------

    def load(
        self,
        memory: Memory,
        sram: int,
        dram: int,
        rows: int,
        columns: int,
        stride: int,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:
        """``rows`` × ``columns`` elements; ``pads`` (top, left, bottom, right) of zeros. Units are elements."""
        top, left, bottom, right = pads
        self._add(
            isa.row(
                Opcode.LOAD,
                memory=memory,
                sram_base=sram,
                dram_base=dram,
                y_size=rows,
                x_size=columns,
                x_stride=stride,
                y_pad_0=top,
                y_pad_1=bottom,
                x_pad_0=left,
                x_pad_1=right,
            )
        )

    def store(self, sram: int, dram: int, rows: int, columns: int, stride: int) -> None:
        self._add(
            isa.row(
                Opcode.STORE,
                memory=Memory.OUT,
                sram_base=sram,
                dram_base=dram,
                y_size=rows,
                x_size=columns,
                x_stride=stride,
            )
        )

    def gemm(
        self,
        uops: Uops,
        base: int,
        outer: tuple[int, int, int] = (1, 0, 0),
        inner: tuple[int, int, int] = (1, 0, 0),
        *,
        reset: bool = False,
    ) -> None:
        """``outer`` and ``inner`` are (iterations, step of dst, step of src); the weights' index does not step."""
        self._add(
            isa.row(
                Opcode.GEMM,
                reset=int(reset),
                **_loops(base, len(uops), outer, inner),
            ),
            uops,
        )

    def reset(self, start: int, count: int) -> None:
        """Zero ``count`` ACC elements."""
        uops = np.array([[start, 0, 0]], np.int64)
        self.gemm(uops, self.place(uops), inner=(count, 1, 0), reset=True)

    def alu(
        self,
        operation: AluOp,
        dst: int,
        src: int,
        outer: tuple[int, int, int],
        inner: tuple[int, int, int],
        immediate: int | None = None,
    ) -> None:
        """One micro-op, stepped as in :meth:`gemm`; ``src`` counts only without an immediate."""
        uops = np.array([[dst, src, 0]], np.int64)
        base = self.place(uops)
        self._add(
            isa.row(
                Opcode.ALU,
                alu_op=operation,
                use_imm=int(immediate is not None),
                imm=immediate or 0,
                **_loops(base, len(uops), outer, inner),
            ),
            uops,
        )

    def immediate(self, operation: AluOp, start: int, count: int, value: int) -> None:
        """``operation`` with ``value`` on ``count`` ACC elements in a row, in place."""
        self.alu(operation, start, start, (1, 0, 0), (count, 1, 1), value)

    def _add(self, row: tuple[int, ...], uops: Uops | None = None) -> None:
        self.rows.append(row)
        self.uops.append(uops)


def _loops(base: int, count: int, outer: tuple[int, int, int], inner: tuple[int, int, int]) -> dict[str, int]:
    """The fields that GEMM and ALU instructions share: which micro-ops, how often, and how their indices step."""
    return {
        "uop_bgn": base,
        "uop_end": base + count,
        "iter_out": outer[0],
        "iter_in": inner[0],
        "dst_factor_out": outer[1],
        "dst_factor_in": inner[1],
        "src_factor_out": outer[2],
        "src_factor_in": inner[2],
    }
