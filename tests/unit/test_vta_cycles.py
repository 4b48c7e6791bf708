"""The cycle model: what can be computed by hand, what must add up, and what it draws."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import vta_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.base import FleetError
from targets.vta import boards, isa, timeline
from targets.vta.boards import Board
from targets.vta.config import DEFAULT
from targets.vta.counters import count
from targets.vta.cycles import CycleReport, Timing, model
from targets.vta.isa import AluOp, Memory, Module, Opcode
from targets.vta.lower import lower
from targets.vta.program import Layer, Program

PYNQ = boards.find("pynq")
#: Nothing costs anything but data and micro-ops.
IDEAL = Timing(latency_ns=0, row=0, instruction=0, pipeline=0, padding=0)
#: Reading the instructions of a short program: 16 bytes each, 8 of them together.
BURST = 8 * 2
LOOP = {"uop_bgn": 0, "uop_end": 4, "iter_out": 5, "iter_in": 50}
FINISH = isa.row(Opcode.FINISH)


def load(memory: Memory, rows: int, columns: int, **fields: int) -> tuple[int, ...]:
    return isa.row(Opcode.LOAD, memory=memory, y_size=rows, x_size=columns, x_stride=columns, **fields)


def ideal(*rows: tuple[int, ...], timing: Timing = IDEAL, board: Board = PYNQ) -> CycleReport:
    """Of the rows, made up to one burst of instructions by some that do nothing."""
    nothing = [isa.row(Opcode.STORE, memory=Memory.OUT)] * (8 - len(rows))
    return model(isa.table([*rows, *nothing]), DEFAULT, board, timing=timing)


@pytest.mark.parametrize(
    ("row", "cycles"),
    [
        (isa.row(Opcode.GEMM, **LOOP), 1000),
        (isa.row(Opcode.GEMM, reset=1, **LOOP), 1000),
        (isa.row(Opcode.ALU, **LOOP), 2000),
        (load(Memory.INP, 3, 100), 3 * 200),
        (load(Memory.WGT, 1, 7), 7 * 32),
        (load(Memory.ACC, 2, 10), 160),
        (load(Memory.UOP, 1, 5), 3),
        (isa.row(Opcode.STORE, memory=Memory.OUT, y_size=2, x_size=30), 120),
        (load(Memory.INP, 0, 0), 0),
    ],
)
def test_one_instruction_takes_what_its_data_or_micro_ops_take(row: tuple[int, ...], cycles: int) -> None:
    report = ideal(row)
    assert report.cycles == BURST + cycles
    assert report.predicted_ms == pytest.approx(report.cycles / 100_000)


def test_what_each_assumption_adds() -> None:
    row = load(Memory.INP, 3, 100, y_pad_0=1, x_pad_0=2)
    for timing, more in (
        (
            Timing(latency_ns=250, row=0, instruction=0, pipeline=0, padding=0),
            25 + 3 * 25,
        ),  # fetch's first, and each row
        (Timing(latency_ns=0, row=2, instruction=0, pipeline=0, padding=0), 3 * 2),
        (Timing(latency_ns=0, row=0, instruction=0, pipeline=0, padding=1), 102 + 3 * 2),
        (Timing(latency_ns=0, row=0, instruction=0, pipeline=9, padding=0), 0),
    ):
        assert ideal(row, timing=timing).cycles == BURST + 600 + more
    assert ideal(isa.row(Opcode.GEMM, **LOOP), timing=Timing(0, 0, 0, 9)).cycles == BURST + 1000 + 9


def test_a_wider_port_moves_more_and_a_faster_clock_takes_less_time() -> None:
    narrow, wide = ideal(load(Memory.WGT, 1, 64)), ideal(load(Memory.WGT, 1, 64), board=boards.find("ultra96"))
    assert narrow.read_cycles == 2 * wide.read_cycles
    assert wide.predicted_ms == pytest.approx(wide.cycles / 333_000)


def test_modules_overlap_but_for_tokens() -> None:
    """A load of 3200 cycles beside a GEMM of 1000: together 3200, one after the other 4200."""
    weights, gemm = load(Memory.WGT, 1, 100), isa.row(Opcode.GEMM, **LOOP)
    assert ideal(weights, gemm).cycles == BURST + 3200
    waiting = ideal(load(Memory.WGT, 1, 100, push_next=1), isa.row(Opcode.GEMM, pop_prev=1, **LOOP))
    assert waiting.cycles == BURST + 4200
    assert waiting.modules[Module.COMPUTE].waiting == {"fetch": BURST, "l2g": 3200}
    assert waiting.modules[Module.LOAD].waiting == {"fetch": BURST, "end": 1000}
    assert waiting.modules[Module.COMPUTE].busy == 1000


def test_reads_share_their_channel_and_writes_have_another() -> None:
    inputs, biases = load(Memory.INP, 1, 400), load(Memory.ACC, 1, 100)  # 800 cycles each
    report = ideal(inputs, biases)
    assert report.cycles == BURST + 1600
    assert [report.spans[index].end for index in (0, 1)] == [BURST + 1600, BURST + 1600]
    assert report.modules[Module.LOAD].waiting["memory"] == 800
    store = isa.row(Opcode.STORE, memory=Memory.OUT, y_size=1, x_size=400)
    assert ideal(inputs, store).cycles == BURST + 800


def test_fetch_stops_at_a_full_queue() -> None:
    """The GEMM behind 600 loads is handed out only when all but 512 of them, and one at work, are done."""
    loads = [load(Memory.INP, 1, 400)] * 600
    report = model(isa.table([*loads, isa.row(Opcode.GEMM, **LOOP), FINISH]), DEFAULT, PYNQ, timing=IDEAL)
    started = report.spans[600].start
    assert (600 - 512 - 2) * 800 <= started <= (600 - 512 + 1) * 800 + 2 * 600
    assert report.modules[Module.COMPUTE].waiting["fetch"] == started


def test_a_program_that_does_not_end() -> None:
    with pytest.raises(FleetError, match=r"instruction 0 of COMPUTE waits for l2g") as caught:
        ideal(isa.row(Opcode.GEMM, pop_prev=1, **LOOP))
    assert caught.value.code == "vta-deadlock"


def compiled() -> Program:
    builder = vta_graphs.GraphBuilder(np.random.default_rng(5), DEFAULT.block)
    x = builder.input((1, 32, 14, 14))
    a = builder.conv(x, 32, (3, 3), padding=1)
    b = builder.conv(a, 48, (3, 3), padding=1, stride=2)
    return lower(builder.graph(builder.conv(b, 32, (1, 1))), DEFAULT)


@pytest.fixture(scope="module")
def program() -> Program:
    return compiled()


@pytest.mark.parametrize("board", sorted(boards.BOARDS))
def test_of_a_compiled_program_everything_adds_up(program: Program, board: str) -> None:
    report = model(program.table, DEFAULT, boards.find(board), program.layers)
    counters = count(program.table, DEFAULT)
    assert report.gemm_cycles == counters.gemm_counter
    assert report.alu_cycles == 2 * counters.alu_counter
    assert report.read_cycles * boards.find(board).dma_bits // 8 >= counters.bytes_moved - counters.out_store_nbytes
    assert report.cycles >= max(report.gemm_cycles + report.alu_cycles, report.dma_cycles)
    assert report.over_bound == report.cycles / max(report.gemm_cycles, report.dma_cycles)
    for module in report.modules:
        assert module.busy + sum(module.waiting.values()) == pytest.approx(report.cycles, abs=5)
        assert module.utilisation == pytest.approx(module.busy / report.cycles, abs=1e-3)
    assert [layer.name for layer in report.layers] == [layer.name for layer in program.layers]
    assert sum(layer.gemm_cycles for layer in report.layers) == report.gemm_cycles
    assert max(layer.end for layer in report.layers) <= report.cycles
    assert all(layer.cycles == layer.end - layer.start > 0 for layer in report.layers)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Independent work for all modules."""
    kinds = st.one_of(
        st.builds(lambda rows, columns: load(Memory.INP, rows, columns), st.integers(0, 9), st.integers(0, 60)),
        st.builds(lambda columns: load(Memory.ACC, 1, columns), st.integers(0, 60)),
        st.builds(lambda inner: isa.row(Opcode.GEMM, uop_end=1, iter_out=1, iter_in=inner), st.integers(0, 900)),
        st.builds(lambda inner: isa.row(Opcode.ALU, uop_end=1, iter_out=1, iter_in=inner), st.integers(0, 900)),
        st.builds(lambda columns: isa.row(Opcode.STORE, memory=4, y_size=1, x_size=columns), st.integers(0, 60)),
    )
    return draw(st.lists(kinds, min_size=1, max_size=30))


@settings(deadline=None)
@given(streams())
def test_time_is_between_the_busiest_part_and_everything_in_turn(rows: list[tuple[int, ...]]) -> None:
    report = model(isa.table(rows), DEFAULT, PYNQ)
    longest = max([report.read_cycles, report.write_cycles, *(module.busy for module in report.modules)])
    fetching = 25 + 2 * len(rows)
    assert longest - 3 <= report.cycles <= sum(module.busy for module in report.modules) + fetching + 3
    for module in Module:
        spans = [span for span in report.spans if span.module == module]
        assert all(before.end <= after.start for before, after in pairwise(spans))


def test_pictures_and_traces(program: Program, tmp_path: Path) -> None:
    layers = (
        *program.layers[:-1],
        Layer('<odd> & "name"', "conv2d", program.layers[-1].first, program.layers[-1].last),
    )
    report = model(program.table, DEFAULT, PYNQ, layers)
    timeline.svg(report, tmp_path / "t.svg")
    tree = ElementTree.fromstring((tmp_path / "t.svg").read_text())
    text = "".join(tree.itertext())
    assert f"predicted: {report.cycles:,} cycles" in text
    assert '<odd> & "name"' in text
    assert {"load", "compute", "store", "GEMM", "LOAD WGT"} <= {element.text for element in tree.iter() if element.text}
    timeline.chrome_trace(report, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    work = [event for event in events if event["ph"] == "X"]
    assert len(work) == len(program.table)
    gemm = sum(event["dur"] for event in work if event["name"] == "GEMM") * PYNQ.clock_mhz
    assert report.gemm_cycles <= gemm <= report.gemm_cycles * 1.5
    assert {event["name"] for event in events if event["ph"] == "b"} == {layer.name for layer in layers}


def test_an_empty_program_draws_too(tmp_path: Path) -> None:
    report = model(isa.table([]), DEFAULT, PYNQ)
    assert report.cycles == 0
    timeline.svg(report, tmp_path / "t.svg")
    assert ElementTree.fromstring((tmp_path / "t.svg").read_text()).tag.endswith("svg")


def test_boards_are_found_by_name() -> None:
    assert boards.find("ultra96").dma_bits == 128
    with pytest.raises(FleetError, match="no VTA board 'zedboard'") as caught:
        boards.find("zedboard")
    assert "pynq" in caught.value.hint


def test_the_shift_of_alu_is_as_any_operation() -> None:
    assert ideal(isa.row(Opcode.ALU, alu_op=AluOp.SHR, **LOOP)).alu_cycles == 2000
