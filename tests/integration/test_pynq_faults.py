"""What boards of PYNQ refuse, what goes wrong on them, and how it is told and cleaned up."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from pynq_boards import (
    BITSTREAM,
    CONFIG,
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

from bitstreams.manifest import KnownBitstream
from targets.base import FleetError
from targets.pynq import driver as driver_module
from targets.pynq import helper
from targets.pynq.driver import PynqDriver, open_board
from targets.pynq.helper_process import HELPER, HelperProcess
from targets.vta import boards
from targets.vta.driver import DriverError
from targets.vta.executable import Executable
from targets.vta.program import Program

__all__ = ["board"]


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
    bitstream = board.root / "bitstream.bit"
    bitstream.write_bytes(BITSTREAM)
    monkeypatch.setenv("FLEET_PYNQ_PYTHON", str(board.image_python()))
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
