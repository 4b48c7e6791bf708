"""The accelerator of an emulated PYNQ board, where its arithmetic is done: on this machine, by the simulator.

What an FPGA does is not done by the board's processor either, which here is emulated and slow.
"""

from __future__ import annotations

import contextlib
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from agent_client import REPOSITORY

from targets.vta import isa
from targets.vta.config import VtaConfig
from targets.vta.simulator import SimulationError, Simulator

sys.path.append(str(Path(REPOSITORY) / "tests" / "integration" / "pynq_images"))
from away import ANSWER, REQUEST, receive

_ROW = isa.DTYPE
#: The largest address that a board of 512 MB has.
_MOST = 512 << 20


class _Fabric(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, host: str, config: VtaConfig) -> None:
        super().__init__((host, 0), _Client)
        self.config = config


class _Client(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Fabric)
        simulator = Simulator(self.server.config, fill=0xA5)
        with contextlib.suppress(ConnectionError):
            while True:
                self._program(simulator)

    def _program(self, simulator: Simulator) -> None:
        head = bytearray(REQUEST.size)
        receive(self.request, memoryview(head))
        rows, pool, size = REQUEST.unpack(head)
        if rows % _ROW.itemsize or pool + size > _MOST:
            raise ConnectionError("no request")
        table = bytearray(rows)
        receive(self.request, memoryview(table))
        dram = np.zeros(pool + size, np.uint8)
        receive(self.request, dram[pool:].data)
        words = b""
        try:
            simulator.run(np.frombuffer(table, _ROW), dram)
        except SimulationError as error:
            words = error.message.encode()
        self.request.sendall(ANSWER.pack(len(words), size) + words)
        self.request.sendall(dram[pool:].data)


@contextlib.contextmanager
def fabric(host: str, config: VtaConfig) -> Iterator[str]:
    """Serves accelerators of ``config`` at ``host``, an address of this machine; the address with the port."""
    with _Fabric(host, config) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
