"""The plan of a program's memory: every buffer a place of its own, in segments that a board can allocate."""

from __future__ import annotations

from targets.base import ModelError
from targets.vta.config import PAGE, VtaConfig
from targets.vta.isa import Memory, element_bytes
from targets.vta.program import MAX_SEGMENT, Buffer, BufferRole, Segment


class MemoryPlan:
    """Hands out addresses from the first page on. Nothing is used twice: all of it together is small."""

    def __init__(self, config: VtaConfig) -> None:
        self._config = config
        self._start = self._end = PAGE
        self.buffers: list[Buffer] = []
        self._segments: list[Segment] = []

    def add(self, name: str, role: BufferRole, memory: Memory, size: int) -> Buffer:
        """A buffer of ``size`` bytes, aligned to its element. Raises :class:`ModelError` above 32 MiB."""
        if size > MAX_SEGMENT:
            raise ModelError(
                f"'{name}' takes {size} bytes; a board gives at most {MAX_SEGMENT} in one piece",
                hint="run this layer on the CPU",
            )
        unit = element_bytes(self._config, memory)
        address = -(-self._end // unit) * unit
        if address + size - self._start > MAX_SEGMENT:
            self._close()
            address = self._start
        buffer = Buffer(name, role, memory, address, size)
        self.buffers.append(buffer)
        self._end = address + size
        return buffer

    def segments(self) -> tuple[Segment, ...]:
        if self._end > self._start:
            self._close()
        return tuple(self._segments)

    def _close(self) -> None:
        end = -(-self._end // PAGE) * PAGE
        self._segments.append(Segment(self._start, end - self._start))
        self._start = self._end = end
