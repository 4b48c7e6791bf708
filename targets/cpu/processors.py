"""The processors that can be compiled for: what LLVM is told of each, and the figures that kernels are planned with.

A figure is that of the core in the manual named beside it; where only a level of features is named, that of the oldest
core which has them. `docs/targets/cpu.md` holds the same table for users.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

#: Which instructions multiply bytes and add four neighbouring products into 32-bit sums: AVX512-VNNI on 512 bits,
#: AVX-VNNI on 256 bits, ARM's sdot and udot on 128 bits, or none.
Int8 = Literal["vnni", "avxvnni", "dot", ""]

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor by the name that people use, LLVM's words for it, and its figures for an analytical model."""

    name: str
    #: LLVM's name of it. `mattr` are features on top: what both allow is what `features` lists, and no more.
    mcpu: str
    #: What a device must have, by the names in /proc/cpuinfo.
    features: tuple[str, ...]
    #: Width of a vector register in 32-bit lanes.
    lanes: int
    #: How many vector registers there are.
    registers: int
    _: KW_ONLY
    #: Multiply-adds of whole vectors that start in one cycle; a half where a vector takes two cycles.
    fma_per_cycle: float
    #: Loads of whole vectors from L1 that start in one cycle.
    loads_per_cycle: float
    #: L1 data cache of a core.
    l1_bytes: int
    #: What one core can count on of the L2 cache: its own, or its share of one that all cores use.
    l2_bytes: int
    #: Threads that a release is expected to run on.
    cores: int
    #: Whether a multiply-add is one instruction that rounds once. Without, an explicit `fma` is a call into libm.
    fused: bool = True
    int8: Int8 = ""
    mattr: tuple[str, ...] = ()
    #: Marks of a host that is this very processor and not another with the same features: names in /proc/cpuinfo, or
    #: `part 0x…` for the number that an ARM core has.
    marks: tuple[str, ...] = ()


# The levels of the x86-64 psABI. `lm` is left out: every x86-64 has it. `abm` is what /proc/cpuinfo calls lzcnt.
_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_V4_VNNI = (*_V4, "avx512_vnni")

# Processors above a level are that level with VNNI for LLVM, so that code for one runs on all that have it. AMX, half
# floats and the other extensions that their names stand for are not used; they only mark a host.
X86 = (
    # AMD 58455 (Zen 5), floating point and load-store units of the server parts: 512 bits wide.
    Processor(
        "znver5",
        "x86-64-v4",
        _V4_VNNI,
        lanes=16,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=48 * KIB,
        l2_bytes=MIB,
        cores=4,
        int8="vnni",
        mattr=("+avx512vnni",),
        marks=("avx512_vp2intersect", "clzero"),
    ),
    # Intel 248966, Golden Cove: ports 0 and 5 are 512 bits wide, two loads of 64 bytes.
    Processor(
        "sapphirerapids",
        "x86-64-v4",
        _V4_VNNI,
        lanes=16,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=48 * KIB,
        l2_bytes=2 * MIB,
        cores=4,
        int8="vnni",
        mattr=("+avx512vnni",),
        marks=("avx512_fp16",),
    ),
    # AMD 57647 (Zen 4): 256 bits wide, so each 512-bit multiply-add and load takes both of its kind.
    Processor(
        "znver4",
        "x86-64-v4",
        _V4_VNNI,
        lanes=16,
        registers=32,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=MIB,
        cores=4,
        int8="vnni",
        mattr=("+avx512vnni",),
        marks=("avx512_bf16", "clzero"),
    ),
    # Intel 248966, Ice Lake Server: as below, with larger caches.
    Processor(
        "icelake-server",
        "x86-64-v4",
        _V4_VNNI,
        lanes=16,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=48 * KIB,
        l2_bytes=1280 * KIB,
        cores=4,
        int8="vnni",
        mattr=("+avx512vnni",),
        marks=("avx512_vbmi2",),
    ),
    # Intel 248966, Skylake Server: ports 0 and 1 together, and port 5; two loads of 64 bytes.
    Processor(
        "cascadelake",
        "x86-64-v4",
        _V4_VNNI,
        lanes=16,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=32 * KIB,
        l2_bytes=MIB,
        cores=4,
        int8="vnni",
        mattr=("+avx512vnni",),
    ),
    Processor(
        "x86-64-v4",
        "x86-64-v4",
        _V4,
        lanes=16,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=32 * KIB,
        l2_bytes=MIB,
        cores=4,
    ),
    # Intel 248966, Golden Cove without AVX-512: ports 0 and 1, three loads of 32 bytes.
    Processor(
        "alderlake",
        "x86-64-v3",
        (*_V3, "avx_vnni"),
        lanes=8,
        registers=16,
        fma_per_cycle=2,
        loads_per_cycle=3,
        l1_bytes=48 * KIB,
        l2_bytes=1280 * KIB,
        cores=4,
        int8="avxvnni",
        mattr=("+avxvnni",),
    ),
    # Intel 248966, Haswell: ports 0 and 1, two loads of 32 bytes.
    Processor(
        "x86-64-v3",
        "x86-64-v3",
        _V3,
        lanes=8,
        registers=16,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=32 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
    ),
    # Intel 248966, Nehalem: one multiplication and one addition, one load of 16 bytes.
    Processor(
        "x86-64-v2",
        "x86-64-v2",
        _V2,
        lanes=4,
        registers=16,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
        fused=False,
    ),
    Processor(
        "x86-64",
        "x86-64",
        (),
        lanes=4,
        registers=16,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
        fused=False,
    ),
)

_ARM64 = ("asimd", "fp")
_ARMV8_0 = (*_ARM64, "crc32")
_ARMV8_2 = (*_ARMV8_0, "asimdhp", "asimdrdm", "atomics", "fphp")
_ARMV8_2_DOT = (*_ARMV8_2, "asimddp", "lrcpc")

ARM64 = (
    # Arm Cortex-A78 Software Optimization Guide: two V pipelines, three that load. L2 of Jetson Orin.
    Processor(
        "cortex-a78ae",
        "cortex-a78ae",
        _ARMV8_2_DOT,
        lanes=4,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=3,
        l1_bytes=64 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
        int8="dot",
        marks=("part 0xd42",),
    ),
    Processor(
        "cortex-a78",
        "cortex-a78",
        _ARMV8_2_DOT,
        lanes=4,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=3,
        l1_bytes=64 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
        int8="dot",
        marks=("part 0xd41",),
    ),
    # Arm Cortex-A76 Software Optimization Guide: pipelines V0 and V1, two that load. Neoverse N1 is the same core.
    Processor(
        "cortex-a76",
        "cortex-a76",
        _ARMV8_2_DOT,
        lanes=4,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=64 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
        int8="dot",
    ),
    # NVIDIA publishes no guide: the pipelines of the Cortex-A76 are taken. 2 MiB of L2 for two cores.
    Processor(
        "carmel",
        "carmel",
        _ARMV8_2,
        lanes=4,
        registers=32,
        fma_per_cycle=2,
        loads_per_cycle=2,
        l1_bytes=64 * KIB,
        l2_bytes=MIB,
        cores=4,
        marks=("part 0x004",),
    ),
    # Arm Cortex-A72 Software Optimization Guide, and LLVM's model of the A57 which it is scheduled by: F0 and F1 are
    # 64 bits wide, a vector takes both. One pipeline loads. L2 is 1 MiB for four cores.
    Processor(
        "cortex-a72",
        "cortex-a72",
        _ARMV8_0,
        lanes=4,
        registers=32,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=256 * KIB,
        cores=4,
        marks=("part 0xd08",),
    ),
    # As the Cortex-A72. L2 of Jetson Nano: 2 MiB for four cores.
    Processor(
        "cortex-a57",
        "cortex-a57",
        _ARMV8_0,
        lanes=4,
        registers=32,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        cores=4,
        marks=("part 0xd07",),
    ),
    # Both halves of the 64-bit pipelines work on one vector a cycle; a load of 16 bytes takes two (measured figures of
    # others: Arm publishes no timings). L2 of Raspberry Pi 3: 512 KiB for four cores.
    Processor(
        "cortex-a53",
        "cortex-a53",
        _ARMV8_0,
        lanes=4,
        registers=32,
        fma_per_cycle=1,
        loads_per_cycle=0.5,
        l1_bytes=32 * KIB,
        l2_bytes=128 * KIB,
        cores=4,
        marks=("part 0xd03",),
    ),
    # The least that an ARMv8.0-A core with the common caches has.
    Processor(
        "generic",
        "generic",
        _ARM64,
        lanes=4,
        registers=32,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=128 * KIB,
        cores=4,
        mattr=("+neon",),
    ),
)

_VFPV3 = ("neon", "vfpv3")
_VFPV4 = (*_VFPV3, "idiva", "idivt", "vfpv4")

ARMV7 = (
    Processor(
        "cortex-a53",
        "cortex-a53",
        (*_VFPV4, "crc32"),
        lanes=4,
        registers=16,
        fma_per_cycle=1,
        loads_per_cycle=0.5,
        l1_bytes=32 * KIB,
        l2_bytes=128 * KIB,
        cores=4,
    ),
    # As the Cortex-A57, whose predecessor it is.
    Processor(
        "cortex-a15",
        "cortex-a15",
        _VFPV4,
        lanes=4,
        registers=16,
        fma_per_cycle=1,
        loads_per_cycle=1,
        l1_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        cores=4,
        marks=("part 0xc0f",),
    ),
    # NEON works on one 32-bit lane a cycle (measured figures of others). L2 of Raspberry Pi 2: 512 KiB for four cores.
    Processor(
        "cortex-a7",
        "cortex-a7",
        _VFPV4,
        lanes=4,
        registers=16,
        fma_per_cycle=0.25,
        loads_per_cycle=0.5,
        l1_bytes=32 * KIB,
        l2_bytes=128 * KIB,
        cores=4,
    ),
    # Arm DDI 0409, cycle timings: NEON is 64 bits wide. L2 of the Zynq-7000 (UG585): 512 KiB for two cores. VMLA is
    # a multiplication and an addition, each rounded: there is no fused one.
    Processor(
        "cortex-a9",
        "cortex-a9",
        _VFPV3,
        lanes=4,
        registers=16,
        fma_per_cycle=0.5,
        loads_per_cycle=0.5,
        l1_bytes=32 * KIB,
        l2_bytes=256 * KIB,
        cores=2,
        fused=False,
        mattr=("+neon", "+vfp3"),
        marks=("part 0xc09",),
    ),
    Processor(
        "generic",
        "generic",
        _VFPV3,
        lanes=4,
        registers=16,
        fma_per_cycle=0.5,
        loads_per_cycle=0.5,
        l1_bytes=32 * KIB,
        l2_bytes=128 * KIB,
        cores=2,
        fused=False,
        mattr=("+v7", "+neon", "+vfp3"),
    ),
)
