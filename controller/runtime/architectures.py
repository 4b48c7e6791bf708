"""Processors that a runtime can be built for."""

from __future__ import annotations

from dataclasses import dataclass

from targets.base import FleetError
from targets.zig import GLIBC


@dataclass(frozen=True, slots=True)
class Architecture:
    """``name`` is the machine's, as ``uname -m`` prints it; ``word`` is the size of a pointer and of ``long``."""

    name: str
    triple: str
    word: int
    #: The oldest processor that the libraries run on, as Zig calls it.
    cpu: str

    @property
    def platform(self) -> str:
        """The platform tag of wheels (PEP 600)."""
        return f"manylinux_{GLIBC.replace('.', '_')}_{self.name}"


ALL = {
    one.name: one
    for one in (
        # What it has, every Cortex-A from the A7 on has too.
        Architecture("armv7l", "arm-linux-gnueabihf", 4, "cortex_a9"),
        Architecture("aarch64", "aarch64-linux-gnu", 8, "generic"),
        Architecture("x86_64", "x86_64-linux-gnu", 8, "baseline"),
    )
}


def find(name: str) -> Architecture:
    """Raises :class:`FleetError` (``unknown-architecture``) that lists what there is."""
    try:
        return ALL[name]
    except KeyError:
        raise FleetError(
            f"there is no runtime for '{name}'",
            code="unknown-architecture",
            hint=f"it is what `uname -m` prints on the board: {', '.join(ALL)}",
        ) from None
