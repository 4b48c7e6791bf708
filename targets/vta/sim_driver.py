"""The simulated accelerator behind the interface that the real ones have."""

from __future__ import annotations

import bisect
import time
from typing import TYPE_CHECKING

import numpy as np

from targets.vta import isa
from targets.vta.config import INSN_BYTES, PAGE, VtaConfig
from targets.vta.counters import Counters
from targets.vta.driver import DriverError, RunStatistics
from targets.vta.simulator import Order, Semantics, SimulationError, Simulator, describe

if TYPE_CHECKING:
    import numpy.typing as npt

#: What all allocations together may be: the memory of the smallest board.
MEMORY_LIMIT = 512 << 20


class SimDriver:
    """Memory from physical address 4096 on, and a :class:`~targets.vta.simulator.Simulator` that works on it.

    Stricter than a board: nothing, instructions included, may touch what is not allocated.

    Args:
        board: the name of what the statistics predict cycles for; none without one.
        limit: bytes that all allocations together may have.
    """

    simulated = True

    def __init__(
        self,
        config: VtaConfig,
        board: str = "",
        *,
        semantics: Semantics = "hw",
        order: Order = "program",
        seed: int = 0,
        limit: int = MEMORY_LIMIT,
    ) -> None:
        self.config = config
        self._board = board
        self._semantics = semantics
        self._simulator = Simulator(config, semantics=semantics, order=order, seed=seed)
        self._limit = limit
        self._memory: npt.NDArray[np.uint8] = np.zeros(PAGE, np.uint8)
        #: (address, bytes asked for, whole pages) of each allocation, by address.
        self._allocated: list[tuple[int, int, int]] = []
        self._stream: tuple[bytes, isa.Table] | None = None
        self._prediction: tuple[bytes, int, float] | None = None
        self._last = RunStatistics(Counters(), 0.0)

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes of zeros. Raises :class:`DriverError` (``no-memory``)."""
        if size <= 0:
            raise DriverError(f"{size} bytes cannot be allocated", code="no-memory")
        pages = -(-size // PAGE) * PAGE
        address = PAGE
        for start, _, taken in self._allocated:  # the first gap that is large enough
            if start - address >= pages:
                break
            address = start + taken
        if address + pages > PAGE + self._limit:
            raise DriverError(
                f"{size} bytes do not fit: the simulated board has {self._limit} bytes of memory for the accelerator",
                code="no-memory",
            )
        if address + pages > len(self._memory):
            grown = np.zeros(min(PAGE + self._limit, max(address + pages, 2 * len(self._memory))), np.uint8)
            grown[: len(self._memory)] = self._memory
            self._memory = grown
        self._memory[address : address + pages] = 0
        bisect.insort(self._allocated, (address, size, pages))
        return address

    def free(self, address: int) -> None:
        at = bisect.bisect_left(self._allocated, (address,))
        if at == len(self._allocated) or self._allocated[at][0] != address:
            raise DriverError(f"nothing is allocated at address {address}", code="vta-address")
        del self._allocated[at]

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Raises :class:`DriverError` (``vta-address``) for what is not allocated."""
        source = np.frombuffer(data, np.uint8)
        self._span(address, len(source))[:] = source

    def read(self, address: int, size: int) -> bytes:
        return self._span(address, size).tobytes()

    def run(self, insn_address: int, insn_count: int, timeout: float) -> None:
        """Execute to FINISH. Raises :class:`DriverError`, as :meth:`Simulator.run` does; ``vta-timeout``."""
        stream = self.read(insn_address, insn_count * INSN_BYTES)
        if self._stream is None or self._stream[0] != stream:
            self._stream = stream, isa.decode(stream, self.config)
        table = self._stream[1]
        self._check_addresses(table)
        start = time.perf_counter()
        counters = self._simulator.run(table, self._memory, timeout)
        self._last = RunStatistics(counters, time.perf_counter() - start)

    def statistics(self) -> RunStatistics:
        """Of the last run; ``seconds`` is what the simulation took on this machine."""
        if not self._board or self._stream is None:
            return self._last
        stream, table = self._stream
        if self._prediction is None or self._prediction[0] is not stream:
            from targets.vta import boards, cycles

            report = cycles.model(table, self.config, boards.find(self._board))
            self._prediction = stream, report.cycles, report.predicted_ms
        return RunStatistics(self._last.counters, self._last.seconds, *self._prediction[1:])

    def close(self) -> None:
        """Free everything."""
        self._allocated.clear()
        self._memory = np.zeros(PAGE, np.uint8)

    def _span(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        at = bisect.bisect_right(self._allocated, (address, 1 << 62, 0)) - 1
        if at < 0 or size < 0 or address + size > self._allocated[at][0] + self._allocated[at][1]:
            raise DriverError(f"bytes {address} to before {address + size} are not allocated", code="vta-address")
        return self._memory[address : address + size]

    def _check_addresses(self, table: isa.Table) -> None:
        """Raise for the first instruction that touches, from its first byte to its last, what is not allocated."""
        y_size = table["y_size"]
        if self._semantics == "hw":
            y_size = np.where((table["opcode"] == isa.Opcode.LOAD) & (table["memory"] == isa.Memory.UOP), 1, y_size)
        moving = np.flatnonzero(
            ((table["opcode"] == isa.Opcode.LOAD) | (table["opcode"] == isa.Opcode.STORE))
            & (table["x_size"] * y_size > 0)
            & (table["memory"] < len(isa.Memory))
        )
        units = np.array([isa.element_bytes(self.config, memory) for memory in isa.Memory], np.int64)
        unit = np.where(
            table["opcode"][moving] == isa.Opcode.STORE, self.config.out_bytes, units[table["memory"][moving]]
        )
        first = table["dram_base"][moving] * unit
        last = first + ((y_size[moving] - 1) * table["x_stride"][moving] + table["x_size"][moving]) * unit
        starts = np.array([0, *(start for start, _, _ in self._allocated)], np.int64)
        ends = np.array([0, *(start + size for start, size, _ in self._allocated)], np.int64)
        wrong = np.flatnonzero(last > ends[np.searchsorted(starts, first, side="right") - 1])
        if len(wrong):
            at = int(moving[wrong[0]])
            raise SimulationError(
                f"instruction {at} ({describe(table[at], self.config)}): it touches memory from byte "
                f"{first[wrong[0]]} to before {last[wrong[0]]}, which is not all allocated"
            )
