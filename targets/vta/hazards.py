"""What can go wrong between instructions: data races, and elements that are read before anything was put there.

One pass in an order that respects the tokens remembers, for each element of each memory, who wrote and who read it
last. Two accesses of different modules to one element, of which one writes, must be ordered by tokens: that is what
the vector clocks of :mod:`targets.vta.tokens` tell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from targets.vta.disasm import title
from targets.vta.footprint import highest, nearest, touched
from targets.vta.isa import Memory, Module, Opcode, decode_uops

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.vta.config import VtaConfig
    from targets.vta.footprint import Places
    from targets.vta.isa import Table
    from targets.vta.tokens import Edges

    Bytes = npt.NDArray[np.uint8]

#: Micro-ops between two uses of one accumulator; closer ones read a value that is still in the pipeline, as the HLS
#: design tells its compiler that there is no such dependence (``DEPENDENCE variable = acc_mem inter false``).
MIN_DISTANCE = 4
#: Kept for the instructions that touch the same as one before, which are most of them; bounds the memory.
MAX_FOOTPRINTS = 4096


class Finding(NamedTuple):
    """What is wrong with an instruction: its index, the rule's short name, and why in words."""

    instruction: int
    rule: str
    message: str


@dataclass(frozen=True)
class Transfers:
    """The memory side of LOAD and STORE, columns of shape (n,), in bytes: rows of ``width`` every ``stride`` from
    ``start``. ``must_be_stored``: whether only this program's STOREs put something there. ``usable``: whether SRAM
    and memory hold all of the transfer."""

    start: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    stride: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    must_be_stored: npt.NDArray[np.bool_]
    usable: npt.NDArray[np.bool_]


class _Stored:
    """The part of memory that STOREs write, in units of ``unit`` bytes, without the gaps between."""

    def __init__(self, table: Table, transfers: Transfers, unit: int) -> None:
        self.unit = unit
        store = np.flatnonzero((table["opcode"] == Opcode.STORE) & transfers.usable & (transfers.rows > 0))
        start = transfers.start[store]
        end = start + (transfers.rows[store] - 1) * transfers.stride[store] + transfers.width[store]
        order = np.argsort(start, kind="stable")
        start, end = start[order] // unit, -(-end[order] // unit)
        reach = np.maximum.accumulate(end) if len(end) else end
        first = np.ones(len(start), np.bool_)
        first[1:] = start[1:] > reach[:-1]
        self._starts: list[int] = start[first].tolist()
        self._ends: list[int] = (
            reach[np.append(np.flatnonzero(first)[1:] - 1, len(start) - 1)].tolist() if store.size else []
        )
        sizes = np.array(self._ends, np.int64) - np.array(self._starts, np.int64)
        self._offsets: list[int] = [0, *np.cumsum(sizes).tolist()]
        self.size = self._offsets[-1]

    def places(self, start: int, width: int, stride: int, rows: int) -> tuple[Places | None, bool]:
        """Where rows of bytes lie in it, None for nowhere; and whether all of them do."""
        unit = self.unit
        low, high = start // unit, -(-(start + (rows - 1) * stride + width) // unit)
        at = bisect_right(self._starts, low) - 1
        inside = at >= 0 and low < self._ends[at]
        if not inside and (at + 1 == len(self._starts) or self._starts[at + 1] >= high):
            return None, False
        whole = inside and high <= self._ends[at]
        offset = self._offsets[at] - self._starts[at]
        if whole and (rows == 1 or stride == width):
            return slice(low + offset, high + offset), True
        first = (start + np.arange(rows) * stride) // unit
        units = (first[:, None] + np.arange(-(-(start % unit + width) // unit))).ravel()
        if whole:
            return units + offset, True
        area = np.searchsorted(self._starts, units, "right") - 1
        hit = (area >= 0) & (units < np.array(self._ends)[area])
        found = units[hit] - np.array(self._starts)[area[hit]] + np.array(self._offsets)[area[hit]]
        return (found if len(found) else None), bool(hit.all())


class _Access(NamedTuple):
    """Who wrote and who read each element last, by module: place in its queue plus 1, 0 for nobody."""

    written: npt.NDArray[np.int32]
    read: dict[Module, npt.NDArray[np.int32]]


class _Footprint(NamedTuple):
    """What a GEMM or ALU instruction touches; None for what it does not read."""

    dst: Places
    src: Places | None
    wgt: Places | None
    distance: int
    problem: str


class Hazards:
    """The pass over one program. ``image`` is memory at the start, from address 0, which micro-ops are read from."""

    def __init__(
        self,
        table: Table,
        config: VtaConfig,
        edges: Edges,
        clocks: npt.NDArray[np.int64],
        transfers: Transfers,
        image: Bytes,
    ) -> None:
        self._table, self._config, self._edges, self._transfers, self._image = table, config, edges, transfers, image
        self._clocks = clocks.tolist()
        self._stored = _Stored(table, transfers, min(config.out_bytes, config.wgt_bytes))
        memory = self._stored.size
        self._uops = np.zeros(config.uop_depth, "<u4")
        self._uop_loaded = np.zeros(config.uop_depth, np.bool_)
        self._access = {
            Memory.INP: _access(config.inp_depth, Module.COMPUTE),
            Memory.WGT: _access(config.wgt_depth, Module.COMPUTE),
            Memory.OUT: _access(config.acc_depth, Module.STORE),
            None: _access(memory, Module.LOAD, Module.COMPUTE),
        }
        self._acc_written = np.zeros(config.acc_depth, np.bool_)
        #: Of each OUT element: whether what STORE reads there is what ACC holds.
        self._out_fresh = np.zeros(config.acc_depth, np.bool_)
        self._footprints: dict[tuple[object, ...], _Footprint] = {}

    def run(self, order: list[int]) -> Iterator[Finding]:
        """Findings of the instructions in ``order``, one in which they may complete."""
        columns = ("opcode", "memory", "sram_base", "x_size", "y_size", "y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")
        rows = list(zip(*(self._table[name].tolist() for name in columns), strict=True))
        usable = self._transfers.usable.tolist()
        for index in order:
            opcode, memory, base, x, y, top, bottom, left, right = rows[index]
            if opcode in (Opcode.GEMM, Opcode.ALU):
                yield from self._compute(index, opcode)
            elif opcode == Opcode.FINISH or not usable[index] or not x * y:
                continue
            elif opcode == Opcode.STORE:
                yield from self._store(index, slice(base, base + x * y))
            else:
                yield from self._load(index, memory, slice(base, base + (top + y + bottom) * (left + x + right)))

    def _load(self, index: int, memory: int, places: slice) -> Iterator[Finding]:
        if memory == Memory.UOP:
            # As the hardware does: one row, without padding; anything else has been found already.
            start, width = int(self._transfers.start[index]), int(self._transfers.width[index])
            places = slice(places.start, places.start + width // self._config.uop_bytes)
            self._uops[places] = np.frombuffer(self._image[start : start + width].tobytes(), "<u4")
            self._uop_loaded[places] = True
            stored, _ = self._memory(index)
            if stored is not None:
                yield Finding(index, "micro-op", "loads micro-ops from memory that the program stores to")
        elif memory == Memory.ACC or memory == Memory.ACC_8BIT:
            self._acc_written[places] = True
            self._out_fresh[places] = False
        else:
            yield from self._write(index, Memory(memory), places)
        stored, whole = self._memory(index)
        if stored is not None:
            yield from self._read(index, None, stored)
            whole = whole and bool(self._access[None].written[stored].all())
        if self._transfers.must_be_stored[index] and not whole:
            yield Finding(
                index, "uninitialised", f"{title(self._table[index])} reads memory that nothing has stored to"
            )

    def _store(self, index: int, places: slice) -> Iterator[Finding]:
        stale = np.flatnonzero(~self._out_fresh[places])
        if len(stale):
            yield Finding(
                index,
                "stale-out",
                f"STORE of OUT element {places.start + stale[0]}, which no GEMM or ALU operation has written since its "
                "accumulator was loaded or reset",
            )
        yield from self._read(index, Memory.OUT, places)
        stored, _ = self._memory(index)
        if stored is not None:
            yield from self._write(index, None, stored)

    def _compute(self, index: int, opcode: int) -> Iterator[Finding]:
        row = self._table[index]
        footprint = self._footprint(row, opcode)
        if footprint.problem:
            yield Finding(index, "uop-range", footprint.problem)
            return
        if not isinstance(footprint.dst, slice) and not len(footprint.dst):
            return
        begin, end = int(row["uop_bgn"]), int(row["uop_end"])
        missing = np.flatnonzero(~self._uop_loaded[begin:end])
        if len(missing):
            yield Finding(index, "uninitialised", f"micro-op {begin + missing[0]} was never loaded")
        reset = opcode == Opcode.GEMM and bool(row["reset"])
        if not reset:
            yield from self._values(index, opcode, footprint)
        if footprint.distance < MIN_DISTANCE:
            yield Finding(
                index,
                "accumulator-distance",
                f"uses one accumulator again {footprint.distance} micro-ops after it was written; the hardware needs "
                f"{MIN_DISTANCE}",
            )
        self._acc_written[footprint.dst] = True
        self._out_fresh[footprint.dst] = not reset
        yield from self._write(index, Memory.OUT, footprint.dst)

    def _values(self, index: int, opcode: int, footprint: _Footprint) -> Iterator[Finding]:
        """What a GEMM or ALU instruction reads must be there."""
        if not self._acc_written[footprint.dst].all() or (
            opcode == Opcode.ALU and footprint.src is not None and not self._acc_written[footprint.src].all()
        ):
            yield Finding(index, "uninitialised", f"{title(self._table[index])} reads an accumulator never written")
        if opcode == Opcode.ALU:
            return
        for memory, places in ((Memory.INP, footprint.src), (Memory.WGT, footprint.wgt)):
            if places is None:
                continue
            if not self._access[memory].written[places].all():
                yield Finding(index, "uninitialised", f"GEMM reads an element of {memory.name} never loaded")
            yield from self._read(index, memory, places)

    def _memory(self, index: int) -> tuple[Places | None, bool]:
        """Which of the stored units of memory an instruction touches, and whether it touches no others."""
        transfers = self._transfers
        return self._stored.places(
            int(transfers.start[index]),
            int(transfers.width[index]),
            int(transfers.stride[index]),
            int(transfers.rows[index]),
        )

    def _write(self, index: int, memory: Memory | None, places: Places) -> Iterator[Finding]:
        access = self._access[memory]
        for reader, read in access.read.items():
            yield from self._ordered(index, memory, "writes", reader, int(read[places].max()), "read")
        access.written[places] = self._edges.position[index] + 1

    def _read(self, index: int, memory: Memory | None, places: Places) -> Iterator[Finding]:
        access = self._access[memory]
        writer = _WRITER[memory]
        yield from self._ordered(index, memory, "reads", writer, int(access.written[places].max()), "write")
        access.read[Module(int(self._edges.module[index]))][places] = self._edges.position[index] + 1

    def _ordered(
        self, index: int, memory: Memory | None, does: str, module: Module, place: int, other_does: str
    ) -> Iterator[Finding]:
        """A race, unless the instruction at ``place - 1`` of the other module's queue has completed before this."""
        if place > self._clocks[index][module]:
            other = int(self._edges.queues[module][place - 1])
            where = "memory" if memory is None else memory.name
            yield Finding(
                index,
                "race",
                f"{title(self._table[index])} {does} {where} that instruction {other} ({title(self._table[other])}) "
                f"may {other_does} at the same time: no token orders them",
            )

    def _footprint(self, row: np.void, opcode: int) -> _Footprint:
        begin, end = int(row["uop_bgn"]), int(row["uop_end"])
        outer, inner = int(row["iter_out"]), int(row["iter_in"])
        words = self._uops[begin:end]
        immediate = bool(row["use_imm"]) if opcode == Opcode.ALU else bool(row["reset"])
        factors = tuple(int(row[f"{name}_factor_{loop}"]) for name in ("dst", "src", "wgt") for loop in ("out", "in"))
        key = (opcode, immediate, words.tobytes(), outer, inner, factors)
        found = self._footprints.get(key)
        if found is None:
            if len(self._footprints) >= MAX_FOOTPRINTS:
                self._footprints.clear()
            found = self._footprints[key] = _footprint(
                decode_uops(words, self._config), opcode, immediate, outer, inner, factors, self._config
            )
        return found


#: Who alone writes a memory; None stands for DRAM.
_WRITER = {Memory.INP: Module.LOAD, Memory.WGT: Module.LOAD, Memory.OUT: Module.COMPUTE, None: Module.STORE}
_NOTHING = np.zeros(0, np.int64)


def _access(depth: int, *readers: Module) -> _Access:
    return _Access(np.zeros(depth, np.int32), {reader: np.zeros(depth, np.int32) for reader in readers})


def _footprint(
    uops: npt.NDArray[np.int64],
    opcode: int,
    immediate: bool,
    outer: int,
    inner: int,
    factors: tuple[int, ...],
    config: VtaConfig,
) -> _Footprint:
    """``immediate``: there are no sources, as the instruction resets or has an immediate operand."""
    if not len(uops) or not outer or not inner:
        return _Footprint(_NOTHING, None, None, MIN_DISTANCE, "")
    gemm = opcode == Opcode.GEMM
    reads = [("accumulator", config.acc_depth, 0)]
    if not immediate:
        reads.append(("input", config.inp_depth, 1) if gemm else ("source accumulator", config.acc_depth, 1))
        if gemm:
            reads.append(("weight", config.wgt_depth, 2))
    found: list[Places | None] = [None, None, None]
    for what, depth, column in reads:
        factor_out, factor_in = factors[2 * column : 2 * column + 2]
        top = highest(uops[:, column], outer, factor_out, inner, factor_in)
        if top >= depth:
            return _Footprint(_NOTHING, None, None, MIN_DISTANCE, f"uses {what} {top}; there are {depth}")
        found[column] = touched(uops[:, column], outer, factor_out, inner, factor_in)
    distance = MIN_DISTANCE
    if not (gemm and immediate):  # what a reset writes depends on nothing
        dst, dst_factors = uops[:, 0], (factors[0], factors[1])
        distance = nearest(dst, dst, outer, inner, dst_factors, dst_factors)
        if not gemm and not immediate:
            distance = min(distance, nearest(dst, uops[:, 1], outer, inner, dst_factors, (factors[2], factors[3])))
    assert found[0] is not None
    return _Footprint(found[0], found[1], found[2], distance, "")
