"""The driver and its helper on boards with each kind of `pynq`: real processes, the model of the hardware below."""

import os
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynq_boards import (
    CONFIG,
    DIALECTS,
    PIXELS,
    PROGRAM,
    PYNQ,
    BoardAtHand,
    bit_file,
    board,
    check_runs,
    check_works,
    every_dialect,
)

from targets.vta import config, cycles
from targets.vta.counters import count
from targets.vta.driver import DriverError
from targets.vta.evaluate import evaluate
from targets.vta.executable import Executable
from targets.vta.layout import pack, unpack
from targets.vta.lower import lower
from targets.vta.qgraph import QConv, QGraph, QTensor

__all__ = ["board"]


@every_dialect
def test_a_program_runs(board: BoardAtHand, dialect: str) -> None:
    driver = board.open()
    assert driver.programmed and not driver.simulated
    executable = Executable(PROGRAM, driver)
    check_runs(executable)
    statistics = driver.statistics()
    assert statistics.counters.to_dict() == {
        "inp_load_nbytes": 16 * PIXELS,
        "wgt_load_nbytes": 256,
        "acc_load_nbytes": 0,
        "uop_load_nbytes": 4,
        "out_store_nbytes": 16 * PIXELS,
        "gemm_counter": PIXELS,
        "alu_counter": 3 * PIXELS,
    }
    assert 0 < statistics.seconds < 20
    conditions = driver.conditions()
    assert conditions["pynq_dialect"] == DIALECTS[dialect]
    assert conditions["fclk0_mhz"] == conditions["vta_mhz"] == "100"
    assert [line.split()[0] for line in board.done()[:2]] == ["clock", "program"]  # the design's PLL starts right
    assert list((board.root / "lib/firmware").iterdir()) == []
    assert statistics.cycles == 0, "the cycle model is for who asks for it"
    driver.close()
    assert board.record["open"] is False
    assert (board.root / "var/lib/fleet-vta/loaded.xclbin").exists() == (dialect == "pynq_4_0")


def test_what_the_cycle_model_predicts_stands_beside_what_was_counted(board: BoardAtHand) -> None:
    driver = board.open(predict=True)
    check_works(driver)
    statistics = driver.statistics()
    assert statistics.cycles == cycles.model(PROGRAM.table, CONFIG, PYNQ).cycles > PIXELS
    assert statistics.predicted_ms == pytest.approx(statistics.cycles / 100e3)


@pytest.mark.parametrize("hw_ver", config.HW_VERSIONS)
@pytest.mark.parametrize("name", config.PUBLISHED)
def test_a_compiled_network_runs(board: BoardAtHand, name: str, hw_ver: str) -> None:
    vta = config.load(f"{name}@{hw_ver}")
    board.set(config=vta.identity, pool_size=32 << 20)
    rng = np.random.default_rng(3)

    def conv(inputs: str, outputs: str, residual: str = "") -> QConv:
        weight = rng.integers(-127, 128, (24, 24, 3, 3), np.int8)
        bias, shift = rng.integers(-9999, 9999, 24, np.int32), np.full(24, 9, np.int32)
        return QConv(outputs, inputs, outputs, weight, bias, shift, padding=(1, 1, 1, 1), relu=True, residual=residual)

    tensors = {name: QTensor(name, (2, 24, 14, 14), -4) for name in "xyz"}
    graph = QGraph("two", tensors, (conv("x", "y"), conv("y", "z", residual="x")), ("x",), ("z",))
    x = rng.integers(-127, 128, tensors["x"].shape, np.int8)
    wanted = evaluate(graph, {"x": x})["z"]
    program = lower(graph, vta)
    driver = board.open(vta=vta)
    (found,) = Executable(program, driver).run([pack(x, vta)], 20)
    np.testing.assert_array_equal(unpack(found, tensors["z"].shape, vta), wanted)
    assert driver.statistics().counters == count(program.table, vta)


@every_dialect
def test_what_runs_is_not_programmed_again(board: BoardAtHand, dialect: str) -> None:
    for opening in range(3):
        driver = board.open()
        assert driver.programmed == (opening == 0)
        check_works(driver)
        driver.close()
    assert len(board.done("program")) == 1
    other = board.open(bit_file(content=1))
    assert other.programmed
    check_works(other)
    other.close()
    assert board.open().programmed, "the other one replaced it"


@every_dialect
def test_who_else_programs_is_noticed(board: BoardAtHand, dialect: str) -> None:
    board.open().close()
    code = f"import pynq; pynq.Bitstream({str(board.root / 'other.bit')!r}).download()"
    (board.root / "other.bit").write_bytes(bit_file(content=2))
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=board.root,
        env={**os.environ, **board.environment, "XILINX_XRT": "/usr"},
    )
    driver = board.open()
    assert driver.programmed
    check_works(driver)


@every_dialect
@pytest.mark.parametrize("where", ["manager", "boot", "clock", "state"])
def test_what_makes_the_fpga_doubtful_has_it_programmed(board: BoardAtHand, dialect: str, where: str) -> None:
    board.open().close()
    manager = board.root / "sys/class/fpga_manager/fpga0"
    if where == "manager":  # by hand, past pynq
        os.utime(manager / "firmware", ns=(1, 1))
    elif where == "boot":
        (board.root / "proc/sys/kernel/random/boot_id").write_text("79c3-2\n")
    elif where == "clock":
        (board.root / "fclk0").write_text("125.0")
    else:
        (manager / "state").write_text("write init error\n")
    assert board.open().programmed


@pytest.mark.parametrize("timing", [(1, 1, 1), (1, 2, 3), (3, 3, 9), (9, 20, 40)])
def test_done_of_the_run_before_is_not_taken_for_this_ones(board: BoardAtHand, timing: tuple[int, int, int]) -> None:
    board.set(timing=timing)
    executable = Executable(PROGRAM, board.open())
    check_runs(executable, range(6))
    starts = [line for line in board.done("control 0") if line.endswith("0x1")]
    assert len(starts) == 6 + 5  # each but the first after one instruction that clears it
    assert len(board.done("control 2 0x0")) == 6  # nothing restarts by itself afterwards


@every_dialect
def test_caches_are_maintained_where_the_port_goes_past_them(board: BoardAtHand, dialect: str) -> None:
    board.set(coherent=False)
    driver = board.open(board=msgspec.structs.replace(PYNQ, coherent=False))
    check_works(driver)
    address = driver.allocate(64 << 10)
    data = np.random.default_rng(0).bytes(64 << 10)
    driver.write(address, data)
    driver.write(address + 4096, b"\x11" * 4096)
    assert driver.read(address, 64 << 10) == data[:4096] + b"\x11" * 4096 + data[8192:]


@every_dialect
@pytest.mark.parametrize("coherent", [True, False])
def test_memory_is_zero_apart_and_given_back(board: BoardAtHand, dialect: str, coherent: bool) -> None:
    board.set(coherent=coherent)
    driver = board.open(board=msgspec.structs.replace(PYNQ, coherent=coherent))
    sizes = (1, 4096, 10_000, 1 << 20)
    addresses = [driver.allocate(size) for size in sizes]
    for number, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
        assert address % 4096 == 0
        assert driver.read(address, size) == bytes(size)
        driver.write(address, bytes([number + 1]) * size)
    for number, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
        assert driver.read(address, size) == bytes([number + 1]) * size
    for address in addresses:
        driver.free(address)
    with pytest.raises(DriverError, match="not allocated"):
        driver.read(addresses[0], 1)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, 300_000)),
        st.tuples(st.just("free"), st.integers(0, 9)),
        st.tuples(st.just("write"), st.integers(0, 9), st.floats(0, 1), st.binary(min_size=1, max_size=9000)),
        st.tuples(st.just("read"), st.integers(0, 9), st.floats(0, 1), st.integers(1, 9000)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("coherent", [True, False])
def test_memory_holds_what_was_written_whatever_came_between(board: BoardAtHand, coherent: bool) -> None:
    board.set(coherent=coherent)
    driver = board.open(board=msgspec.structs.replace(PYNQ, coherent=coherent))

    @settings(max_examples=40, deadline=None)
    @given(OPERATIONS)
    def check(operations: list[tuple[Any, ...]]) -> None:
        held: dict[int, bytearray] = {}
        for kind, *arguments in operations:
            if kind == "allocate":
                held[driver.allocate(arguments[0])] = bytearray(arguments[0])
                continue
            if not held:
                continue
            address = sorted(held)[arguments[0] % len(held)]
            if kind == "free":
                driver.free(address)
                del held[address]
                continue
            contents = held[address]
            offset = int(arguments[1] * (len(contents) - 1))
            if kind == "write":
                data = arguments[2][: len(contents) - offset]
                driver.write(address + offset, data)
                contents[offset : offset + len(data)] = data
            else:
                size = min(arguments[2], len(contents) - offset)
                assert driver.read(address + offset, size) == contents[offset : offset + size]
        for address, contents in held.items():
            assert driver.read(address, len(contents)) == contents
            driver.free(address)

    check()
