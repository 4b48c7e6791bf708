"""What lies under `pynq` on a board: kernel, FPGA and memory, below the folder that BOARD_ROOT names.

``board.json`` says what it is and what goes wrong; tests write it. The FPGA manager refuses what the real one refuses,
registers and memory are `targets.pynq.board_model`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(os.environ["BOARD_ROOT"])
MANAGER = ROOT / "sys/class/fpga_manager/fpga0"
FIRMWARE = ROOT / "lib/firmware"
BOARD: dict[str, Any] = json.loads((ROOT / "board.json").read_text())


def log(*words: object) -> None:
    """One line of what was done, for tests to read."""
    with (ROOT / "done.log").open("a") as file:
        print(*words, file=file)


def fpga_manager(name: str) -> None:
    """What the kernel does when a name is written to the manager's `firmware`."""
    log("program", name)
    data = (FIRMWARE / name).read_bytes()
    fault = BOARD.get("program", "")
    wrong = data.find(bytes.fromhex("665599aa")) < 0  # words are byte-swapped in a .bin
    found = data.find(bytes.fromhex("01800130"))
    wrong |= data[found + 4 : found + 8][::-1].hex() != BOARD["idcode"]
    (ROOT / "pl.json").unlink(missing_ok=True)
    if fault == "silent":
        (MANAGER / "state").write_text("write complete error\n")
        return
    if wrong or fault == "refused":
        (MANAGER / "state").write_text("write error\n")
        with (ROOT / "dev/kmsg").open("a") as file:
            file.write("3,812,91,-;fpga_manager fpga0: Error while writing image data to FPGA\n")
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if fault == "hangs":
        while True:
            os.read(os.open(ROOT / "never", os.O_RDONLY), 1)  # a FIFO without a writer
    (ROOT / "pl.json").write_text(json.dumps({"payload": hashlib.sha256(data).hexdigest()}))
    (MANAGER / "state").write_text("operating\n")
    machine.power_up()


class Machine:
    """Memory, and the accelerator that the fabric holds."""

    def __init__(self) -> None:
        from targets.pynq.board_model import PhysicalMemory

        self.memory = PhysicalMemory(BOARD["pool"], BOARD["pool_size"], BOARD.get("coherent", True))
        self._board: Any = None

    def power_up(self) -> None:
        self._board = None

    @property
    def accelerator(self) -> Any:
        from targets.pynq.board_model import BoardModel, Timing
        from targets.vta import config

        if not (ROOT / "pl.json").exists():
            log("the bus hangs: nothing is programmed")
            os._exit(70)
        if self._board is None:
            hangs = BOARD.get("hang_once") and not (ROOT / "hung").exists()
            if hangs:
                (ROOT / "hung").touch()
            timing = Timing(*BOARD.get("timing", (2, 3, 6)))
            away = None
            if BOARD.get("fpga"):
                from away import Away

                away = Away(BOARD["fpga"], self.memory)
            self._board = BoardModel(
                config.load(BOARD["config"]), self.memory, timing, bool(hangs or BOARD.get("hang")), away
            )
        return self._board


class Window:
    """`MMIO` as all versions have it: 4 bytes, aligned, plain ints."""

    def __init__(self, base_addr: int, length: int = 4) -> None:
        bases = BOARD["registers"]
        if base_addr not in bases or length > 0x1000:
            log("the bus hangs: nothing at", hex(base_addr))
            os._exit(70)
        self._index = bases.index(base_addr)

    def read(self, offset: int = 0, length: int = 4) -> int:
        if length != 4 or offset < 0:
            raise ValueError("MMIO currently only supports 4-byte reads.")
        if offset % 4:
            raise MemoryError("Unaligned read: offset must be multiple of 4.")
        return int(machine.accelerator.read(self._index, offset))

    def write(self, offset: int, data: int) -> None:
        if offset % 4:
            raise MemoryError("Unaligned write: offset must be multiple of 4.")
        if type(data) is not int:
            raise ValueError("Data type must be int or bytes.")
        if offset == 0:
            log("control", self._index, hex(data))
        machine.accelerator.write(self._index, offset, data)


class ClocksMeta(type):
    """FCLK0 by dividers of 1000 MHz, as the registers have them; what it is lies in a file."""

    @property
    def fclk0_mhz(cls) -> float:
        return float((ROOT / "fclk0").read_text())

    @fclk0_mhz.setter
    def fclk0_mhz(cls, mhz: float) -> None:
        log("clock", mhz)
        if not BOARD.get("clock_stuck"):
            (ROOT / "fclk0").write_text(str(round(1000 / round(1000 / mhz), 6)))


class Clocks(metaclass=ClocksMeta):
    pass


class PynqBuffer(np.ndarray[Any, Any]):
    """As in 2.5 to 2.7: a slice has no device."""

    device: Any = None  # the NumPy that pynq wants has no attribute of this name
    bo: Any
    device_address: int

    @property
    def physical_address(self) -> int:
        return self.device_address

    def freebuffer(self) -> None:
        self.device.release(self)


def buffer_of(shape: Any, dtype: Any, device: Any, least: int = 1, cacheable: int = 0) -> PynqBuffer:
    """Contiguous memory, with whatever lay there. Raises MemoryError."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    address, view = machine.memory.allocate(max(size, least), bool(cacheable))
    view[:] = machine.memory.dram[address : address + len(view)] = 0x5A
    array = view[:size].view(dtype).reshape(shape).view(PynqBuffer)
    array.device, array.bo, array.device_address = device, address, address
    log("allocate", size)
    return array


def bit2bin(path: str) -> bytes:
    """As pynq reads a file: no check of the part."""
    data = Path(path).read_bytes()
    at = 13
    while data[at] != ord("e"):
        at += 3 + int.from_bytes(data[at + 1 : at + 3], "big")
    length = int.from_bytes(data[at + 1 : at + 5], "big")
    if at + 5 + length != len(data):
        raise RuntimeError("Invalid length found")
    return np.frombuffer(data[at + 5 :], "i4").byteswap().tobytes()


def write_firmware(bitfile_name: str) -> None:
    """What `download` of every version does with the manager's files."""
    name = Path(bitfile_name).stem + ".bin"
    (FIRMWARE / name).write_bytes(bit2bin(bitfile_name))
    (MANAGER / "flags").write_text("0")
    with (MANAGER / "firmware").open("w") as file:
        file.write(name)
    fpga_manager(name)


def check_name(bitfile_name: object) -> None:
    if not isinstance(bitfile_name, str):
        raise TypeError("Bitstream name has to be a string.")
    if not Path(bitfile_name).is_file():
        raise OSError(f"Bitstream file {bitfile_name} does not exist.")


def refresh_meminfo() -> None:
    free = machine.memory.free_bytes >> 10
    text = f"MemTotal:  507892 kB\nCmaTotal:  {BOARD['pool_size'] >> 10} kB\nCmaFree:   {free} kB\n"
    (ROOT / "proc/meminfo").write_text(text)


machine = Machine()
