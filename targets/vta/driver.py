"""What a program needs of an accelerator, simulated or real."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from targets.base import FleetError
from targets.vta.config import VtaConfig
from targets.vta.counters import Counters


class DriverError(FleetError):
    """The accelerator did not do what it was told: says what, and what to look at."""

    code = "vta-driver"


class RunStatistics(msgspec.Struct, frozen=True):
    """Of the last run.

    ``seconds`` on the clock of who ran it. ``cycles`` and ``predicted_ms`` are the cycle model's, for the board that is
    simulated or driven; 0 when they were not asked for.
    """

    counters: Counters
    seconds: float
    cycles: int = 0
    predicted_ms: float = 0.0


class VtaDriver(Protocol):
    """An accelerator and its memory. Addresses are physical, in bytes, multiples of 4096 where they are allocated."""

    config: VtaConfig
    #: Said in every result that comes from it.
    simulated: bool

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes of zeros. Raises :class:`DriverError` (``no-memory``)."""
        ...

    def free(self, address: int) -> None: ...

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Raises :class:`DriverError` for what is not allocated."""
        ...

    def read(self, address: int, size: int) -> bytes: ...

    def run(self, insn_address: int, insn_count: int, timeout: float) -> None:
        """Execute to FINISH. Raises :class:`DriverError`; ``vta-timeout`` after ``timeout`` seconds."""
        ...

    def statistics(self) -> RunStatistics: ...

    def close(self) -> None:
        """Free everything."""
        ...


@runtime_checkable
class Conditioned(Protocol):
    """A driver of something that a measurement depends on: versions, clocks."""

    def conditions(self) -> dict[str, str]: ...
