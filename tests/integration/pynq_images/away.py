"""The accelerator's arithmetic on the machine that emulates the board: for the board's own processor there is no numba.

Registers, memory and time stay with the model on the board; what goes there and back is a stream of instructions, and
the memory that it works on. The other end is `board_fpga` of the board tests.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np

#: Of a request: bytes of instructions, where the pool begins, bytes of it. Of an answer: bytes of an error, of memory.
REQUEST, ANSWER = struct.Struct("<QQQ"), struct.Struct("<QQ")


def receive(connection: socket.socket, into: memoryview) -> None:
    """Fill ``into``. Raises ConnectionError when the other end goes before."""
    while into:
        count = connection.recv_into(into)
        if not count:
            raise ConnectionError("the machine that emulates the board has gone")
        into = into[count:]


class Away:
    """Runs programs as `targets.vta.simulator.Simulator` does, at ``address`` (host:port)."""

    def __init__(self, address: str, memory: Any) -> None:
        host, _, port = address.rpartition(":")
        self._connection = socket.create_connection((host, int(port)))
        self._memory = memory

    def run(self, table: Any, dram: Any) -> None:
        from targets.vta.simulator import SimulationError

        memory = self._memory
        rows, pool = np.ascontiguousarray(table).tobytes(), dram[memory.pool : memory.pool + memory.used]
        self._connection.sendall(REQUEST.pack(len(rows), memory.pool, len(pool)) + rows)
        self._connection.sendall(pool.data)
        head = bytearray(ANSWER.size)
        receive(self._connection, memoryview(head))
        wrong, size = ANSWER.unpack(head)
        words = bytearray(wrong)
        receive(self._connection, memoryview(words))
        receive(self._connection, pool[:size].data)
        if words:
            raise SimulationError(words.decode(), code="vta-simulation")
