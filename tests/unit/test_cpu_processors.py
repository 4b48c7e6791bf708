"""The tables of processors and boards: what LLVM may use is what a bundle asks for, and figures are figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from targets.base import FleetError, Option, find
from targets.cpu import boards, machine
from targets.cpu.machine import ARM64_MACHINE, ARMV7_MACHINE, MACHINES, X86_MACHINE, Machine, Processor

EVERY = [(m, p) for m in MACHINES.values() for p in m.processors.values()]
NAMES = [f"{m.uname}-{p.name}" for m, p in EVERY]

#: Names in /proc/cpuinfo of LLVM's features: those whose instructions a compiler makes from plain loops.
CPUINFO = {
    "x86_64": {
        "cx16": "cx16",
        "sahf": "lahf_lm",
        "popcnt": "popcnt",
        "sse3": "pni",
        "ssse3": "ssse3",
        "sse4.1": "sse4_1",
        "sse4.2": "sse4_2",
        "lzcnt": "abm",
        "avx": "avx",
        "avx2": "avx2",
        "bmi": "bmi1",
        "bmi2": "bmi2",
        "f16c": "f16c",
        "fma": "fma",
        "movbe": "movbe",
        "xsave": "xsave",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512f": "avx512f",
        "avx512vl": "avx512vl",
        "avx512vnni": "avx512_vnni",
        "avxvnni": "avx_vnni",
        "avx512bf16": "avx512_bf16",
        "avx512fp16": "avx512_fp16",
        "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512ifma": "avx512ifma",
        "avx512bitalg": "avx512_bitalg",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "gfni": "gfni",
        "amx-tile": "amx_tile",
        "amx-int8": "amx_int8",
        "amx-bf16": "amx_bf16",
    },
    "aarch64": {
        "neon": "asimd",
        "fp-armv8": "fp",
        "crc": "crc32",
        "lse": "atomics",
        "fullfp16": "asimdhp",
        "rdm": "asimdrdm",
        "rcpc": "lrcpc",
        "dotprod": "asimddp",
        "sve": "sve",
        "i8mm": "i8mm",
        "bf16": "bf16",
    },
    "armv7l": {
        "neon": "neon",
        "vfp3": "vfpv3",
        "vfp4": "vfpv4",
        "hwdiv": "idivt",
        "hwdiv-arm": "idiva",
        "crc": "crc32",
        "dotprod": "asimddp",
    },
}


@pytest.mark.parametrize(("on", "processor"), EVERY, ids=NAMES)
def test_what_llvm_may_use_is_what_a_bundle_asks_for(on: Machine, processor: Processor) -> None:
    from tvm.target.codegen import llvm_get_cpu_archlist, llvm_get_cpu_features

    from targets.cpu.compile import tvm_target

    target = tvm_target(on, processor)
    assert processor.mcpu in {str(name) for name in llvm_get_cpu_archlist(target)}
    known = CPUINFO[on.uname]
    enabled = {known[str(name)] for name in llvm_get_cpu_features(target) if str(name) in known}
    # Half floats have two names on ARM: scalars and vectors, which no processor has apart.
    enabled |= {"fphp"} if "asimdhp" in enabled else set()
    assert enabled == set(processor.features)


@pytest.mark.parametrize(("on", "processor"), EVERY, ids=NAMES)
def test_figures_are_those_of_a_processor(on: Machine, processor: Processor) -> None:
    features = set(processor.features)
    if on is X86_MACHINE:
        assert processor.lanes == (16 if "avx512f" in features else 8 if "avx" in features else 4)
        assert processor.registers == (32 if "avx512f" in features else 16)
        assert processor.fused == ("fma" in features)
        assert processor.int8 == ("vnni" if "avx512_vnni" in features else "avxvnni" if "avx_vnni" in features else "")
    else:
        assert processor.lanes == 4 and processor.registers == (32 if on is ARM64_MACHINE else 16)
        assert processor.fused == (on is ARM64_MACHINE or "vfpv4" in features)
        assert processor.int8 == ("dot" if "asimddp" in features else "")
    assert 0.25 <= processor.fma_per_cycle <= 2 and 0.5 <= processor.loads_per_cycle <= 3
    assert 32 << 10 <= processor.l1_bytes < processor.l2_bytes <= 2 << 20 and processor.cores >= 1
    assert on.processors[processor.name] is processor


@pytest.mark.parametrize(("on", "processor"), EVERY, ids=NAMES)
def test_a_host_finds_itself(
    on: Machine, processor: Processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host with a processor's features and marks takes it, or one before it in the table with no more of them."""
    cpuinfo = tmp_path / "cpuinfo"
    words = [mark for mark in processor.marks if not mark.startswith("part ")]
    parts = [mark.removeprefix("part ") for mark in processor.marks if mark.startswith("part ")]
    key = "flags" if on is X86_MACHINE else "Features"
    cpuinfo.write_text(
        f"processor : 0\n{key} : {' '.join((*processor.features, *words))}\n"
        + "".join(f"CPU part : {part}\n" for part in parts)
    )
    features, its_parts = machine.cpu_features, machine._parts
    monkeypatch.setattr(machine, "cpu_features", lambda: features(cpuinfo))
    monkeypatch.setattr(machine, "_parts", lambda: its_parts(cpuinfo))
    monkeypatch.setattr(machine, "machine", lambda: on.uname)
    found = on.processor("host")
    assert found.name == processor.name
    # The release will run here: the cores are this machine's, not the table's.
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("on", "name", "processor", "cores", "l2", "int8", "fused"),
    [
        (ARM64_MACHINE, "rpi4", "cortex-a72", 4, 256, "", True),
        (ARM64_MACHINE, "rpi5", "cortex-a76", 4, 512, "dot", True),
        (ARM64_MACHINE, "jetson-cpu", "cortex-a78ae", 6, 256, "dot", True),
        (ARM64_MACHINE, "jetson-xavier", "carmel", 8, 1024, "", True),
        (ARM64_MACHINE, "generic", "generic", 4, 128, "", True),
        (ARMV7_MACHINE, "pynq", "cortex-a9", 2, 256, "", False),
        (ARMV7_MACHINE, "rpi3", "cortex-a53", 4, 128, "", True),
        (X86_MACHINE, "generic", "x86-64", 4, 256, "", False),
    ],
)
def test_boards(on: Machine, name: str, processor: str, cores: int, l2: int, int8: str, fused: bool) -> None:
    found = on.on_board(name)
    assert (found.name, found.cores, found.l2_bytes >> 10, found.int8, found.fused) == (
        processor, cores, l2, int8, fused,
    )  # fmt: skip


def test_every_board_names_a_processor_of_its_machine() -> None:
    for on, table in ((ARM64_MACHINE, boards.ARM64), (ARMV7_MACHINE, boards.ARMV7)):
        assert [on.on_board(board.name).name for board in table] == [board.processor for board in table]
        assert len({board.name for board in table}) == len(table)


@pytest.mark.parametrize(
    ("target", "options", "words", "hint"),
    [
        ("arm64", {"board": "rpi9"}, "no board 'rpi9' for aarch64", "rpi4, rpi5"),
        ("armv7", {"board": "rpi4"}, "no board 'rpi4' for armv7l", "pynq"),
        ("x86", {"board": "rpi4"}, "no board 'rpi4' for x86_64", "generic"),
        ("arm64", {"board": "rpi4", "mcpu": "cortex-a53"}, "both name the processor", "one of them"),
        ("arm64", {"mcpu": "cortex-a9"}, "no processor 'cortex-a9'", "cortex-a72"),
        ("arm64", {"cores": -1}, "'cores' must be between 1 and", ""),
    ],
)
def test_wrong_names_are_told_the_right_ones(
    target: str, options: dict[str, Option], words: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(FleetError, match=words) as caught:
        find(target).host().toolchain(options)
    assert caught.value.code == "bad-option" and hint in caught.value.hint


def test_what_shapes_the_code_is_part_of_the_builds_key() -> None:
    host = find("arm64").host()

    def key(**options: Option) -> tuple[str, str]:
        toolchain = host.toolchain(options)
        return toolchain["mcpu"], toolchain["cores"]

    assert key(board="rpi4") == ("cortex-a72", "4") and key(board="rpi4", cores=2) == ("cortex-a72", "2")
    assert key(board="jetson-xavier") == ("carmel", "8") and key() == ("generic", "4")
    # The host's own: what this process may use.
    assert int(find("x86").host().toolchain({"mcpu": "host"})["cores"]) >= 1


def size(count: int) -> str:
    return f"{count >> 20} MiB" if count % (1 << 20) == 0 else f"{count >> 10} KiB"


def test_the_documentation_has_the_same_tables() -> None:
    page = (Path(__file__).parents[2] / "docs/targets/cpu.md").read_text()
    for target in ("x86", "arm64", "armv7"):
        on = find(target).machine  # type: ignore[attr-defined]
        rows = [line for line in page.splitlines() if line.startswith(f"| `{target}` |")]
        for p in on.processors.values():
            ports = f"{p.fma_per_cycle:g} | {p.loads_per_cycle:g} | {size(p.l1_bytes)} | {size(p.l2_bytes)}"
            rest = f"{'yes' if p.fused else 'no'} | {p.int8 or '–'} | {p.cores}"
            row = f"| `{target}` | `{p.name}` | {p.lanes} × {p.registers} | {ports} | {rest} |"
            assert row in rows
        for board in on.boards.values():
            cells = [row for row in rows if f"`{board.name}`" in row]
            assert len(cells) == 1 and f"| `{board.processor}` | {board.cores} |" in cells[0]
        assert len(rows) == len(on.processors) + len({(b.processor, b.cores, b.l2_bytes) for b in on.boards.values()})
