"""What no program may do: each is an error that names the instruction, and nothing runs for ever."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from targets.base import FleetError
from targets.vta import isa, simulator
from targets.vta.config import DEFAULT
from targets.vta.isa import AluOp, Memory, Opcode
from targets.vta.simulator import Semantics, SimulationError, Simulator

SIZE = 1 << 16
UOPS = isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=1024, y_size=1, x_size=8)
FINISH = isa.row(Opcode.FINISH)
ONCE: dict[str, Any] = {"uop_end": 1, "iter_out": 1, "iter_in": 1}


def run(rows: list[tuple[int, ...]], semantics: Semantics = "hw", **options: Any) -> np.ndarray[Any, Any]:
    memory = np.zeros(SIZE, np.uint8)
    Simulator(DEFAULT, semantics=semantics, **options).run(isa.table(rows), memory)
    return memory


def load(memory: Memory, **fields: int) -> tuple[int, ...]:
    return isa.row(Opcode.LOAD, memory=memory, **{"y_size": 1, "x_size": 1, "dram_base": 1024, **fields})


def store(**fields: int) -> tuple[int, ...]:
    return isa.row(Opcode.STORE, **{"memory": Memory.OUT, "y_size": 1, "x_size": 1, "dram_base": 1024, **fields})


@pytest.mark.parametrize("semantics", ["hw", "fsim"])
@pytest.mark.parametrize(
    ("rows", "at", "why"),
    [
        ([load(Memory.INP, sram_base=2040, x_size=9), FINISH], 0, "element 2048 of a buffer of 2048"),
        ([load(Memory.INP, sram_base=2000, x_size=40, x_pad_1=9), FINISH], 0, "element 2048 of a buffer of 2048"),
        ([load(Memory.INP, y_size=64, x_size=16, x_stride=16, y_pad_1=15, sram_base=1000), FINISH], 0, "of 2048"),
        ([load(Memory.WGT, sram_base=1024, dram_base=16), FINISH], 0, "element 1024 of a buffer of 1024"),
        ([load(Memory.UOP, sram_base=8190, x_size=3), FINISH], 0, "element 8192 of a buffer of 8192"),
        ([load(Memory.ACC, sram_base=2047, x_size=2, dram_base=64), FINISH], 0, "element 2048 of a buffer of 2048"),
        ([load(Memory.INP, dram_base=255), FINISH], 0, "memory from byte 4080 to before 4096"),
        ([load(Memory.INP, dram_base=SIZE // 16 - 1, x_size=2), FINISH], 0, f"byte {SIZE - 16} to before {SIZE + 16}"),
        ([load(Memory.INP, dram_base=4090, y_size=3, x_stride=3), FINISH], 0, f"to before {SIZE + 16}"),
        ([load(Memory.INP, dram_base=0xFFFFFFFF, y_size=16, x_size=16, x_stride=65535), FINISH], 0, "touches memory"),
        ([load(Memory.OUT), FINISH], 0, "there is no such memory"),
        ([store(sram_base=2047, x_size=2), FINISH], 0, "element 2048 of a buffer of 2048"),
        ([store(dram_base=SIZE // 16), FINISH], 0, "touches memory"),
        ([store(dram_base=1), FINISH], 0, "memory from byte 16 to before 32"),
        ([UOPS, isa.row(Opcode.GEMM, **{**ONCE, "uop_end": 8193}), FINISH], 1, "reaches micro-op 8192 of 8192"),
        (
            [UOPS, isa.row(Opcode.GEMM, **{**ONCE, "uop_bgn": 7, "uop_end": 9}), FINISH],
            1,
            "micro-op 8 was never loaded",
        ),
        ([UOPS, isa.row(Opcode.ALU, **{**ONCE, "iter_in": 3, "dst_factor_in": 1024}), FINISH], 1, "2048 of ACC"),
        ([UOPS, isa.row(Opcode.GEMM, **{**ONCE, "iter_out": 3, "dst_factor_out": 1024}), FINISH], 1, "2048 of ACC"),
        ([UOPS, isa.row(Opcode.GEMM, **{**ONCE, "iter_in": 3, "src_factor_in": 1024}), FINISH], 1, "element 2048"),
        ([UOPS, isa.row(Opcode.ALU, **{**ONCE, "iter_in": 3, "src_factor_in": 1024}), FINISH], 1, "element 2048"),
        ([UOPS, isa.row(Opcode.GEMM, **{**ONCE, "iter_in": 3, "wgt_factor_in": 512}), FINISH], 1, "1024 of WGT"),
        ([UOPS, isa.row(Opcode.ALU, alu_op=5, **ONCE), FINISH], 1, "there is no such operation"),
        ([UOPS], 0, "ends without a FINISH"),
        ([FINISH, UOPS], 1, "executes after FINISH"),
        ([FINISH, FINISH], 1, "executes after FINISH"),
        ([isa.row(Opcode.FINISH, pop_prev=1)], 0, "waits for a token from load to compute"),
        ([isa.row(Opcode.FINISH, pop_prev=1, pop_next=1)], 0, "load to compute and one from store to compute"),
        ([store(pop_prev=1), FINISH], 0, "waits for a token from compute to store"),
        ([load(Memory.INP, pop_next=1), FINISH], 0, "waits for a token from compute to load"),
        ([load(Memory.INP, push_next=1), FINISH], 0, "1 of the tokens from load to compute are left over"),
        ([UOPS, isa.row(Opcode.FINISH, push_next=1)], 1, "1 of the tokens from compute to store are left over"),
        ([store(push_prev=1), store(push_prev=1), FINISH], 1, "2 of the tokens from store to compute are left over"),
        ([isa.row(Opcode.LOAD, push_prev=1), FINISH], 0, "1 of the tokens from compute to load are left over"),
    ],
)
def test_in_both_semantics(rows: list[tuple[int, ...]], at: int, why: str, semantics: Semantics) -> None:
    with pytest.raises(SimulationError) as caught:
        run(rows, semantics)
    assert caught.value.code == "vta-simulation"
    assert f"instruction {at} (" in caught.value.message
    assert why in caught.value.message


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (store(y_pad_0=1), "a STORE has no padding"),
        (store(memory=Memory.ACC), "there is no such memory"),
        (load(Memory.INP, pop_prev=1), "where its module has no queue"),
        (store(push_next=1), "where its module has no queue"),
        (isa.row(Opcode.ALU, alu_op=AluOp.SHR, use_imm=1, imm=32, **ONCE), "more than 31"),
        (isa.row(Opcode.ALU, alu_op=AluOp.SHR, use_imm=1, imm=-32, **ONCE), "more than 31"),
        (isa.row(Opcode.ALU, alu_op=AluOp.SHR, **ONCE), "more than 31"),
        (load(Memory.WGT, dram_base=16, sram_base=1023, x_pad_1=1), "element 1024"),
        (load(Memory.UOP, sram_base=8191, y_size=2), "element 8192"),
    ],
)
def test_only_in_the_original_simulator(row: tuple[int, ...], why: str) -> None:
    forty = isa.row(Opcode.ALU, alu_op=AluOp.ADD, use_imm=1, imm=40, **ONCE)
    with pytest.raises(SimulationError, match=why):
        run([UOPS, forty, row, FINISH], "fsim")
    run([UOPS, forty, row, FINISH], "hw")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (load(Memory.ACC_8BIT), "there is no such memory"),
        (isa.row(Opcode.ALU, alu_op=AluOp.MUL, use_imm=1, imm=2, **ONCE), "there is no such operation"),
        (isa.row(Opcode.GEMM, reset=1, iter_in=3, iter_out=1, uop_end=1, src_factor_in=1024), "element 2048"),
        (load(Memory.INP, sram_base=2040, x_size=0, x_pad_0=9), "element 2048"),
    ],
)
def test_only_on_hardware(row: tuple[int, ...], why: str) -> None:
    with pytest.raises(SimulationError, match=why):
        run([UOPS, row, FINISH], "hw")
    run([UOPS, row, FINISH], "fsim")


def test_the_instruction_is_described() -> None:
    with pytest.raises(SimulationError, match=r"instruction 0 \(LOAD INP sram_base=2048 dram_base=1024 y_size=1 x_siz"):
        run([load(Memory.INP, sram_base=2048)])
    with pytest.raises(SimulationError, match=r"instruction 1 \(ALU MAX uop_end=9"):
        run([UOPS, isa.row(Opcode.ALU, alu_op=AluOp.MAX, **{**ONCE, "uop_end": 9})])


def test_an_empty_stream_has_no_finish() -> None:
    with pytest.raises(SimulationError, match="without a FINISH"):
        Simulator(DEFAULT).run(np.zeros(0, isa.DTYPE), np.zeros(SIZE, np.uint8))


def test_a_field_that_no_instruction_has_room_for() -> None:
    with pytest.raises(FleetError, match="sram_base is -1") as caught:
        run([load(Memory.INP, sram_base=-1), FINISH])
    assert caught.value.code == "bad-vta-field"


@pytest.mark.parametrize(
    "memory",
    [
        np.zeros(SIZE, np.int8),
        np.zeros((2, SIZE), np.uint8),
        np.zeros(2 * SIZE, np.uint8)[::2],
        np.zeros(SIZE + 1, np.uint8)[1:],
        np.frombuffer(bytes(SIZE), np.uint8),
    ],
    ids=["signed", "flat", "strided", "unaligned", "read-only"],
)
def test_memory_that_cannot_be_used(memory: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="memory is"):
        Simulator(DEFAULT).run(isa.table([FINISH]), memory)


def test_random_orders_find_what_nothing_orders() -> None:
    """A STORE that FINISH does not wait for is in time in program order, and late in some other."""
    rows = [UOPS, store(), FINISH]
    run(rows)
    late = 0
    for seed in range(20):
        try:
            run(rows, order="random", seed=seed)
        except SimulationError as error:
            assert "instruction 1 (STORE" in error.message and "after FINISH" in error.message
            late += 1
    assert 0 < late < 20


def test_random_orders_repeat() -> None:
    def outcome(seed: int) -> str:
        try:
            run([UOPS, store(), load(Memory.INP), FINISH], order="random", seed=seed)
        except SimulationError as error:
            return error.message
        return ""

    outcomes = [outcome(seed) for seed in range(12)]
    assert outcomes == [outcome(seed) for seed in range(12)]
    assert len(set(outcomes)) > 1


LONG = isa.row(Opcode.GEMM, uop_end=8, iter_out=16383, iter_in=16383)


def test_a_timeout_ends_even_one_endless_instruction() -> None:
    start = time.monotonic()
    with pytest.raises(SimulationError, match=r"instruction 1 \(GEMM") as caught:
        Simulator(DEFAULT).run(isa.table([UOPS, LONG, FINISH]), np.zeros(SIZE, np.uint8), timeout=0.2)
    assert caught.value.code == "vta-timeout"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("order", ["program", "random"])
@pytest.mark.parametrize("semantics", ["hw", "fsim"])
def test_pauses_change_nothing(semantics: Semantics, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that looks at the clock within instructions, after every row of their loops, computes the same."""
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, SIZE, np.uint8)
    words = isa.encode_uops(rng.integers(0, 16, (8, 3)), DEFAULT)
    memory[4096:4128] = words.view(np.uint8)
    loops = {"uop_end": 8, "iter_out": 5, "iter_in": 6, "dst_factor_out": 7, "dst_factor_in": 1, "src_factor_out": 3}
    rows = [
        UOPS,
        load(Memory.INP, x_size=64),
        load(Memory.WGT, x_size=32, dram_base=32, push_next=1),
        isa.row(Opcode.GEMM, wgt_factor_out=1, pop_prev=1, **loops),
        isa.row(Opcode.GEMM, reset=1, **{**loops, "iter_in": 2}),
        isa.row(Opcode.GEMM, src_factor_in=1, **loops),
        isa.row(Opcode.ALU, alu_op=AluOp.ADD, **loops),
        isa.row(Opcode.ALU, alu_op=AluOp.MIN, use_imm=1, imm=77, push_next=1, **loops),
        store(dram_base=2048, x_size=60, pop_prev=1, push_prev=1),
        isa.row(Opcode.FINISH, pop_next=1),
    ]
    whole, pieces = memory.copy(), memory.copy()
    Simulator(DEFAULT, semantics=semantics).run(isa.table(rows), whole)
    monkeypatch.setattr(simulator, "_BUDGET", 1)
    Simulator(DEFAULT, semantics=semantics, order=order, seed=5).run(isa.table(rows), pieces)
    assert not np.array_equal(whole, memory)
    np.testing.assert_array_equal(whole, pieces)


def test_scratchpads_keep_what_they_hold() -> None:
    memory = np.zeros(SIZE, np.uint8)
    accelerator = Simulator(DEFAULT, fill=0x11)
    accelerator.run(isa.table([store(), FINISH]), memory)
    assert set(memory[16384:16400]) == {0x11}
    accelerator.run(isa.table([UOPS, isa.row(Opcode.ALU, alu_op=AluOp.MIN, use_imm=1, imm=-5, **ONCE), FINISH]), memory)
    accelerator.run(isa.table([store(dram_base=1025), FINISH]), memory)
    assert set(memory[16400:16416].view(np.int8)) == {-5}
