"""Proves of a program, without running it, that the accelerator will do with it what the simulator does.

Whatever a bitstream does not check and a simulator does not show is looked at here: fields and ranges, tokens and
queues, data races, and what the hardware lacks or does in its own way. Every program that is built goes through this,
and any finding is an error. Rules, by their short names:

``field`` a value outside of its field, or a dependency bit that means nothing there · ``sram-range``, ``dram-range``,
``uop-range`` outside of a memory, or across the end of a buffer · ``alignment`` a buffer whose address its elements
cannot name · ``read-only`` a STORE to what is no result · ``deadlock``, ``left-over-token`` · ``queue`` would hang on
the FPGA alone, as its queues are finite · ``finish`` not the last, or not ordered after everything · ``first-compute``
the first compute instruction waits, while ``done`` still reads 1 of the run before · ``unsupported`` only the original
functional simulator does it · ``ambiguous`` the originals differ · ``shift`` not surely within the hardware's five
bits · ``accumulator-distance``, ``stale-out``, ``race``, ``uninitialised``, ``micro-op``: see
:mod:`targets.vta.hazards`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from targets.vta.disasm import title
from targets.vta.hazards import Finding, Hazards, Transfers
from targets.vta.isa import DEPENDENCIES, AluOp, Memory, Module, Opcode, element_bytes, layout
from targets.vta.tokens import (
    COMMAND_QUEUE,
    POPS,
    PUSHES,
    TOKEN_QUEUE,
    Edges,
    Walk,
    clocks,
    left_over,
    match,
    walk,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.vta.config import VtaConfig
    from targets.vta.isa import Table
    from targets.vta.program import Program, Segment

    Mask = npt.NDArray[np.bool_]

__all__ = ["Finding", "check", "check_stream"]

#: Byte addresses have 32 bits.
_ADDRESSES = 1 << 32
#: The shift amount that the hardware looks at: five bits, signed.
_SHIFTS = (-16, 15)
_PADS = ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")
_RESULTS = ("activation", "output")


class _Region(NamedTuple):
    """Memory that an access may not leave. ``role`` is a buffer's, or empty when it is not known."""

    address: int
    size: int
    name: str
    role: str


def check(program: Program) -> list[Finding]:
    """Everything that is wrong with a program, in the order of its instructions; empty for a good one."""
    regions = [_Region(b.address, b.size, f"buffer '{b.name}'", b.role) for b in program.buffers]
    findings = _check(program.table, program.config, program.image(), regions)
    for buffer in program.buffers:
        unit = element_bytes(program.config, buffer.memory)
        if buffer.address % unit:
            why = f"buffer '{buffer.name}' lies at {buffer.address:#x}, which is no multiple of {unit} bytes"
            findings.append(Finding(0, "alignment", why))
    return sorted(findings)


def check_stream(
    table: Table, config: VtaConfig, image: npt.NDArray[np.uint8] | None, segments: Sequence[Segment] = ()
) -> list[Finding]:
    """As :func:`check`, for instructions of which only the memory they start with is known.

    ``image``: memory from address 0, uint8, which micro-ops are read from; where accesses lie is checked against
    ``segments``, or without any against the image. Without an image (None), what depends on micro-ops is not looked at:
    races, distances, stale elements, on-chip ranges of GEMM and ALU.
    """
    regions = [_Region(s.address, s.size, f"the segment at {s.address:#x}", "") for s in segments]
    if not regions:
        size = _ADDRESSES if image is None else len(image)
        regions = [_Region(0, size, "memory", "")]
    return sorted(_check(table, config, image, regions))


def _check(
    table: Table, config: VtaConfig, image: npt.NDArray[np.uint8] | None, regions: Sequence[_Region]
) -> list[Finding]:
    unknown = np.flatnonzero(~np.isin(table["opcode"], list(Opcode)))
    if len(unknown):  # nothing else can be said of a stream that holds something else
        return [Finding(int(at), "field", f"there is no opcode {table['opcode'][at]}") for at in unknown]
    findings = list(_fields(table, config))
    damaged = {finding.instruction for finding in findings}
    edges = match(table)
    findings += _dependencies(table, edges)
    findings += _operations(table, config)
    transfers, found = _transfers(table, config, regions, damaged)
    findings += found
    walked = walk(table, edges, command_queue=None, token_queue=None)
    clock = clocks(edges, walked.order)
    findings += _queues(table, edges, walked)
    findings += _finish(table, edges, walked, clock)
    if image is not None:
        order = [index for index in _stream_order(edges, walked) if index not in damaged]
        findings += Hazards(table, config, edges, clock, transfers, image).run(order)
    return findings


def _fields(table: Table, config: VtaConfig) -> Iterator[Finding]:
    """What the encoding cannot hold."""
    for opcode in Opcode:
        chosen = np.flatnonzero(table["opcode"] == opcode)
        for name, (_, width) in layout(config, opcode).items():
            if name == "memory" and opcode == Opcode.STORE:
                continue  # always OUT, which HW_VER 0.0.1 writes as 0
            lowest, highest = (-(1 << width - 1), (1 << width - 1) - 1) if name == "imm" else (0, (1 << width) - 1)
            values = table[name][chosen]
            for at in chosen[(values < lowest) | (values > highest)].tolist():
                yield Finding(at, "field", f"{name} is {table[name][at]}, and must be within {lowest}..{highest}")
    looping = np.isin(table["opcode"], (Opcode.GEMM, Opcode.ALU))
    for at in np.flatnonzero(looping & (table["uop_end"] > config.uop_depth)).tolist():
        yield Finding(at, "uop-range", f"micro-ops to {table['uop_end'][at]}; there are {config.uop_depth}")
    for at in np.flatnonzero(looping & (table["uop_end"] < table["uop_bgn"])).tolist():
        yield Finding(at, "uop-range", f"micro-ops from {table['uop_bgn'][at]} to {table['uop_end'][at]}")


def _dependencies(table: Table, edges: Edges) -> Iterator[Finding]:
    """Dependency bits for which a module has no queue."""
    for field in DEPENDENCIES:
        places = POPS if field.startswith("pop") else PUSHES
        for module in Module:
            if (module, field) in places:
                continue
            for at in np.flatnonzero((edges.module == module) & (table[field] != 0)).tolist():
                yield Finding(at, "field", f"{title(table[at])} has {field}, which means nothing to {module.name}")


def _operations(table: Table, config: VtaConfig) -> Iterator[Finding]:
    """What the hardware lacks, or does in its own way."""
    load, store, alu = (table["opcode"] == opcode for opcode in (Opcode.LOAD, Opcode.STORE, Opcode.ALU))
    memory, moves = table["memory"], table["x_size"] * table["y_size"] > 0
    padded = np.any([table[name] != 0 for name in _PADS], axis=0)
    rules: tuple[tuple[Mask, str, str], ...] = (
        (load & (memory == Memory.OUT), "unsupported", "LOAD OUT: nothing loads the output buffer"),
        (load & (memory > Memory.ACC_8BIT), "unsupported", "LOAD of a memory that does not exist"),
        (load & (memory == Memory.ACC_8BIT), "unsupported", "the hardware has no 8-bit loads of accumulators"),
        (store & (memory != Memory.OUT), "unsupported", "STORE of another memory than OUT"),
        (store & padded, "unsupported", "a STORE cannot pad"),
        (load & padded & moves & (memory == Memory.WGT), "unsupported", "the hardware does not pad weights"),
        (
            load & padded & moves & (memory == Memory.ACC),
            "unsupported",
            "the published bitstreams do not pad accumulators",
        ),
        (load & padded & (memory == Memory.UOP), "unsupported", "the hardware does not pad micro-ops"),
        (
            load & moves & (memory == Memory.UOP) & (table["y_size"] != 1),
            "unsupported",
            "the hardware loads one row of micro-ops",
        ),
        (load & padded & ~moves, "ambiguous", "a LOAD of nothing with padding: only the hardware writes it"),
        (
            alu & ~np.isin(table["alu_op"], (AluOp.MIN, AluOp.MAX, AluOp.ADD, AluOp.SHR)),
            "unsupported",
            "the hardware has only MIN, MAX, ADD and SHR",
        ),
        (alu & (table["reset"] != 0), "ambiguous", "an ALU instruction with reset set"),
        (
            alu & (table["alu_op"] == AluOp.SHR) & (table["use_imm"] == 0),
            "shift",
            f"a shift by what an accumulator holds, which may lie outside of {_SHIFTS[0]}..{_SHIFTS[1]}",
        ),
        (
            alu
            & (table["alu_op"] == AluOp.SHR)
            & (table["use_imm"] != 0)
            & ((table["imm"] < _SHIFTS[0]) | (table["imm"] > _SHIFTS[1])),
            "shift",
            f"a shift by an amount outside of {_SHIFTS[0]}..{_SHIFTS[1]}: the hardware takes five bits of it",
        ),
    )
    for wrong, rule, message in rules:
        for at in np.flatnonzero(wrong).tolist():
            yield Finding(at, rule, message)


def _transfers(
    table: Table, config: VtaConfig, regions: Sequence[_Region], damaged: set[int]
) -> tuple[Transfers, list[Finding]]:
    """The transfers in bytes, and the findings about where they lie on chip and in memory."""
    findings = []
    opcode = table["opcode"]
    moving = ((opcode == Opcode.LOAD) | (opcode == Opcode.STORE)) & (table["x_size"] * table["y_size"] > 0)
    sizes = np.array([element_bytes(config, memory) for memory in Memory], np.int64)
    depths = np.array(
        [config.uop_depth, config.wgt_depth, config.inp_depth, config.acc_depth, config.acc_depth, config.acc_depth]
    )
    known = (table["memory"] >= 0) & (table["memory"] < len(Memory))
    memory = np.where(opcode == Opcode.STORE, int(Memory.OUT), np.where(known, table["memory"], 0))
    size, depth = sizes[memory], depths[memory]
    usable = moving & known
    usable[sorted(damaged)] = False
    lines = table["y_pad_0"] + table["y_size"] + table["y_pad_1"]
    top = table["sram_base"] + lines * (table["x_pad_0"] + table["x_size"] + table["x_pad_1"])
    for at in np.flatnonzero(usable & (top > depth)).tolist():
        what = f"{title(table[at])} of {Memory(int(memory[at])).name} elements to {top[at] - 1}; there are {depth[at]}"
        findings.append(Finding(at, "sram-range", what))
    usable &= top <= depth
    start, width, stride = table["dram_base"] * size, table["x_size"] * size, table["x_stride"] * size
    end = start + (table["y_size"] - 1) * stride + width
    ordered = sorted(regions)
    starts = np.array([region.address for region in ordered], np.int64)
    ends = np.array([region.address + region.size for region in ordered], np.int64)
    region = np.searchsorted(starts, start, "right") - 1
    inside = (
        (region >= 0) & (end <= ends[np.maximum(region, 0)]) & (end <= _ADDRESSES) if len(ordered) else usable & False
    )
    for at in np.flatnonzero(usable & ~inside).tolist():
        holds = ordered[region[at]].name if region[at] >= 0 and start[at] < ends[region[at]] else ""
        where = f", across the end of {holds}" if holds else ", which is nowhere"
        message = f"{title(table[at])} at {start[at]:#x} to before {end[at]:#x}{where}"
        findings.append(Finding(at, "dram-range", message))
    usable &= inside
    result = np.array([one.role in _RESULTS for one in ordered], np.bool_)
    constant = np.array([bool(one.role) and one.role not in _RESULTS for one in ordered], np.bool_)
    at_region = np.where(usable, region, 0)
    for at in np.flatnonzero(usable & (opcode == Opcode.STORE) & constant[at_region]).tolist():
        one = ordered[region[at]]
        findings.append(Finding(at, "read-only", f"STORE to {one.name}, which is the program's {one.role}"))
    must_be_stored = usable & (opcode == Opcode.LOAD) & result[at_region]
    return Transfers(start, width, stride, table["y_size"], must_be_stored, usable), findings


def _queues(table: Table, edges: Edges, walked: Walk) -> Iterator[Finding]:
    """Deadlocks, and tokens that stay."""
    for at, (module, queue) in walked.waiting.items():
        if queue is not None:
            yield Finding(at, "deadlock", f"{module.name} waits for ever for a token of {queue.name.lower()}")
    for at, queue in left_over(table, edges):
        yield Finding(at, "left-over-token", f"nothing takes its token out of {queue.name.lower()}")
    if walked.waiting:
        return
    finite = walk(table, edges, command_queue=COMMAND_QUEUE, token_queue=TOKEN_QUEUE)
    limits = f"its queues hold {COMMAND_QUEUE} instructions and {TOKEN_QUEUE} tokens"
    for at, (module, queue) in finite.waiting.items():
        if queue is not None:
            yield Finding(at, "queue", f"{module.name} would hang on the FPGA at {queue.name.lower()}: {limits}")


def _finish(table: Table, edges: Edges, walked: Walk, clock: npt.NDArray[np.int64]) -> Iterator[Finding]:
    """FINISH ends the program, after everything; the first compute instruction clears what the last run left."""
    finishes = np.flatnonzero(table["opcode"] == Opcode.FINISH).tolist()
    if not finishes:
        yield Finding(max(len(table) - 1, 0), "finish", "the program has no FINISH")
        return
    for at in finishes:
        if at != len(table) - 1:
            yield Finding(at, "finish", "FINISH is not the last instruction")
    last = finishes[-1]
    if last == len(table) - 1 and len(walked.order) == len(table):
        for module in Module:
            queue, seen = edges.queues[module], int(clock[last, module])
            if seen < len(queue):
                yield Finding(
                    last,
                    "finish",
                    f"FINISH may come before instruction {queue[seen]} ({title(table[queue[seen]])}) is done",
                )
    first = int(edges.queues[Module.COMPUTE][0])
    if table["pop_prev"][first] or table["pop_next"][first] or table["opcode"][first] == Opcode.FINISH:
        yield Finding(
            first,
            "first-compute",
            "COMPUTE's first instruction waits for a token or is FINISH: until it starts, done reads 1 of the last run",
        )


def _stream_order(edges: Edges, walked: Walk) -> list[int]:
    """The stream's own order where tokens allow it, as that is the one a reader has in mind."""
    count = len(edges.module)
    if len(walked.order) == count and bool((edges.partner[:, :2] < np.arange(count)[:, None]).all()):
        return list(range(count))
    return walked.order
