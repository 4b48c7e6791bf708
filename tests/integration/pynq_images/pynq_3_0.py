"""Stands in for `pynq` 3.0: memory from XRT's C API, what is programmed is known by a file in the package.

Allocating needs a bitstream that pynq knows of; a buffer that is freed comes back only when the process ends.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from board_machine import (
    BOARD,
    MANAGER,
    Clocks,
    Window,
    buffer_of,
    check_name,
    machine,
    refresh_meminfo,
    write_firmware,
)

__all__ = ["MMIO", "Bitstream", "Clocks", "allocate"]
__version__ = "3.0.1"
_STATE = Path(__file__).parent / "pl_server" / "global_pl_state_.json"


class Device:
    def __init__(self) -> None:
        if "XILINX_XRT" not in os.environ:
            raise RuntimeError("No Devices Found")
        self.overlay = False

    def flush(self, bo: int, offset: int, vaddr: int, nbytes: int) -> None:
        machine.memory.flush(bo + offset, nbytes)

    def invalidate(self, bo: int, offset: int, vaddr: int, nbytes: int) -> None:
        machine.memory.invalidate(bo + offset, nbytes)

    def release(self, buffer: Any) -> None:
        pass  # the buffer object stays with the process


_device = Device()


class MMIO(Window):
    pass


def allocate(shape: Any, dtype: Any = "u4", target: Any = None, **kwargs: Any) -> Any:
    if not _device.overlay:
        if BOARD.get("forgets") or (MANAGER / "state").read_text() == "unknown\n" or not _STATE.exists():
            raise RuntimeError("Overlay is not downloaded")
        known = json.loads(_STATE.read_text())
        hashlib.sha1(Path(known["bitfile_name"]).read_bytes())  # it is read again, and must be there
    try:
        return buffer_of(shape, dtype, _device, **kwargs)
    except MemoryError:
        raise RuntimeError("Allocate failed: 4294967284") from None
    finally:
        refresh_meminfo()


class Bitstream:
    def __init__(self, bitfile_name: str, dtbo: Any = None, partial: bool = False, device: Any = None) -> None:
        check_name(bitfile_name)
        self.bitfile_name = bitfile_name

    def download(self, parser: Any = None) -> None:
        _STATE.parent.mkdir(exist_ok=True)  # before anything is programmed, as pynq does
        stamp = datetime.datetime.now().isoformat()
        _STATE.write_text(json.dumps({"bitfile_name": self.bitfile_name, "timestamp": stamp}))
        _STATE.with_name("_current_metadata.pkl").write_bytes(b"\x80\x04N.")
        write_firmware(self.bitfile_name)
        _device.overlay = True
