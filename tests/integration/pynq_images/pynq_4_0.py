"""Stands in for `pynq` 4.0: memory from pyxrt, which syncs whole buffers only and refuses what is freed.

Loading the container that describes the memory fails while buffers are allocated, after the FPGA was programmed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from board_machine import BOARD, MANAGER, Clocks, Window, buffer_of, check_name, machine, refresh_meminfo
from board_machine import write_firmware as program

__all__ = ["MMIO", "Bitstream", "Clocks", "allocate"]
__version__ = "4.0.0"
_STATE = Path(__file__).parent / "pl_server" / "global_pl_state_.json"
MMIO = Window


class Device:
    def __init__(self) -> None:
        if "XILINX_XRT" not in os.environ:
            raise RuntimeError("No Devices Found")
        self.overlay = False
        self.buffers: dict[int, int] = {}

    def flush(self, bo: int, offset: int, ptr: int, size: int) -> None:
        if bo not in self.buffers:
            raise RuntimeError("Buffer Flush Failed: bo is gone")
        machine.memory.flush(bo, self.buffers[bo])

    def invalidate(self, bo: int, offset: int, ptr: int, size: int) -> None:
        if bo not in self.buffers:
            raise RuntimeError("Buffer Invalidate Failed: bo is gone")
        machine.memory.invalidate(bo, self.buffers[bo])

    def release(self, buffer: Any) -> None:
        del self.buffers[buffer.bo]
        machine.memory.free(buffer.bo)

    def load_xclbin(self) -> None:
        Path("loaded.xclbin").write_bytes(b"xclbin2\0")
        if self.buffers or BOARD.get("xclbin") == "fails":
            print("Error loading xclbin: load_axlf failed")
            raise RuntimeError("load_axlf failed")
        self.overlay = True


_device = Device()


def allocate(shape: Any, dtype: Any = "u4", target: Any = None, **kwargs: Any) -> Any:
    if not _device.overlay:
        if BOARD.get("forgets") or (MANAGER / "state").read_text() == "unknown\n" or not _STATE.exists():
            raise RuntimeError("Overlay is not downloaded")
        known = json.loads(_STATE.read_text())
        hashlib.sha1(Path(known["bitfile_name"]).read_bytes())
    try:
        buffer = buffer_of(shape, dtype, _device, least=8192, **kwargs)
    except MemoryError:
        raise RuntimeError("BO allocation failed: failed to allocate bo: Cannot allocate memory") from None
    finally:
        refresh_meminfo()
    _device.buffers[buffer.bo] = max(8192, buffer.nbytes)
    return buffer


class Bitstream:
    def __init__(self, bitfile_name: str, dtbo: Any = None, partial: bool = False, device: Any = None) -> None:
        check_name(bitfile_name)
        self.bitfile_name = bitfile_name

    def download(self, parser: Any = None) -> None:
        _STATE.parent.mkdir(exist_ok=True)
        stamp = datetime.datetime.now().isoformat()
        _STATE.write_text(json.dumps({"bitfile_name": self.bitfile_name, "timestamp": stamp}))
        _STATE.with_name("_current_metadata.pkl").write_bytes(b"\x80\x04N.")
        program(self.bitfile_name)
        _device.load_xclbin()
