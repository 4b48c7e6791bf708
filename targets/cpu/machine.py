"""Machines, the processors that can be compiled for, and what this machine's processor has.

Libraries are compiled for a named set of features, never for "whatever this host is": one bundle then serves every
board that has them, and a board that lacks one can say which.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass, field
from pathlib import Path

from targets.base import FleetError


@dataclass(frozen=True, slots=True)
class Processor:
    """What LLVM is told (``mcpu``, ``mattr``), and the features it may then use, by their names in /proc/cpuinfo."""

    mcpu: str
    features: tuple[str, ...]
    #: Width of a vector register in 32-bit lanes.
    lanes: int
    #: How many vector registers there are.
    registers: int
    mattr: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as ``uname -m`` says it, LLVM's and Zig's names of it, and its processors, best first."""

    uname: str
    triple: str
    zig: str
    processors: dict[str, Processor]
    #: The processor to compile for when none is named; ``host`` takes the best that this host has.
    default: str
    float_abi: str = ""
    aliases: dict[str, str] = field(default_factory=dict)

    def processor(self, name: str) -> Processor:
        """The processor for the option ``mcpu``. Raises FleetError that lists what there is."""
        name = name or self.default
        if name == "host":
            # A host of another machine (an arm64 build on x86) has none of the features: the least is taken.
            have = cpu_features() if machine() == self.uname else frozenset()
            fitting = (p for p in self.processors.values() if have.issuperset(p.features))
            return next(fitting, list(self.processors.values())[-1])
        name = self.aliases.get(name, name)
        if name not in self.processors:
            raise FleetError(
                f"there is no processor '{name}' for {self.uname}",
                code="bad-option",
                hint=f"mcpu is one of: host, {', '.join([*self.processors, *self.aliases])}",
            )
        return self.processors[name]


# The levels of the x86-64 psABI. `lm` is left out: every x86-64 has it. `abm` is what /proc/cpuinfo calls lzcnt.
_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")

X86_MACHINE = Machine(
    uname="x86_64",
    triple="x86_64-linux-gnu",
    zig="x86_64-linux-gnu",
    processors={
        "x86-64-v4": Processor("x86-64-v4", _V4, lanes=16, registers=32),
        "x86-64-v3": Processor("x86-64-v3", _V3, lanes=8, registers=16),
        "x86-64-v2": Processor("x86-64-v2", _V2, lanes=4, registers=16),
        "x86-64": Processor("x86-64", (), lanes=4, registers=16),
    },
    default="host",
    aliases={"generic": "x86-64"},
)

_ARM64 = ("asimd", "fp")
ARM64_MACHINE = Machine(
    uname="aarch64",
    triple="aarch64-linux-gnu",
    zig="aarch64-linux-gnu",
    processors={
        "cortex-a78": Processor("cortex-a78", (*_ARM64, "asimddp", "asimdhp", "atomics", "crc32"), 4, 32),
        "cortex-a76": Processor("cortex-a76", (*_ARM64, "asimddp", "asimdhp", "atomics", "crc32"), 4, 32),
        "cortex-a72": Processor("cortex-a72", (*_ARM64, "crc32"), lanes=4, registers=32),
        "cortex-a57": Processor("cortex-a57", (*_ARM64, "crc32"), lanes=4, registers=32),
        "cortex-a53": Processor("cortex-a53", (*_ARM64, "crc32"), lanes=4, registers=32),
        "generic": Processor("generic", _ARM64, lanes=4, registers=32, mattr=("+neon",)),
    },
    default="generic",
)

_ARMV7 = ("neon", "vfpv3")
ARMV7_MACHINE = Machine(
    uname="armv7l",
    triple="armv7l-linux-gnueabihf",
    zig="arm-linux-gnueabihf",
    processors={
        "cortex-a9": Processor("cortex-a9", _ARMV7, lanes=4, registers=16, mattr=("+neon", "+vfp3")),
        "generic": Processor("generic", _ARMV7, lanes=4, registers=16, mattr=("+v7", "+neon", "+vfp3")),
    },
    default="cortex-a9",
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
    return features | {"neon", "vfpv3"} if "asimd" in features else features
