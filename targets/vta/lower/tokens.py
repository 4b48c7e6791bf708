"""Tokens from hazards: which instruction must wait for which, found from what each reads and writes.

The three modules run their own instructions in order; only tokens order them against each other. A token says nothing
but "one more", so the k-th pop of a queue goes with the k-th push. It is enough, then, to add a push and a pop where an
instruction depends on a later one of its neighbour than it already waits for: pushes and pops both come in rising order
and pair up as meant. Loads and stores have no queue between them: they wait for a compute instruction that has waited
for the other, and where there is none, an instruction that does nothing is put in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from targets.vta import isa
from targets.vta.config import VtaConfig
from targets.vta.isa import Memory, Module, Opcode
from targets.vta.tokens import POPS, PUSHES

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.vta.lower.stream import Uops

    Indices = npt.NDArray[np.int64]

#: (who waits, for whom) → (the waiter's pop, the other's push).
_EDGES = {
    (waiter, other): (pop, push)
    for (waiter, pop), popped in POPS.items()
    for (other, push), pushed in PUSHES.items()
    if popped == pushed
}
_NOTHING = -1
_COLUMN = {name: at for at, name in enumerate(isa.COLUMNS)}


class _Memory:
    """Who last wrote and who last read each cell: an instruction's index, by module."""

    def __init__(self, cells: int) -> None:
        self._writes = np.full((len(Module), cells), _NOTHING, np.int32)
        self._reads = np.full((len(Module), cells), _NOTHING, np.int32)

    def read(self, cells: Indices, by: Module, at: int, waits: list[int]) -> None:
        self._conflicts(self._writes, cells, by, waits)
        self._reads[by][cells] = at

    def write(self, cells: Indices, by: Module, at: int, waits: list[int]) -> None:
        self._conflicts(self._writes, cells, by, waits)
        self._conflicts(self._reads, cells, by, waits)
        self._writes[by][cells] = at

    @staticmethod
    def _conflicts(accesses: npt.NDArray[np.int32], cells: Indices, by: Module, waits: list[int]) -> None:
        for other in Module:
            if other != by:
                waits[other] = max(waits[other], int(accesses[other][cells].max(initial=_NOTHING)))


class _Tokens:
    def __init__(self, rows: Sequence[tuple[int, ...]], uops: Sequence[Uops | None], config: VtaConfig) -> None:
        self._source = rows
        self._uops = uops
        self._config = config
        self._rows: list[list[int]] = []
        #: By waiter and other: the index of the other's latest instruction that the waiter surely comes after.
        self._seen = dict.fromkeys(_EDGES, _NOTHING)
        #: For compute: (its index, what it had seen by then of loads, of stores), in rising order.
        self._compute: list[tuple[int, int, int]] = []
        self._last = dict.fromkeys(Module, _NOTHING)
        self._inp = _Memory(config.inp_depth)
        self._wgt = _Memory(config.wgt_depth)
        #: OUT shares the indices of ACC and is written with it.
        self._acc = _Memory(config.acc_depth)
        self._dram = _Memory(self._dram_cells())
        self.moved: list[int] = []

    # DRAM is watched in units of OUT elements: stores and the loads that read what they wrote are multiples of it.
    def _dram_cells(self) -> int:
        end = 0
        for row in self._source:
            if row[0] in (Opcode.LOAD, Opcode.STORE):
                unit = isa.element_bytes(self._config, row[_COLUMN["memory"]])
                rows = max(row[_COLUMN["y_size"]] - 1, 0) * row[_COLUMN["x_stride"]] + row[_COLUMN["x_size"]]
                end = max(end, (row[_COLUMN["dram_base"]] + rows) * unit)
        return -(-end // self._config.out_bytes) + 1

    def run(self) -> isa.Table:
        for row, uops in zip(self._source, self._uops, strict=True):
            self.moved.append(len(self._rows))
            module = isa.module_of(row[0], row[_COLUMN["memory"]])
            # A no-op may have to come first: then the instruction's place, which is recorded as the reader's and
            # writer's, is one further on. Nothing can depend on a no-op, so one look is enough.
            waits = [_NOTHING] * len(Module)
            self._touch(row, uops, module, len(self._rows), waits)
            if module != Module.COMPUTE:
                far = Module.STORE if module == Module.LOAD else Module.LOAD
                if self._relay(module, far, waits):
                    self._touch(row, uops, module, len(self._rows), [_NOTHING] * len(Module))
                    self.moved[-1] = len(self._rows)
            self._append(list(row), module, waits)
        self.moved.append(len(self._rows))
        self._finish()
        return isa.table([tuple(row) for row in self._rows])

    def _relay(self, module: Module, far: Module, waits: list[int]) -> bool:
        """Make ``waits`` for the far module one for a compute instruction. True when a no-op was put in for it."""
        needed = waits[far]
        waits[far] = _NOTHING
        if needed == _NOTHING:
            return False
        column = 1 if far == Module.LOAD else 2
        if self._seen_through(module, column) >= needed:
            return False
        first = bisect_left(self._compute, needed, key=itemgetter(column))
        if first < len(self._compute):
            waits[Module.COMPUTE] = max(waits[Module.COMPUTE], self._compute[first][0])
            return False
        waits[Module.COMPUTE] = len(self._rows)
        relayed = [_NOTHING] * len(Module)
        relayed[far] = needed
        self._append(list(isa.row(Opcode.LOAD, memory=Memory.UOP)), Module.COMPUTE, relayed)
        return True

    def _seen_through(self, module: Module, column: int) -> int:
        """What ``module`` knows of the far module through the compute instruction it last waited for."""
        after = bisect_right(self._compute, self._seen[module, Module.COMPUTE], key=itemgetter(0))
        return self._compute[after - 1][column] if after else _NOTHING

    def _append(self, row: list[int], module: Module, waits: list[int]) -> None:
        for other in Module:
            edge = (module, other)
            if edge in _EDGES and waits[other] > self._seen[edge]:
                pop, push = _EDGES[edge]
                row[_COLUMN[pop]] = 1
                self._rows[waits[other]][_COLUMN[push]] = 1
                self._seen[edge] = waits[other]
        at = len(self._rows)
        if module == Module.COMPUTE:
            seen = (self._seen[module, Module.LOAD], self._seen[module, Module.STORE])
            if not self._compute or self._compute[-1][1:] != seen:
                self._compute.append((at, *seen))
        self._rows.append(row)
        self._last[module] = at

    def _finish(self) -> None:
        """FINISH comes after everything, and waits for nothing itself: the hardware sets `done` when it starts it."""
        waits = [_NOTHING] * len(Module)
        for other in (Module.LOAD, Module.STORE):
            if self._last[other] > self._seen[Module.COMPUTE, other]:
                waits[other] = self._last[other]
        if max(waits) > _NOTHING:
            self._append(list(isa.row(Opcode.LOAD, memory=Memory.UOP)), Module.COMPUTE, waits)
        self._rows.append(list(isa.row(Opcode.FINISH)))

    # --- What an instruction touches ------------------------------------------------------------

    def _touch(self, row: tuple[int, ...], uops: Uops | None, module: Module, at: int, waits: list[int]) -> None:
        opcode = row[0]
        if opcode in (Opcode.LOAD, Opcode.STORE):
            self._touch_memory(row, module, at, waits)
        elif opcode in (Opcode.GEMM, Opcode.ALU) and uops is not None:
            outer = np.arange(row[_COLUMN["iter_out"]])[:, None, None]
            inner = np.arange(row[_COLUMN["iter_in"]])[None, :, None]

            def cells(column: int, name: str) -> Indices:
                steps = outer * row[_COLUMN[f"{name}_factor_out"]] + inner * row[_COLUMN[f"{name}_factor_in"]]
                found: Indices = (steps + np.unique(uops[:, column])).reshape(-1)
                return found

            self._acc.write(cells(0, "dst"), module, at, waits)
            if opcode == Opcode.GEMM and not row[_COLUMN["reset"]]:
                self._inp.read(cells(1, "src"), module, at, waits)
                self._wgt.read(cells(2, "wgt"), module, at, waits)
            elif opcode == Opcode.ALU and not row[_COLUMN["use_imm"]]:
                self._acc.read(cells(1, "src"), module, at, waits)

    def _touch_memory(self, row: tuple[int, ...], module: Module, at: int, waits: list[int]) -> None:
        memory, sram, dram, rows, columns, stride, top, bottom, left, right = (
            row[_COLUMN[name]] for name in isa.MEMORY_FIELDS
        )
        if rows * columns == 0 or memory == Memory.UOP:
            return
        unit = isa.element_bytes(self._config, memory)
        starts = (dram + np.arange(rows) * stride) * unit
        granule = self._config.out_bytes
        first, last = starts // granule, -(-(starts + columns * unit) // granule)
        touched = (first[:, None] + np.arange(int((last - first).max()))[None, :]).reshape(-1)
        if row[0] == Opcode.STORE:
            self._acc.read(np.arange(sram, sram + rows * columns), module, at, waits)
            self._dram.write(touched, module, at, waits)
            return
        count = (top + rows + bottom) * (left + columns + right)
        chip = {Memory.INP: self._inp, Memory.WGT: self._wgt, Memory.ACC: self._acc}[Memory(memory)]
        chip.write(np.arange(sram, sram + count), module, at, waits)
        self._dram.read(touched, module, at, waits)


def synchronise(
    rows: Sequence[tuple[int, ...]], uops: Sequence[Uops | None], config: VtaConfig
) -> tuple[isa.Table, list[int]]:
    """The program with its tokens, and FINISH; and where each instruction came to lie (one more: the end).

    ``rows`` are in an order in which they could run one after the other, ``uops`` what each GEMM and ALU among them
    runs (n, 3). Micro-op loads are of constants: they are not watched.
    """
    tokens = _Tokens(rows, uops, config)
    table = tokens.run()
    return table, tokens.moved
