"""How busy the hot loop of a compiled ARM kernel keeps the fused-multiply-add unit, by LLVM's scheduling models.

llvm-mca simulates the loop's instructions over a processor's pipelines. Like the model it takes every load to hit the
first-level cache, so what it gives is what the instruction sequence allows, not a measurement on a board.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HINT = "llvm-mca is in LLVM's tools: apt-get install llvm"
ITERATIONS = 100
_LABEL = re.compile(r"([.\w$]+):")
_INSTRUCTION = re.compile(r"([a-z][\w.]*)(?:\s+(.*))?")
#: What jumps to a label: b, b.ne, bne, cbz, cbnz, tbz, tbnz. `bl`, `blx` and `bx` are calls and returns.
_BRANCH = re.compile(r"b|b\.\w+|b(?:eq|ne|hs|cs|lo|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)|cbn?z|tbn?z")
_FMA = re.compile(r"fmla|fmadd|vmla\.f32|vfma\.f32")
#: The lanes of an AArch64 vector register, such as v0.4s.
_ARRANGEMENT = re.compile(r"v\d+\.(\d+)[a-z]")


class NoAnalyser(Exception):
    """llvm-mca is not installed, or refuses what it was given."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What LLVM calls a processor, and what its FMA unit is tried with: ``{0}`` is the accumulator's number."""

    name: str
    triple: str
    forms: tuple[str, ...]
    accumulators: range
    features: str = ""


CORTEX_A72 = Processor(
    name="cortex-a72",
    triple="aarch64-linux-gnu",
    forms=("fmla v{0}.4s, v30.4s, v31.4s", "fmla v{0}.2s, v30.2s, v31.2s", "fmadd s{0}, s30, s31, s{0}"),
    accumulators=range(24),
)
CORTEX_A9 = Processor(
    name="cortex-a9",
    triple="armv7-linux-gnueabihf",
    forms=("vmla.f32 q{0}, q14, q15", "vmla.f32 d{0}, d28, d29"),
    accumulators=range(14),
    features="+neon",
)


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Of a loop: instructions, FMAs and cycles of an iteration; which share of the unit's peak that is."""

    instructions: int
    fma: int
    cycles: float
    share: float
    flop_per_cycle: float


def tool() -> str:
    """The path of llvm-mca, the newest there is. Raises :class:`NoAnalyser` that says how to get it."""
    found = shutil.which("llvm-mca")
    if found is None:
        versions = [path.parent.parent for path in Path("/usr/lib").glob("llvm-*/bin/llvm-mca")]
        if not versions:
            raise NoAnalyser(f"llvm-mca is not installed; {HINT}")
        found = str(max(versions, key=lambda path: int(path.name.partition("-")[2])) / "bin" / "llvm-mca")
    return found


def hot_loop(assembly: str) -> list[str]:
    """The instructions of the innermost loop with the most FMAs, its branch included. Empty when no loop has one."""
    best: list[str] = []
    for body in innermost_loops(assembly):
        if count_fma(body) > count_fma(best):
            best = body
    return best


def innermost_loops(assembly: str) -> list[list[str]]:
    """The bodies of all loops that hold no other loop: from a label to a later branch back to it."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for line in assembly.splitlines():
        # Labels share a line with an instruction where a disassembler wrote it.
        text = line.partition("//")[0].partition("@ ")[0].partition("\t@")[0].strip()
        while label := _LABEL.match(text):
            labels[label[1]] = len(lines)
            text = text[label.end() :].strip()
        found = _INSTRUCTION.fullmatch(text)
        if found is None:
            continue
        lines.append(text)
        if _BRANCH.fullmatch(found[1]) and (target := (found[2] or "").split(",")[-1].strip()) in labels:
            # Several branches to one label are one loop, to the last of them.
            ends[labels[target]] = len(lines)
    return [
        lines[start:end]
        for start, end in ends.items()
        if not any(start < other and last <= end for other, last in ends.items())
    ]


def count_fma(body: list[str]) -> int:
    return sum(map(_is_fma, body))


def utilisation(body: list[str], processor: Processor) -> Utilisation:
    """What ``body``, repeated, gets out of the FMA unit. Raises :class:`NoAnalyser`."""
    lanes = sum(_lanes(line) for line in body if _is_fma(line))
    cycles = cycles_of(tuple(body), processor)
    return Utilisation(
        instructions=len(body),
        fma=count_fma(body),
        cycles=cycles,
        share=lanes / cycles / peak(processor),
        flop_per_cycle=2 * lanes / cycles,
    )


@cache
def peak(processor: Processor) -> float:
    """The most results of FMAs a cycle that the model allows: of streams in which no FMA waits for another."""
    return max(
        sum(map(_lanes, stream)) / cycles_of(stream, processor)
        for form in processor.forms
        for stream in [tuple(form.format(number) for number in processor.accumulators)]
    )


def cycles_of(body: tuple[str, ...], processor: Processor) -> float:
    """Cycles that one of ``ITERATIONS`` repetitions of ``body`` takes. Raises :class:`NoAnalyser`."""
    command = [tool(), f"-mtriple={processor.triple}", f"-mcpu={processor.name}", f"-iterations={ITERATIONS}", "-json"]
    if processor.features:
        command.append(f"-mattr={processor.features}")
    # Branches out of the loop lead to labels of the rest of the function.
    done = subprocess.run(command, input="\n".join(body) + "\n", capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise NoAnalyser(f"llvm-mca: {(done.stderr.strip() or 'failed').splitlines()[0]}")
    summary = json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]
    return float(summary["TotalCycles"]) / ITERATIONS


def _is_fma(line: str) -> bool:
    return _FMA.fullmatch(line.split()[0]) is not None


def _lanes(line: str) -> int:
    """Results of one FMA: by the arrangement of its first operand, or its size on ARMv7."""
    first = line.split()[1]
    if found := _ARRANGEMENT.match(first):
        return int(found[1])
    return {"q": 4, "d": 2}.get(first[0], 1)
