"""The checker: silent on what is right, and each rule on what breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import made_vta_program
import numpy as np
import pytest
import vta_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.vta import isa, tokens
from targets.vta.checker import Finding, check, check_stream
from targets.vta.config import DEFAULT, PAGE, PUBLISHED, VtaConfig
from targets.vta.footprint import nearest, touched
from targets.vta.isa import AluOp, Memory, Module, Opcode
from targets.vta.lower import lower
from targets.vta.program import Buffer, Program, Segment

CONFORMANCE = Path(__file__).parents[1] / "data" / "vta_conformance"
#: A small accelerator, so that random streams meet one another.
SMALL = VtaConfig(log_uop_buff_size=6, log_inp_buff_size=7, log_wgt_buff_size=11, log_acc_buff_size=9).check()


def program(rows: list[tuple[int, ...]], uops: list[tuple[int, int, int]]) -> Program:
    """Rows on buffers of a page each: uop, input, weight, bias, output, in this order from the first page on."""
    words = isa.encode_uops(np.array(uops, np.int64), DEFAULT).tobytes()
    kinds = (
        ("uop", "uop", Memory.UOP),
        ("in", "input", Memory.INP),
        ("w", "weight", Memory.WGT),
        ("b", "bias", Memory.ACC),
        ("out", "output", Memory.OUT),
    )
    buffers = tuple(Buffer(name, role, memory, PAGE * (at + 1), PAGE) for at, (name, role, memory) in enumerate(kinds))  # type: ignore[arg-type]
    constants = {"uop": words + bytes(PAGE - len(words)), "w": bytes(PAGE), "b": bytes(PAGE)}
    segments = (Segment(PAGE, 5 * PAGE),)
    return Program("net", DEFAULT, isa.table(rows), segments, buffers, (), (), (), constants)


def load(memory: Memory, count: int = 8, sram: int = 0, **fields: int) -> tuple[int, ...]:
    page = {Memory.UOP: 1, Memory.INP: 2, Memory.WGT: 3, Memory.ACC: 4, Memory.ACC_8BIT: 4}[memory]
    base = page * PAGE // isa.element_bytes(DEFAULT, memory)
    fields = {"dram_base": base, "x_size": count, "y_size": 1, "x_stride": count, **fields}
    return isa.row(Opcode.LOAD, memory=memory, sram_base=sram, **fields)


def store(**fields: int) -> tuple[int, ...]:
    fields = {"dram_base": 5 * PAGE // 16, "x_size": 8, "y_size": 1, "x_stride": 8, **fields}
    return isa.row(Opcode.STORE, memory=Memory.OUT, **fields)


LOOP = {"uop_bgn": 0, "uop_end": 1, "iter_out": 1, "iter_in": 8, "dst_factor_in": 1, "src_factor_in": 1}
UOPS = [(0, 0, 0), (1, 1, 0), (2, 2, 0), (2, 2, 0), (0, 1, 0), (1, 0, 0)]


def good() -> list[tuple[int, ...]]:
    """Eight elements times a weight plus a bias, clipped and stored."""
    return [
        load(Memory.UOP, 6),
        load(Memory.ACC),
        load(Memory.INP),
        load(Memory.WGT, 1, push_next=1),
        isa.row(Opcode.GEMM, pop_prev=1, **LOOP),
        isa.row(Opcode.ALU, alu_op=AluOp.MAX, use_imm=1, push_next=1, **LOOP),
        store(pop_prev=1, push_prev=1),
        load(Memory.UOP, 0, pop_next=1, y_size=0),
        isa.row(Opcode.FINISH),
    ]


def changed(row: tuple[int, ...], **fields: int) -> tuple[int, ...]:
    values = dict(zip(isa.COLUMNS, row, strict=True)) | fields
    return tuple(values[name] for name in isa.COLUMNS)


def edit(at: int, **fields: int) -> Callable[[], list[tuple[int, ...]]]:
    return lambda: [changed(row, **fields) if index == at else row for index, row in enumerate(good())]


def insert(at: int, *rows: tuple[int, ...]) -> Callable[[], list[tuple[int, ...]]]:
    return lambda: good()[:at] + list(rows) + good()[at:]


def test_right_programs_have_no_findings() -> None:
    assert check(program(good(), UOPS)) == []
    assert check(made_vta_program.relu()) == []


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_compiled_programs_have_no_findings(config: VtaConfig) -> None:
    builder = vta_graphs.GraphBuilder(np.random.default_rng(3), config.block)
    x = builder.input((config.batch, 20, 9, 9))
    a = builder.conv(x, 24, (3, 3), padding=1)
    b = builder.conv(a, 24, (3, 3), padding=1, residual=a)
    c = builder.pool(b, 2, 2, 0)
    compiled = lower(builder.graph(builder.conv(c, 40, (1, 1), stride=2)), config)
    assert check(compiled) == []
    assert check_stream(compiled.table, config, compiled.image(), compiled.segments) == []


@pytest.mark.parametrize(
    ("rows", "at", "rule"),
    [
        (edit(4, iter_in=1 << 14), 4, "field"),
        (edit(2, dram_base=1 << 32), 2, "field"),
        (edit(5, alu_op=7), 5, "unsupported"),
        (edit(2, pop_prev=1), 2, "field"),
        (edit(6, push_next=1), 6, "field"),
        (edit(2, sram_base=2041), 2, "sram-range"),
        (edit(2, y_pad_0=15, x_pad_0=15, sram_base=1800), 2, "sram-range"),
        (edit(2, dram_base=3 * PAGE // 16 - 7), 2, "dram-range"),
        (edit(2, dram_base=1000 * PAGE // 16), 2, "dram-range"),
        (edit(2, dram_base=0), 2, "dram-range"),
        (edit(4, dst_factor_in=300), 4, "uop-range"),
        (edit(4, uop_end=8193), 4, "uop-range"),
        (edit(4, uop_bgn=3), 4, "uop-range"),
        (edit(4, uop_bgn=6, uop_end=7), 4, "uninitialised"),
        (edit(6, dram_base=2 * PAGE // 16), 6, "read-only"),
        (edit(3, push_next=0), 4, "deadlock"),
        (edit(4, pop_prev=0), 3, "left-over-token"),
        (insert(0, isa.row(Opcode.FINISH)), 0, "finish"),
        (lambda: good()[:-1], 7, "finish"),
        (lambda: [*good()[:6], changed(good()[6], push_prev=0), good()[8]], 7, "finish"),
        (lambda: [good()[3], isa.row(Opcode.LOAD, pop_prev=1), *good()], 1, "first-compute"),
        (edit(1, memory=Memory.ACC_8BIT, dram_base=4 * PAGE // 16), 1, "unsupported"),
        (edit(1, x_pad_0=1), 1, "unsupported"),
        (edit(3, x_pad_0=1), 3, "unsupported"),
        (edit(0, x_pad_0=1), 0, "unsupported"),
        (edit(0, x_size=2, y_size=2, x_stride=2), 0, "unsupported"),
        (edit(6, x_pad_1=1), 6, "unsupported"),
        (edit(6, memory=Memory.ACC), 6, "unsupported"),
        (edit(2, memory=Memory.OUT), 2, "unsupported"),
        (edit(5, alu_op=AluOp.MUL), 5, "unsupported"),
        (edit(5, reset=1), 5, "ambiguous"),
        (edit(7, y_size=1, x_pad_0=1, memory=Memory.ACC), 7, "ambiguous"),
        (edit(5, alu_op=AluOp.SHR, imm=16), 5, "shift"),
        (edit(5, alu_op=AluOp.SHR, imm=-17), 5, "shift"),
        (edit(5, alu_op=AluOp.SHR, use_imm=0), 5, "shift"),
        (edit(4, uop_end=4, iter_in=1), 4, "accumulator-distance"),
        (edit(4, dst_factor_in=0), 4, "accumulator-distance"),
        (edit(4, uop_end=3, iter_in=2, dst_factor_in=1), 4, "accumulator-distance"),
        (edit(4, uop_end=2, iter_in=3, iter_out=2, dst_factor_in=2, dst_factor_out=4), 4, "accumulator-distance"),
        (edit(5, use_imm=0, uop_bgn=4, uop_end=6, iter_in=1), 5, "accumulator-distance"),
        (insert(6, load(Memory.ACC, 1, 7)), 7, "stale-out"),
        (insert(6, isa.row(Opcode.GEMM, reset=1, **LOOP)), 7, "stale-out"),
        (edit(6, x_size=9), 6, "stale-out"),
        (edit(1, x_size=7), 4, "uninitialised"),
        (edit(2, x_size=7), 4, "uninitialised"),
        (insert(4, load(Memory.INP, 1)), 5, "race"),
        (insert(6, isa.row(Opcode.ALU, alu_op=AluOp.ADD, use_imm=1, **LOOP)), 7, "race"),
        (insert(1, load(Memory.INP, 1, 100, dram_base=5 * PAGE // 16)), 1, "uninitialised"),
    ],
)  # fmt: skip
def test_each_rule_names_the_instruction(rows: Callable[[], list[tuple[int, ...]]], at: int, rule: str) -> None:
    findings = check(program(rows(), UOPS))
    assert (at, rule) in {(finding.instruction, finding.rule) for finding in findings}, findings


def test_an_opcode_that_does_not_exist_is_the_only_finding() -> None:
    assert [(f.instruction, f.rule) for f in check(program(edit(4, opcode=6)(), UOPS))] == [(4, "field")]


def test_a_buffer_that_its_elements_cannot_name() -> None:
    made = program(good(), UOPS)
    moved = tuple(replace_buffer(b, address=b.address + 64) if b.name == "w" else b for b in made.buffers)
    assert "alignment" in {finding.rule for finding in check(replace(made, buffers=moved))}


def replace_buffer(buffer: Buffer, *, address: int) -> Buffer:
    return Buffer(buffer.name, buffer.role, buffer.memory, address, buffer.size - 64)


def test_micro_ops_that_the_program_itself_stores() -> None:
    made = program(insert(8, load(Memory.UOP, 1, dram_base=5 * PAGE // 4))(), UOPS)
    assert (8, "micro-op") in {(finding.instruction, finding.rule) for finding in check(made)}


def nops(count: int, memory: Memory, **fields: int) -> list[tuple[int, ...]]:
    return [isa.row(Opcode.LOAD, memory=memory, **fields)] * count


def test_a_full_command_queue_hangs_the_fpga_alone() -> None:
    """The load that waits, and 512 in the queue behind it, leave no way through for what it waits for."""

    def stream(between: int) -> list[Finding]:
        rows = [
            *nops(1, Memory.UOP),
            *nops(1, Memory.INP, pop_next=1),
            *nops(between, Memory.INP),
            *nops(1, Memory.UOP, push_prev=1),
            *nops(1, Memory.INP, push_next=1),
            *nops(1, Memory.UOP, pop_prev=1),
            isa.row(Opcode.FINISH),
        ]
        return check_stream(isa.table(rows), DEFAULT, np.zeros(PAGE, np.uint8))

    assert stream(tokens.COMMAND_QUEUE) == []
    assert {(f.instruction, f.rule) for f in stream(tokens.COMMAND_QUEUE + 1)} == {(1, "queue")}


def test_a_full_token_queue_hangs_the_fpga_alone() -> None:
    pushes = tokens.TOKEN_QUEUE + tokens.COMMAND_QUEUE + 2
    rows = [
        *nops(pushes, Memory.UOP, push_prev=1),
        *nops(pushes, Memory.INP, pop_next=1),
        *nops(1, Memory.INP, push_next=1),
        *nops(1, Memory.UOP, pop_prev=1),
        isa.row(Opcode.FINISH),
    ]
    findings = check_stream(isa.table(rows), DEFAULT, None)
    assert [(f.instruction, f.rule) for f in findings] == [(tokens.TOKEN_QUEUE, "queue")]


def test_conformance_programs_do_only_what_they_are_made_to_do() -> None:
    """They pad accumulators, and nine use an accumulator again at once; simulators define both, the FPGA does not."""
    close = set()
    for path in sorted(CONFORMANCE.glob("*.npz")):
        with np.load(path) as data:
            image = np.zeros(int(data["dram_size"]), np.uint8)
            image[: len(data["dram_in"])] = data["dram_in"]
            table = isa.decode(data["insn"].tobytes(), DEFAULT)
        padded = sum(table[name] for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")) > 0
        padded_accumulators = np.flatnonzero((table["memory"] == Memory.ACC) & padded & (table["x_size"] > 0))
        findings = check_stream(table, DEFAULT, image)
        assert [f.instruction for f in findings if f.rule == "unsupported"] == padded_accumulators.tolist(), path.name
        others = {f.rule for f in findings} - {"unsupported"}
        assert others <= {"accumulator-distance"}, path.name
        if others:
            close.add(path.stem)
    assert len(list(CONFORMANCE.glob("*.npz"))) == 40
    assert len(close) == 9


def test_without_the_image_only_what_needs_no_micro_ops_is_looked_at() -> None:
    table = isa.table(edit(6, x_size=9)())
    assert check_stream(table, DEFAULT, None) == []
    assert check_stream(isa.table(edit(2, sram_base=2041)()), DEFAULT, None)[0].rule == "sram-range"


indices = st.lists(st.integers(0, 20), min_size=1, max_size=6).map(lambda values: np.array(values, np.int64))
factors = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(indices, indices, st.integers(1, 6), st.integers(1, 6), factors, factors)
def test_footprints_are_those_of_the_loops(
    writes: np.ndarray, reads: np.ndarray, outer: int, inner: int, step: tuple[int, int], read_step: tuple[int, int]
) -> None:
    reads = np.resize(reads, len(writes))
    written = [int(w) + o * step[0] + i * step[1] for o in range(outer) for i in range(inner) for w in writes]
    read = [int(r) + o * read_step[0] + i * read_step[1] for o in range(outer) for i in range(inner) for r in reads]
    places = touched(writes, outer, step[0], inner, step[1])
    assert sorted(set(written)) == np.arange(200)[places].tolist()
    closest = min(
        (d for d in (1, 2, 3) if any(written[at] == read[at + d] for at in range(len(written) - d))), default=4
    )
    assert nearest(writes, reads, outer, inner, step, read_step) == closest


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Loads, GEMMs, ALU operations and stores on few elements, with tokens that pair up or not."""
    rows = [isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=0, x_size=8, y_size=1)]
    waiting = dict.fromkeys(tokens.TokenQueue, 0)
    for _ in range(draw(st.integers(3, 14))):
        kind = draw(st.sampled_from([Memory.INP, Memory.WGT, Memory.ACC, Opcode.GEMM, Opcode.ALU, Opcode.STORE]))
        opcode = Opcode.LOAD if isinstance(kind, Memory) else kind
        fields: dict[str, int] = {}
        if opcode in (Opcode.LOAD, Opcode.STORE):
            fields["memory"] = kind if isinstance(kind, Memory) else Memory.OUT
            unit = isa.element_bytes(SMALL, fields["memory"])
            fields["sram_base"] = draw(st.integers(0, 4))
            fields["dram_base"] = PAGE // unit + draw(st.integers(0, 6))
            fields["x_size"], fields["y_size"] = draw(st.integers(1, 2)), draw(st.integers(1, 2))
            fields["x_stride"] = draw(st.integers(1, 4))
        else:
            begin = draw(st.integers(0, 7))
            fields = {"uop_bgn": begin, "uop_end": begin + 1, "iter_out": 1, "iter_in": draw(st.integers(1, 2))}
            fields["dst_factor_in"] = fields["src_factor_in"] = 1
            fields["reset"] = draw(st.integers(0, 1)) if opcode == Opcode.GEMM else 0
        module = isa.module_of(opcode, fields.get("memory", 0))
        for (owner, name), queue in tokens.POPS.items():
            if owner == module and waiting[queue] and draw(st.booleans()):
                fields[name] = 1
                waiting[queue] -= 1
        for (owner, name), queue in tokens.PUSHES.items():
            if owner == module and draw(st.booleans()):
                fields[name] = 1
                waiting[queue] += 1
        rows.append(isa.row(opcode, **fields))
    return rows


def accesses(row: np.void, uops: np.ndarray) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Elements and bytes that an instruction reads and writes, one by one; those of one module alone are left out."""
    reads, writes = set(), set()
    if row["opcode"] in (Opcode.LOAD, Opcode.STORE):
        memory = Memory(int(row["memory"]))
        unit = isa.element_bytes(SMALL, memory)
        count = int(row["x_size"] * row["y_size"])
        chip = {(memory.name, int(row["sram_base"]) + at) for at in range(count)}
        dram = {
            ("DRAM", (int(row["dram_base"]) + int(row["x_stride"]) * y + x) * unit + byte)
            for y in range(int(row["y_size"]))
            for x in range(int(row["x_size"]))
            for byte in range(unit)
        }
        return (chip, dram) if row["opcode"] == Opcode.STORE else (dram, chip)
    for inner in range(int(row["iter_in"])):
        dst, src, wgt = uops[int(row["uop_bgn"])]
        writes.add(("OUT", int(dst) + inner))
        if row["opcode"] == Opcode.GEMM and not row["reset"]:
            reads |= {("INP", int(src) + inner), ("WGT", int(wgt))}
    return reads, writes


@settings(max_examples=150, deadline=None)
@given(streams(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=8, max_size=8))
def test_races_are_those_that_a_closure_of_all_edges_finds(
    rows: list[tuple[int, ...]], uops: list[tuple[int, int, int]]
) -> None:
    """An instruction has a race exactly when one before it in the stream conflicts with it and no path leads to it."""
    table, words = isa.table(rows), np.array(uops, np.int64)
    image = np.zeros(2 * PAGE, np.uint8)
    image[:32] = np.frombuffer(isa.encode_uops(words, SMALL).tobytes(), np.uint8)
    found = {f.instruction for f in check_stream(table, SMALL, image) if f.rule == "race"}

    edges = tokens.match(table)
    before: list[set[int]] = []
    for index in range(len(table)):
        direct = {int(other) for other in edges.partner[index, :2] if other >= 0}
        direct |= {other for other in range(index) if edges.module[other] == edges.module[index]}
        before.append(direct.union(*(before[other] for other in direct)) if direct else direct)
    touches = [accesses(row, words) for row in table]
    expected = set()
    for later, (reads, writes) in enumerate(touches):
        for earlier in set(range(later)) - before[later]:
            if writes & (touches[earlier][0] | touches[earlier][1]) or reads & touches[earlier][1]:
                expected.add(later)
    assert found == expected


def test_walk_and_clocks_of_a_stream_whose_order_is_not_the_tokens() -> None:
    """A module may wait for what comes later in the stream, as fetch runs ahead."""
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.UOP, pop_prev=1),
        isa.row(Opcode.LOAD, memory=Memory.INP, push_next=1),
        isa.row(Opcode.FINISH),
    ]
    table = isa.table(rows)
    edges = tokens.match(table)
    walked = tokens.walk(table, edges, command_queue=None, token_queue=None)
    assert walked.order == [1, 0, 2] and not walked.waiting
    assert tokens.clocks(edges, walked.order)[2].tolist() == [1, 2, 0]
    assert edges.partner[0].tolist() == [1, tokens.NONE, tokens.NONE, tokens.NONE]
    assert Module(int(edges.module[1])) == Module.LOAD
