"""Stands in for `pynq` 2.6: memory from Xlnk, what is programmed is known by a server process."""

from __future__ import annotations

import datetime
import json
from typing import Any

from board_machine import ROOT, Clocks, Window, buffer_of, check_name, log, machine, refresh_meminfo, write_firmware

__all__ = ["MMIO", "PL", "Bitstream", "Clocks", "Xlnk", "allocate"]
__version__ = "2.6.0"
MMIO = Window
_SERVER = ROOT / "pl_server.json"


class Xlnk:
    def cma_array(self, shape: Any, dtype: Any = "u4", cacheable: int = 0) -> Any:
        try:
            return buffer_of(shape, dtype, self, cacheable=cacheable)
        except MemoryError:
            raise RuntimeError("Failed to allocate Memory!") from None
        finally:
            refresh_meminfo()

    def flush(self, bo: int, offset: int, vaddr: int, nbytes: int) -> None:
        machine.memory.flush(bo + offset, nbytes)

    def invalidate(self, bo: int, offset: int, vaddr: int, nbytes: int) -> None:
        machine.memory.invalidate(bo + offset, nbytes)

    def release(self, buffer: Any) -> None:
        machine.memory.free(buffer.bo)

    def xlnk_reset(self) -> None:
        log("xlnk_reset")


def allocate(shape: Any, dtype: Any, target: Any = None, **kwargs: Any) -> Any:
    return Xlnk().cma_array(shape, dtype, **kwargs)


class _PLMeta(type):
    def _server(cls) -> dict[str, str]:
        found: dict[str, str] = json.loads(_SERVER.read_text()) if _SERVER.exists() else {}
        return found

    @property
    def bitfile_name(cls) -> str:
        return cls._server().get("bitfile_name", "")

    @property
    def timestamp(cls) -> str:
        return cls._server().get("timestamp", "")


class PL(metaclass=_PLMeta):
    pass


class Bitstream:
    def __init__(self, bitfile_name: str, dtbo: Any = None, partial: bool = False) -> None:
        check_name(bitfile_name)
        self.bitfile_name = bitfile_name

    def download(self, parser: Any = None) -> None:
        write_firmware(self.bitfile_name)
        stamp = datetime.datetime.now().isoformat()
        _SERVER.write_text(json.dumps({"bitfile_name": self.bitfile_name, "timestamp": stamp}))
