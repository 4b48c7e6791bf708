"""The driver and its helper against boards with each kind of `pynq`: real processes, the model of the hardware below.

`pynq_images` has the stand-ins of the packages; each test has a board of its own, in a folder.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstreams.manifest import KnownBitstream
from targets.base import FleetError
from targets.pynq import driver as driver_module
from targets.pynq import helper
from targets.pynq.driver import PynqDriver, open_board
from targets.pynq.helper_process import HELPER, HelperProcess
from targets.vta import boards, config, isa
from targets.vta.counters import count
from targets.vta.driver import DriverError, VtaDriver
from targets.vta.evaluate import evaluate
from targets.vta.executable import Executable
from targets.vta.isa import AluOp, Memory, Opcode
from targets.vta.layout import pack, unpack
from targets.vta.lower import lower
from targets.vta.program import Buffer, Port, Program, Segment
from targets.vta.qgraph import QConv, QGraph, QTensor

IMAGES = Path(__file__).parent / "pynq_images"
DIALECTS = {"pynq_2_6": "xlnk", "pynq_3_0": "xrt", "pynq_4_0": "xrt4"}
PYNQ = boards.find("pynq")
CONFIG = config.DEFAULT
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
PIXELS = 8


def bit_file(part: str = "7z020clg484", idcode: int = 0x23727093, content: int = 0) -> bytes:
    payload = b"\xff" * 32 + bytes.fromhex("aa995566 20000000 30018001") + struct.pack(">2I", idcode, content)
    fields = b""
    for key, text in (("a", "vta_wrapper"), ("b", part), ("c", "2020/06/30"), ("d", "18:11:16")):
        fields += key.encode() + struct.pack(">H", len(text) + 1) + text.encode() + b"\0"
    return bytes.fromhex("00090ff00ff00ff00ff0000001") + fields + b"e" + struct.pack(">I", len(payload)) + payload


BITSTREAM = bit_file()


@dataclass
class BoardAtHand:
    """A board below a folder, and the Python of its image."""

    root: Path
    dialect: str
    environment: dict[str, str] = field(default_factory=dict)
    opened: list[PynqDriver] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in ("sys/class/fpga_manager/fpga0", "lib/firmware", "dev", "usr/lib", "proc/sys/kernel/random"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "proc/device-tree/chosen").mkdir(parents=True)
        for name, text in {
            "sys/class/fpga_manager/fpga0/state": "unknown\n",
            "sys/class/fpga_manager/fpga0/flags": "100\n",
            "sys/class/fpga_manager/fpga0/firmware": "",
            "dev/mem": "",
            "dev/kmsg": "6,1,2,-;random: crng init done\n",
            "proc/device-tree/chosen/pynq_board": "Pynq-Z1\0",
            "proc/sys/kernel/random/boot_id": "79c3-1\n",
            "fclk0": "50.0",
        }.items():
            (self.root / name).write_text(text)
        if self.dialect != "pynq_2_6":
            (self.root / "usr/lib/libxrt_core.so.2").touch()
        self.site = self.root / "site"
        (self.site / "pynq").mkdir(parents=True)
        shutil.copy(IMAGES / f"{self.dialect}.py", self.site / "pynq/__init__.py")
        shutil.copy(IMAGES / "board_machine.py", self.site / "board_machine.py")
        self.facts: dict[str, Any] = {
            "config": CONFIG.identity,
            "idcode": "23727093",
            "registers": PYNQ.registers,
            "pool": 0x10000000,
            "pool_size": 8 << 20,
        }
        self.environment = {"BOARD_ROOT": str(self.root), "PYTHONPATH": str(self.site)}
        self.set()

    def set(self, **facts: Any) -> None:
        """Change what the board is like; takes effect with the next helper."""
        self.facts.update(facts)
        (self.root / "board.json").write_text(json.dumps(self.facts))

    def open(
        self, bitstream: bytes = BITSTREAM, board: boards.Board = PYNQ, vta: config.VtaConfig = CONFIG
    ) -> PynqDriver:
        digest = hashlib.sha256(bitstream).hexdigest()
        start = [sys.executable, str(HELPER), "--root", str(self.root)]
        driver = PynqDriver(vta, board, bitstream, sha256=digest, start=start, environment=self.environment)
        self.opened.append(driver)
        return driver

    def done(self, what: str = "") -> list[str]:
        """What was done to the board so far, of one kind."""
        path = self.root / "done.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(what)]

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "run/fleet-vta/state.json").read_text())
        return found

    def helper_pid(self) -> int:
        return int((self.root / "run/fleet-vta/lock").read_text())


@pytest.fixture
def board(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BoardAtHand]:
    dialect = (
        request.node.callspec.params.get("dialect", "pynq_2_6") if hasattr(request.node, "callspec") else "pynq_2_6"
    )
    made = BoardAtHand(tmp_path / "board", dialect)
    yield made
    for driver in made.opened:
        driver.close()


def program(weights: npt.NDArray[np.int8]) -> Program:
    """Eight pixels of 16 channels times a matrix, shifted right by 4, clipped to ±127."""
    uop, wgt, inp, out = 4096, 8192, 12288, 16384
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=uop // 4, y_size=1, x_size=1, x_stride=1),
        isa.row(Opcode.LOAD, memory=Memory.INP, dram_base=inp // 16, y_size=1, x_size=PIXELS, x_stride=PIXELS),
        isa.row(Opcode.LOAD, memory=Memory.WGT, dram_base=wgt // 256, y_size=1, x_size=1, x_stride=1, push_next=1),
        isa.row(Opcode.GEMM, reset=1, uop_end=1, iter_out=PIXELS, iter_in=1, dst_factor_out=1),
        isa.row(Opcode.GEMM, uop_end=1, iter_out=PIXELS, iter_in=1, dst_factor_out=1, src_factor_out=1, pop_prev=1),
    ]
    for operation, imm in ((AluOp.SHR, 4), (AluOp.MIN, 127), (AluOp.MAX, -127)):
        loop = {"uop_end": 1, "iter_out": PIXELS, "iter_in": 1, "dst_factor_out": 1, "src_factor_out": 1}
        rows.append(
            isa.row(Opcode.ALU, alu_op=operation, use_imm=1, imm=imm, push_next=int(operation == AluOp.MAX), **loop)
        )
    rows += [
        isa.row(
            *(Opcode.STORE,),
            memory=Memory.OUT,
            dram_base=out // 16,
            y_size=1,
            x_size=PIXELS,
            x_stride=PIXELS,
            pop_prev=1,
            push_prev=1,
        ),
        isa.row(Opcode.LOAD, memory=Memory.UOP, pop_next=1),
        isa.row(Opcode.FINISH),
    ]
    return Program(
        model="matrix",
        config=CONFIG,
        table=isa.table(rows),
        segments=(Segment(uop, 4 * 4096),),
        buffers=(
            Buffer("uop", "uop", Memory.UOP, uop, 4),
            Buffer("wgt", "weight", Memory.WGT, wgt, 256),
            Buffer("inp", "input", Memory.INP, inp, 16 * PIXELS),
            Buffer("out", "output", Memory.OUT, out, 16 * PIXELS),
        ),
        inputs=(Port("x", "inp", (1, 16, 1, PIXELS), 0),),
        outputs=(Port("y", "out", (1, 16, 1, PIXELS), 0),),
        layers=(),
        constants={"uop": bytes(4), "wgt": weights.tobytes()},
    )


WEIGHTS = np.random.default_rng(5).integers(-127, 128, (16, 16), np.int8)
PROGRAM = program(WEIGHTS)


def expected(x: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    return np.clip(x.astype(np.int64) @ WEIGHTS.T.astype(np.int64) >> 4, -127, 127).astype(np.int8)


def check_runs(executable: Executable, seeds: Sequence[int] = (1, 2, 3), timeout: float = 20) -> None:
    for seed in seeds:
        x = np.random.default_rng(seed).integers(-127, 128, (PIXELS, 16), np.int8)
        (found,) = executable.run([x], timeout)
        np.testing.assert_array_equal(found.reshape(PIXELS, 16), expected(x))


def check_works(driver: VtaDriver) -> None:
    executable = Executable(PROGRAM, driver)
    check_runs(executable)
    executable.close()


# --- As it should be ----------------------------------------------------------------------------


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
    driver.close()
    assert board.record["open"] is False
    assert (board.root / "var/lib/fleet-vta/loaded.xclbin").exists() == (dialect == "pynq_4_0")


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


# --- What is refused ----------------------------------------------------------------------------


def test_a_bitstream_for_another_part_is_refused_before_anything_starts(board: BoardAtHand) -> None:
    for wrong in (bit_file("xczu7ev-ffvc1156"), bit_file(idcode=0x03722093)):
        with pytest.raises(FleetError) as caught:
            board.open(wrong)
        assert caught.value.code == "wrong-part"
    assert not (board.root / "run").exists()


def test_a_bitstream_of_another_configuration_is_refused_before_anything_starts(tmp_path: Path) -> None:
    digest = hashlib.sha256(BITSTREAM).hexdigest()
    known = KnownBitstream("pynq", "7z020", CONFIG.name, "0.0.1", "https://example.org/a.bit", sha256=digest)
    nothing = [str(tmp_path / "python")]
    with pytest.raises(FleetError, match=f"{CONFIG.name}@0.0.1, and the program was built for .*@0.0.2") as caught:
        PynqDriver(CONFIG, PYNQ, BITSTREAM, manifest=[known], start=nothing)
    assert caught.value.code == "wrong-configuration"
    with pytest.raises(FleetError) as caught:
        PynqDriver(CONFIG, PYNQ, BITSTREAM, manifest=[], start=nothing)
    assert caught.value.code == "unknown-bitstream"
    with pytest.raises(FleetError) as caught:
        PynqDriver(CONFIG, PYNQ, BITSTREAM, sha256="0" * 64, start=nothing)
    assert caught.value.code == "wrong-digest"


def test_the_helper_checks_the_bitstream_itself(board: BoardAtHand) -> None:
    wrong = bit_file("xczu7ev-ffvc1156")
    process = HelperProcess([sys.executable, str(HELPER), "--root", str(board.root)], board.environment)
    digest = hashlib.sha256(wrong).hexdigest()
    fields = {"protocol": helper.PROTOCOL, "board": "pynq", "sha256": digest, "coherent": True}
    with pytest.raises(DriverError, match="first request"):
        process.ask("read", {"address": 0, "size": 1}, timeout=20)
    assert process.ask("open", fields, timeout=20)[0]["running"] is False
    for request, asked, payload, code in (
        ("program", {}, BITSTREAM, "wrong-digest"),
        ("program", {}, wrong, "wrong-part"),
        ("allocate", {"size": 4096}, b"", "not-programmed"),
        ("run", {"address": 4096, "count": 1, "timeout_ms": 1}, b"", "not-programmed"),
    ):
        with pytest.raises(DriverError) as caught:
            process.ask(request, asked, payload, timeout=20)
        assert caught.value.code == code
    process.close(20)
    assert board.done("program") == []


def test_physical_memory_is_out_of_reach(board: BoardAtHand) -> None:
    driver = board.open()
    address = driver.allocate(4096)
    process = driver._helper
    for request, asked, payload in (
        ("read", {"address": 0, "size": 16}, b""),
        ("read", {"address": address + 4090, "size": 16}, b""),
        ("read", {"address": address - 1, "size": 16}, b""),
        ("write", {"address": address + 4090}, b"0123456789"),
        ("free", {"address": address + 4096}, b""),
        ("run", {"address": address, "count": 257, "timeout_ms": 10}, b""),
    ):
        with pytest.raises(DriverError) as caught:
            process.ask(request, asked, payload, timeout=20)
        assert caught.value.code == "vta-address"
    assert driver.read(address, 4096) == bytes(4096)
    for size in (1 << 31, -1):
        with pytest.raises(DriverError, match="'allocate' has no valid size"):
            process.ask("allocate", {"size": size}, timeout=20)


def test_the_accelerator_is_one_process_own(board: BoardAtHand) -> None:
    first = board.open()
    with pytest.raises(DriverError, match=f"in use by process {board.helper_pid()}") as caught:
        board.open()
    assert caught.value.code == "busy"
    check_works(first)
    first.close()
    check_works(board.open())


@every_dialect
def test_a_system_that_lacks_something_is_told_what(board: BoardAtHand, dialect: str) -> None:
    def refused(code: str) -> str:
        with pytest.raises(DriverError) as caught:
            board.open()
        assert caught.value.code == code
        return caught.value.message

    tree = board.root / "proc/device-tree/chosen/pynq_board"
    tree.write_text("ZCU104\0")
    assert "this is a ZCU104, not a pynq" in refused("wrong-board")
    tree.write_text("Pynq-Z2\0")
    (board.root / "dev/mem").rename(board.root / "dev/men")
    refused("not-root")
    (board.root / "dev/men").rename(board.root / "dev/mem")
    if dialect != "pynq_2_6":
        (board.root / "usr/lib/libxrt_core.so.2").unlink()
        assert "No Devices Found" in refused("no-pynq")
        (board.root / "usr/lib/libxrt_core.so.2").touch()
    board.environment["PYTHONPATH"] = str(board.root)
    assert "No module named 'pynq'" in refused("no-pynq")
    board.environment["PYTHONPATH"] = str(board.site)
    check_works(board.open())


def test_a_bundle_with_its_bitstream_opens_the_board(board: BoardAtHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command and in the environment that a board's agent has."""
    python = board.root / "image-python"
    settings = " ".join(f"{name}='{value}'" for name, value in board.environment.items())
    python.write_text(f"#!/bin/sh\n{settings} exec '{sys.executable}' \"$@\" --root '{board.root}'\n")
    python.chmod(0o755)
    bitstream = board.root / "bitstream.bit"
    bitstream.write_bytes(BITSTREAM)
    monkeypatch.setenv("FLEET_PYNQ_PYTHON", str(python))
    monkeypatch.setenv("PYTHONPATH", "/of/the/agent")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    driver = open_board(CONFIG, PYNQ, bitstream)
    board.opened.append(driver)
    check_works(driver)


def test_a_bundle_without_bitstream_says_how_to_get_one() -> None:
    with pytest.raises(DriverError) as caught:
        open_board(CONFIG, PYNQ, None)
    assert caught.value.code == "no-bitstream" and "vta bitstream fetch" in caught.value.hint


def test_only_boards_of_pynq_have_one() -> None:
    with pytest.raises(DriverError, match="no PYNQ for a de10nano"):
        PynqDriver(CONFIG, boards.find("de10nano"), BITSTREAM)


# --- What goes wrong ----------------------------------------------------------------------------


@every_dialect
@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_programming_that_fails(board: BoardAtHand, dialect: str, fault: str) -> None:
    board.set(program=fault)
    with pytest.raises(DriverError) as caught:
        board.open()
    assert caught.value.code == "program-failed"
    if fault == "refused":
        assert "Invalid argument" in caught.value.message and "its state is write error" in caught.value.message
        assert "fpga0: Error while writing image data to FPGA" in caught.value.message
    else:
        assert "its state is write complete error" in caught.value.message
    assert list((board.site / "pynq").rglob("pl_server/*")) == [], "pynq would believe that it had programmed"
    assert list((board.root / "lib/firmware").iterdir()) == []
    board.set(program="")
    driver = board.open()
    assert driver.programmed
    check_works(driver)


def test_programming_that_fails_in_what_describes_the_memory(tmp_path: Path) -> None:
    board = BoardAtHand(tmp_path / "board", "pynq_4_0")
    board.set(xclbin="fails")
    with pytest.raises(DriverError, match="load_axlf failed") as caught:
        board.open()
    assert caught.value.code == "program-failed"


def test_programming_that_hangs(board: BoardAtHand, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(board.root / "never")
    board.set(program="hangs")
    monkeypatch.setattr(driver_module, "_PROGRAMMING", 2.0)
    with pytest.raises(DriverError, match="did not answer 'program' within 2 s") as caught:
        board.open()
    assert caught.value.code == "helper-ended"
    assert not psutil.pid_exists(board.helper_pid())
    board.set(program="")
    monkeypatch.undo()
    check_works(board.open())


@every_dialect
def test_no_memory_is_left(board: BoardAtHand, dialect: str) -> None:
    driver = board.open()
    first = driver.allocate(5 << 20)
    with pytest.raises(DriverError, match=r"4194304 bytes cannot be allocated: .*CmaFree: \d+ kB") as caught:
        driver.allocate(4 << 20)
    assert caught.value.code == "no-memory" and "cma=" in caught.value.hint
    driver.write(first, b"still here")
    assert driver.read(first, 10) == b"still here"
    check_works(driver)


def test_a_program_that_does_not_fit_leaves_nothing_behind(board: BoardAtHand) -> None:
    board.set(pool_size=4 * 4096)  # the segment and nothing more
    driver = board.open()
    with pytest.raises(DriverError, match="cannot be allocated"):
        Executable(PROGRAM, driver)
    assert driver.allocate(4 * 4096)


def test_a_clock_that_cannot_be_set(board: BoardAtHand) -> None:
    board.set(clock_stuck=True)
    with pytest.raises(DriverError, match=r"clock is 50\.000 MHz, and 100 are needed") as caught:
        board.open()
    assert caught.value.code == "wrong-clock"


@every_dialect
def test_a_program_that_hangs(board: BoardAtHand, dialect: str) -> None:
    board.set(hang_once=True)
    driver = board.open()
    executable = Executable(PROGRAM, driver)
    x = np.ones((PIXELS, 16), np.int8)
    with pytest.raises(DriverError, match=r"not finished after 0\.3.* s .*compute 0x81.*done: 0") as caught:
        executable.run([x], 0.3)
    assert caught.value.code == "vta-timeout"
    assert len(board.done("program")) == 2, "what hangs is ended before its memory is"
    if dialect == "pynq_4_0":
        # Its memory cannot be described again while there is some: this driver is done for, the next one is not.
        assert "programming it again failed as well" in caught.value.message
        with pytest.raises(DriverError) as refused:
            executable.run([x], 1)
        assert refused.value.code == "not-programmed"
    else:
        check_runs(executable)
    driver.close()
    check_works(board.open())


def test_a_program_at_fault_hangs_like_on_hardware(board: BoardAtHand) -> None:
    driver = board.open()
    table = PROGRAM.table.copy()
    table["push_next"][2] = 0  # nothing tells compute that the weights are there
    broken = Program(**{name: getattr(PROGRAM, name) for name in Program.__dataclass_fields__} | {"table": table})
    executable = Executable(broken, driver)
    with pytest.raises(DriverError, match="not finished"):
        executable.run([np.ones((PIXELS, 16), np.int8)], 0.2)
    executable.close()
    check_works(driver)


@every_dialect
def test_a_helper_that_is_killed(board: BoardAtHand, dialect: str) -> None:
    driver = board.open()
    executable = Executable(PROGRAM, driver)
    os.kill(board.helper_pid(), signal.SIGKILL)
    with pytest.raises(DriverError, match=r"helper on the board has ended \(signal 9\)") as caught:
        check_runs(executable)
    assert caught.value.code == "helper-ended"
    with pytest.raises(DriverError, match="has ended"):
        driver.allocate(4096)
    executable.close()
    driver.close()
    board.environment["PYTHONPATH"] = str(board.root)
    with pytest.raises(DriverError, match="pynq cannot be imported"):
        board.open()
    board.environment["PYTHONPATH"] = str(board.site)
    after = board.open()
    assert after.programmed, "what it left running may write into memory that is not its own"
    assert len(board.done("xlnk_reset")) == (dialect == "pynq_2_6")
    check_works(after)


def test_a_helper_that_is_killed_at_work(board: BoardAtHand) -> None:
    board.set(hang=True)
    executable = Executable(PROGRAM, board.open())
    pid = board.helper_pid()
    started = len(board.done("control"))

    def kill() -> None:
        while len(board.done("control")) == started:
            threading.Event().wait(0.01)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DriverError, match="during 'run'"):
        executable.run([np.ones((PIXELS, 16), np.int8)], 60)
    killer.join()


def test_a_helper_ends_with_who_asks(board: BoardAtHand) -> None:
    """However the agent ends, the helper's input does; memory is given back, and nothing is left to doubt."""
    start = [sys.executable, str(HELPER), "--root", str(board.root)]
    environment = {**os.environ, **board.environment}
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin and process.stdout
        digest = hashlib.sha256(BITSTREAM).hexdigest()
        fields = {"protocol": helper.PROTOCOL, "board": "pynq", "sha256": digest, "coherent": True}
        process.stdin.write(helper.encode("open", fields, b"", helper.REQUESTS))
        process.stdin.write(helper.encode("program", {}, BITSTREAM, helper.REQUESTS) + BITSTREAM)
        process.stdin.flush()
        assert helper.decode(process.stdout.read, helper.REPLIES)[0] == "open"
        assert helper.decode(process.stdout.read, helper.REPLIES)[0] == "program"
        process.stdin.close()
        assert process.wait(20) == 0
    assert board.record["open"] is False
    assert not board.open().programmed


def test_a_request_that_is_none_ends_the_helper(board: BoardAtHand) -> None:
    start = [sys.executable, str(HELPER), "--root", str(board.root)]
    answer = subprocess.run(start, input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, timeout=20, check=True)
    name, fields, _ = helper.decode(io.BytesIO(answer.stdout).read, helper.REPLIES)
    assert (name, fields["code"]) == ("error", "bad-request")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('hello, board')", "cannot be understood"),
        (
            "import sys; sys.stderr.write('segmentation fault\\n'); sys.exit(3)",
            r"\(exit status 3\).*segmentation fault",
        ),
        ("import sys; sys.stdin.read()", "did not answer 'close' within 0.5 s"),
        (
            "import sys; sys.stdout.buffer.write(b'VTA\\x01' + bytes([2, 0, 0, 0, 255, 255, 255, 3]) + b'{}')",
            "understood",
        ),
    ],
)
def test_a_helper_that_is_none(code: str, why: str) -> None:
    process = HelperProcess([sys.executable, "-c", code], {})
    with pytest.raises(DriverError, match=why) as caught:
        process.ask("close", {}, timeout=0.5 if "0.5" in why else 20)
    assert caught.value.code == "helper-ended"
    process.close(5)
    assert not psutil.pid_exists(process.pid)


def test_a_helper_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="cannot be started: No such file") as caught:
        HelperProcess([str(tmp_path / "python")], {})
    assert caught.value.code == "no-helper"


@pytest.mark.parametrize("dialect", ["pynq_3_0", "pynq_4_0"])
def test_a_bitstream_that_pynq_has_forgotten(board: BoardAtHand, dialect: str) -> None:
    board.open().close()
    board.set(forgets=True)
    driver = board.open()
    assert not driver.programmed
    check_works(driver)
    assert driver.programmed and len(board.done("program")) == 2
