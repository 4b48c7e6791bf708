"""Machines with their processors, and what this machine's processor has.

Libraries are compiled for a named set of features, never for "whatever this host is": one bundle then serves every
board that has them, and a board that lacks one can say which.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from targets.base import FleetError
from targets.cores import usable
from targets.cpu import boards, processors
from targets.cpu.boards import Board
from targets.cpu.processors import Processor

__all__ = [
    "ARM64_MACHINE",
    "ARMV7_MACHINE",
    "MACHINES",
    "X86_MACHINE",
    "Machine",
    "Processor",
    "cpu_features",
    "machine",
]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as ``uname -m`` says it, LLVM's and Zig's names of it, its processors, best first, and boards.

    LLVM takes a triple with no vendor for one of no known system, whose helpers no library has.
    """

    uname: str
    triple: str
    zig: str
    processors: dict[str, Processor]
    #: The processor to compile for when none is named; ``host`` takes the best that this host has.
    default: str
    boards: dict[str, Board] = field(default_factory=dict)
    float_abi: str = ""
    aliases: dict[str, str] = field(default_factory=dict)

    def processor(self, name: str) -> Processor:
        """The processor for the option ``mcpu``. Raises FleetError that lists what there is."""
        name = name or self.default
        if name == "host":
            return self._host()
        name = self.aliases.get(name, name)
        if name not in self.processors:
            raise FleetError(
                f"there is no processor '{name}' for {self.uname}",
                code="bad-option",
                hint=f"mcpu is one of: host, {', '.join([*self.processors, *self.aliases])}",
            )
        return self.processors[name]

    def _host(self) -> Processor:
        """The best processor whose features this host has, with the cores that this process may use."""
        least = list(self.processors.values())[-1]
        if machine() != self.uname:
            # A host of another machine (an arm64 build on x86) has none of the features.
            return least
        have = cpu_features() | _parts()
        fitting = (p for p in self.processors.values() if have.issuperset((*p.features, *p.marks)))
        return replace(next(fitting, least), cores=usable().default)

    def on_board(self, name: str) -> Processor:
        """The processor of the board for the option ``board``. Raises FleetError that lists what there is."""
        if name == "generic":
            return self.processor(name)
        if name not in self.boards:
            raise FleetError(
                f"there is no board '{name}' for {self.uname}",
                code="bad-option",
                hint=f"board is one of: {', '.join([*self.boards, 'generic'])}; or name the processor with mcpu",
            )
        board = self.boards[name]
        return board.of(self.processors[board.processor])


X86_MACHINE = Machine(
    uname="x86_64",
    triple="x86_64-unknown-linux-gnu",
    zig="x86_64-linux-gnu",
    processors={processor.name: processor for processor in processors.X86},
    default="host",
    aliases={"generic": "x86-64"},
)

ARM64_MACHINE = Machine(
    uname="aarch64",
    triple="aarch64-unknown-linux-gnu",
    zig="aarch64-linux-gnu",
    processors={processor.name: processor for processor in processors.ARM64},
    default="generic",
    boards={board.name: board for board in boards.ARM64},
)

ARMV7_MACHINE = Machine(
    uname="armv7l",
    triple="armv7l-unknown-linux-gnueabihf",
    zig="arm-linux-gnueabihf",
    processors={processor.name: processor for processor in processors.ARMV7},
    default="cortex-a9",
    boards={board.name: board for board in boards.ARMV7},
    float_abi="hard",
)

MACHINES = {machine.uname: machine for machine in (X86_MACHINE, ARM64_MACHINE, ARMV7_MACHINE)}


def machine() -> str:
    """This process's machine. A 32-bit system on a 64-bit ARM kernel counts as what its programs are."""
    name = platform.machine()
    if name in ("aarch64", "armv8l") and struct.calcsize("P") == 4:
        return "armv7l"
    return name


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Names of this processor's features as Linux gives them; those that all its cores have."""
    common: frozenset[str] | None = None
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = frozenset(value.split())
            common = found if common is None else common & found
    features = common or frozenset()
    # A 32-bit process on a 64-bit core: the kernel lists the 64-bit names, which include the older ones.
    return features | {"idiva", "idivt", "neon", "vfpv3", "vfpv4"} if "asimd" in features else features


def _parts(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The numbers of an ARM's cores as `Processor.marks` says them."""
    pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return frozenset(f"part {value.strip()}" for key, _, value in pairs if key.strip() == "CPU part")
