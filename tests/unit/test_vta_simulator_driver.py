"""The simulated accelerator behind the drivers' interface: its memory, its runs, its figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from targets.vta import isa
from targets.vta.config import DEFAULT, PAGE
from targets.vta.driver import DriverError, VtaDriver
from targets.vta.isa import AluOp, Memory, Opcode
from targets.vta.sim_driver import SimDriver
from targets.vta.simulator import SimulationError


def stream(uop: int, acc: int, out: int) -> bytes:
    """ACC from memory, plus 3, to memory."""
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=uop // 4, y_size=1, x_size=1),
        isa.row(Opcode.LOAD, memory=Memory.ACC, dram_base=acc // 64, y_size=1, x_size=1),
        isa.row(Opcode.ALU, uop_end=1, iter_out=1, iter_in=1, alu_op=AluOp.ADD, use_imm=1, imm=3, push_next=1),
        isa.row(Opcode.STORE, memory=Memory.OUT, dram_base=out // 16, y_size=1, x_size=1, pop_prev=1, push_prev=1),
        isa.row(Opcode.FINISH, pop_next=1),
    ]
    return isa.encode(isa.table(rows), DEFAULT)


def test_a_program_from_first_to_last() -> None:
    driver: VtaDriver = SimDriver(DEFAULT, board="pynq")
    assert driver.simulated
    uop, acc, out, insn = (driver.allocate(size) for size in (4, 64, 16, 80))
    driver.write(acc, np.arange(16, dtype=np.int32).tobytes())
    program = stream(uop, acc, out)
    driver.write(insn, program)
    for _ in range(2):
        driver.run(insn, len(program) // 16, timeout=10)
    assert np.frombuffer(driver.read(out, 16), np.int8).tolist() == list(range(3, 19))
    statistics = driver.statistics()
    assert statistics.counters.to_dict() == {
        "inp_load_nbytes": 0,
        "wgt_load_nbytes": 0,
        "acc_load_nbytes": 64,
        "uop_load_nbytes": 4,
        "out_store_nbytes": 16,
        "gemm_counter": 0,
        "alu_counter": 1,
    }
    assert statistics.seconds > 0
    assert statistics.cycles > 5
    assert statistics.predicted_ms == pytest.approx(statistics.cycles / 100e3, rel=1e-3)  # 100 MHz
    driver.close()
    with pytest.raises(DriverError):
        driver.read(out, 16)


def test_without_a_board_nothing_is_predicted() -> None:
    driver = SimDriver(DEFAULT)
    uop, acc, out, insn = (driver.allocate(PAGE) for _ in range(4))
    driver.write(insn, stream(uop, acc, out))
    driver.run(insn, 5, timeout=10)
    assert (driver.statistics().cycles, driver.statistics().predicted_ms) == (0, 0.0)


def test_a_changed_stream_is_what_runs() -> None:
    driver = SimDriver(DEFAULT)
    uop, acc, out, insn = (driver.allocate(PAGE) for _ in range(4))
    driver.write(insn, stream(uop, acc, out))
    driver.run(insn, 5, timeout=10)
    driver.write(insn, stream(uop, acc, out + 64))
    driver.run(insn, 5, timeout=10)
    assert driver.read(out, 80) == bytes([3] * 16 + [0] * 48 + [3] * 16)


@pytest.mark.parametrize("strayed", ["uop", "acc", "out"])
def test_nothing_may_touch_what_is_not_allocated(strayed: str) -> None:
    """The simulated memory is there, but the allocation that it was in has been given back."""
    driver = SimDriver(DEFAULT)
    places = {name: driver.allocate(PAGE) for name in ("uop", "acc", "out")}
    insn = driver.allocate(PAGE)
    driver.write(insn, stream(**places))
    driver.free(places[strayed])
    with pytest.raises(SimulationError, match=rf"\(.* {strayed.upper()} .*not all allocated"):
        driver.run(insn, 5, timeout=10)


def test_an_access_across_two_allocations() -> None:
    driver = SimDriver(DEFAULT)
    first, second, insn = driver.allocate(PAGE), driver.allocate(PAGE), driver.allocate(PAGE)
    assert second == first + PAGE
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.INP, dram_base=(second - 16) // 16, y_size=1, x_size=2),
        isa.row(Opcode.FINISH),
    ]
    driver.write(insn, isa.encode(isa.table(rows), DEFAULT))
    with pytest.raises(SimulationError, match=r"instruction 0 \(LOAD INP"):
        driver.run(insn, 2, timeout=10)


def test_errors_have_names() -> None:
    driver = SimDriver(DEFAULT, limit=4 * PAGE)
    address = driver.allocate(100)
    bad: list[tuple[str, Any]] = [
        ("no-memory", lambda: driver.allocate(0)),
        ("no-memory", lambda: driver.allocate(4 * PAGE)),
        ("vta-address", lambda: driver.free(address + 16)),
        ("vta-address", lambda: driver.read(address, 101)),
        ("vta-address", lambda: driver.read(address + 90, 11)),
        ("vta-address", lambda: driver.read(0, 1)),
        ("vta-address", lambda: driver.read(address, -1)),
        ("vta-address", lambda: driver.write(address - 1, b"x")),
        ("vta-address", lambda: driver.run(address, 7, timeout=1)),
    ]
    for code, call in bad:
        with pytest.raises(DriverError) as caught:
            call()
        assert caught.value.code == code


def test_a_timeout() -> None:
    driver = SimDriver(DEFAULT)
    data, insn = driver.allocate(PAGE), driver.allocate(PAGE)
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=data // 4, y_size=1, x_size=8),
        isa.row(Opcode.GEMM, uop_end=8, iter_out=16383, iter_in=16383),
        isa.row(Opcode.FINISH),
    ]
    driver.write(insn, isa.encode(isa.table(rows), DEFAULT))
    with pytest.raises(DriverError) as caught:
        driver.run(insn, 3, timeout=0.1)
    assert caught.value.code == "vta-timeout"


class Allocations(RuleBasedStateMachine):
    """Allocations never overlap, are zero at first, and hold what was written however many come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = SimDriver(DEFAULT, limit=64 * PAGE)
        self.held: dict[int, bytes] = {}

    @rule(size=st.integers(1, 20 * PAGE))
    def allocate(self, size: int) -> None:
        try:
            address = self.driver.allocate(size)
        except DriverError as error:
            assert error.code == "no-memory"
            assert self.held, "an empty board has room for a third of it"
            return
        assert address % PAGE == 0 and address >= PAGE
        assert self.driver.read(address, size) == bytes(size)
        self.held[address] = bytes(size)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.held)))
        content = np.random.default_rng(data.draw(st.integers(0, 99))).bytes(len(self.held[address]))
        self.driver.write(address, content)
        self.held[address] = content

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.held)))
        self.driver.free(address)
        size = len(self.held.pop(address))
        with pytest.raises(DriverError):
            self.driver.read(address, size)

    @invariant()
    def all_hold_what_was_written(self) -> None:
        for address, content in self.held.items():
            assert self.driver.read(address, len(content)) == content


TestAllocations = Allocations.TestCase
TestAllocations.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
