"""A board's accelerator as its registers and its memory show it, on top of the functional simulator.

For testing what drives real boards: it behaves at these two interfaces as the hardware does, traps included. Time
passes by reading registers: after so many reads (:class:`Timing`) the first instruction executes, the fetch module has
read all, the last has executed. Source of the registers: the HLS design of apache/tvm-vta d4a15f6 and what Vivado HLS
makes of ``ap_ctrl_hs`` (Xilinx UG902).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from targets.vta import isa
from targets.vta.config import INSN_BYTES, PAGE, VtaConfig
from targets.vta.simulator import SimulationError, Simulator

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

FETCH, LOAD, COMPUTE, STORE = range(4)
CONTROL = 0x00
START, DONE, IDLE, RESTART = 0x01, 0x02, 0x04, 0x80
FETCH_COUNT, FETCH_ADDRESS = 0x10, 0x18
COMPUTE_DONE = 0x18
#: Base address registers: (window, offset) of each memory.
BASES = {
    isa.Memory.INP: (LOAD, 0x10),
    isa.Memory.WGT: (LOAD, 0x18),
    isa.Memory.UOP: (COMPUTE, 0x20),
    isa.Memory.ACC: (COMPUTE, 0x28),
    isa.Memory.OUT: (STORE, 0x10),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Register reads from the start until each of these has happened; in this order, none less than 1."""

    first: int = 2
    fetched: int = 3
    finished: int = 6


class BusError(Exception):
    """A processor would wait for ever."""


@dataclass(slots=True)
class PhysicalMemory:
    """Memory of the processor from address 0 on; a pool in it, of whole pages, can be allocated.

    With ``coherent``, the accelerator's port goes through the processor's caches. Without, a cacheable buffer has two
    contents: what the processor sees, and what lies in memory; flushing and invalidating copy between them.
    """

    pool: int
    size: int
    coherent: bool
    dram: Bytes = field(init=False)
    _buffers: dict[int, Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dram = np.zeros(self.pool + self.size, np.uint8)  # pages that nobody touches cost nothing

    def allocate(self, size: int, cacheable: bool) -> tuple[int, Bytes]:
        """Address, and the processor's view. Old contents stay. Raises MemoryError."""
        pages = -(-size // PAGE) * PAGE
        address = self.pool
        for start in sorted(self._buffers):  # the first gap that is large enough
            if start - address >= pages:
                break
            address = start + -(-len(self._buffers[start]) // PAGE) * PAGE
        if address + pages > self.pool + self.size:
            raise MemoryError
        physical = self.dram[address : address + size]
        self._buffers[address] = physical if self.coherent or not cacheable else physical.copy()
        return address, self._buffers[address]

    def free(self, address: int) -> None:
        del self._buffers[address]

    @property
    def used(self) -> int:
        """Bytes from the pool's beginning to the end of its last buffer."""
        return max((start + len(view) - self.pool for start, view in self._buffers.items()), default=0)

    @property
    def free_bytes(self) -> int:
        return self.size - sum(-(-len(view) // PAGE) * PAGE for view in self._buffers.values())

    def flush(self, address: int, size: int) -> None:
        start, view = self._find(address, size)
        self.dram[address : address + size] = view[address - start : address - start + size]

    def invalidate(self, address: int, size: int) -> None:
        if self.coherent:
            raise BusError("what the accelerator wrote into the caches is thrown away")
        start, view = self._find(address, size)
        view[address - start : address - start + size] = self.dram[address : address + size]

    def _find(self, address: int, size: int) -> tuple[int, Bytes]:
        for start, view in self._buffers.items():
            if start <= address and address + size <= start + len(view):
                return start, view
        raise BusError(f"{size} bytes at {address:#x} are not allocated")


class Runs(Protocol):
    """What executes a stream of instructions on memory, as `Simulator.run` does."""

    def run(self, table: isa.Table, dram: Bytes) -> object: ...


class BoardModel:
    """The four register windows of one accelerator, as after power-up.

    A program that the simulator finds at fault never finishes, as on hardware; ``fault`` then says why. ``hang`` makes
    every program do so. ``simulator`` computes, if it is not to be one of its own.
    """

    def __init__(
        self,
        config: VtaConfig,
        memory: PhysicalMemory,
        timing: Timing | None = None,
        hang: bool = False,
        simulator: Runs | None = None,
    ) -> None:
        self.fault = ""
        self.runs = 0
        self._config = config
        self._memory = memory
        self._timing = timing or Timing()
        self._hang = hang
        self._simulator: Runs = simulator or Simulator(config, fill=0xA5)
        self._registers: dict[tuple[int, int], int] = {}
        self._control = [IDLE] * 4
        self._done = 0
        self._reads = -1

    def read(self, window: int, offset: int) -> int:
        self._tick()
        if offset == CONTROL:
            value = self._control[window]
            self._control[window] &= ~DONE  # cleared by reading
            return value
        if (window, offset) == (COMPUTE, COMPUTE_DONE):
            return self._done
        return self._registers.get((window, offset), 0)

    def write(self, window: int, offset: int, value: int) -> None:
        if not 0 <= value < 1 << 32 or offset % 4 or not 0 <= offset < 0x1000:
            raise BusError(f"{value:#x} cannot be written to {offset:#x}")
        if offset != CONTROL:
            self._registers[window, offset] = value
            return
        running = self._control[window] & ~RESTART | value & RESTART
        if value & START:
            if window == FETCH and self._control[FETCH] & START:
                raise BusError("fetch is started while it fetches")
            running = (running | START) & ~(IDLE | DONE)
            if window == FETCH:
                self._reads = 0
        self._control[window] = running

    def _tick(self) -> None:
        """Let a little time pass."""
        if self._reads < 0:
            return
        self._reads += 1
        table = self._instructions()
        if self._reads == self._timing.first and self._executes(table):
            compute = table[isa.modules(table) == isa.Module.COMPUTE]
            # FINISH is the only instruction of this module that does not clear it.
            self._done = self._done if not len(compute) or compute["opcode"][0] == isa.Opcode.FINISH else 0
        if self._reads == self._timing.fetched:
            self._control[FETCH] = IDLE | DONE
        if self._reads == self._timing.finished:
            self._reads = -1
            if self._executes(table):
                self._execute(table)

    def _instructions(self) -> isa.Table:
        count = self._registers.get((FETCH, FETCH_COUNT), 0)
        address = self._registers.get((FETCH, FETCH_ADDRESS), 0)
        table = isa.decode(self._memory.dram[address : address + count * INSN_BYTES].tobytes(), self._config)
        for memory, place in BASES.items():
            of_it = (table["opcode"] <= isa.Opcode.STORE) & (table["memory"] == memory)
            table["dram_base"][of_it] += self._registers.get(place, 0) // isa.element_bytes(self._config, memory)
        return table

    def _executes(self, table: isa.Table) -> bool:
        """Whether the modules were started, for more than one instruction where they get more."""
        modules = isa.modules(table)
        for module, window in zip(isa.Module, (LOAD, COMPUTE, STORE), strict=True):
            count = int((modules == module).sum())
            if count and not self._control[window] & (START if count == 1 else RESTART):
                self.fault = f"{module.name} was not started for {count} instructions"
                return False
        return not self._hang

    def _execute(self, table: isa.Table) -> None:
        finishes = bool(len(table)) and table["opcode"][-1] == isa.Opcode.FINISH
        try:
            # The simulator wants an end; hardware only waits for more.
            whole = table if finishes else np.concatenate([table, isa.table([isa.row(isa.Opcode.FINISH)])])
            self._simulator.run(whole, self._memory.dram)
        except SimulationError as error:
            self.fault = error.message
            return
        self.runs += 1
        self._done = 1 if finishes else self._done
