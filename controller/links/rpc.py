"""The carrier over TVM RPC: the fleet protocol through the functions ``fleet.send`` and ``fleet.receive`` of a session.

This side of TVM RPC is written out here (targets/tvm_rpc.py) instead of calling TVM's client, for three reasons. TVM's
client answers one call at a time and copies each byte on its own, first here and then there, so its `upload` keeps one
processor busy at a time; this carrier sends the next pieces while the device still takes the last ones in, and is more
than twice as fast. A call that waits for the device needs no thread and no polling. And the controller need not load
a compiler, which takes seconds, to talk to a board.

One `fleet.receive` is always under way. The session answers it at once when something has come for us or when we send
something, so neither side ever waits for a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque

from targets.base import FleetError
from targets.defaults import CONNECT_TIMEOUT, REQUEST_TIMEOUT, WORKER_START_DEADLINE
from targets.tvm_rpc import (
    MAX_KEY,
    MAX_PACKET,
    MISMATCH,
    OPTION_SHARED,
    RECEIVE,
    SEND,
    SUCCESS,
    TrackerCode,
    TrackerConnection,
    Value,
    WireError,
    call,
    get_function,
    hello,
    init_session,
    parse_answer,
    parse_result,
    shutdown,
    unpack_int,
    unpack_messages,
)
from targets.waiting import within

#: How long one `fleet.receive` waits on the device when nothing happens.
RECEIVE_SECONDS = 10.0
#: A peer that acknowledges nothing for this long is gone.
USER_TIMEOUT_MS = 30_000
#: How often a device is asked for anew when somebody else came to the match key first.
REQUEST_ATTEMPTS = 5
PRIORITY = 1
#: Bytes that `send` leaves in this process's hands before it waits.
WRITE_AHEAD = 4 << 20
#: Parts of a packet from this size on are not joined with others.
LARGE = 64 << 10


class RpcLink:
    """A link to the agent behind a TVM RPC listener, reached directly or through a tracker."""

    #: The channel carries well below what zstd takes in.
    compress = True

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host = host
        self._port = port
        self._key = key
        self._tracker: tuple[str, int] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._messages: asyncio.Queue[tuple[bytes, bytes] | None] = asyncio.Queue()
        self._lost = ""
        #: Handles of the session's two functions, and of those called whose answers are still to come.
        self._send = self._receive = 0
        self._calls: deque[int] = deque()
        self._draining = asyncio.Lock()

    @classmethod
    def through_tracker(cls, host: str, port: int, key: str) -> RpcLink:
        """A link to any free device that is registered as ``key`` with the TVM tracker at ``host:port``."""
        link = cls("", 0, key)
        link._tracker = (host, port)
        return link

    def __str__(self) -> str:
        if self._tracker is not None:
            return f"'{self._key}' of the tracker at {self._tracker[0]}:{self._tracker[1]}"
        return f"{self._host}:{self._port}"

    # --- Link -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect. Raises :class:`FleetError` (``unreachable``, ``wrong-key``, ``tvm-rpc``)."""
        try:
            if self._tracker is None:
                await self._connect(self._host, self._port, self._key)
            else:
                await self._request(TrackerConnection(*self._tracker))
            await self._prepare()
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            self._drop()
            raise FleetError(
                f"cannot reach {self} over TVM RPC: {_words(error)}",
                code="unreachable",
                hint="is the agent running there, with its TVM RPC port open to this machine?",
            ) from None
        except BaseException:
            self._drop()
            raise
        self._receiving = asyncio.create_task(self._read())

    async def send(self, header: bytes, payload: bytes = b"") -> None:
        if self._writer is None or self._lost:
            raise self._connection_lost()
        self._call(self._send, header, payload)
        try:
            async with self._draining:
                await self._writer.drain()
        except OSError as error:
            self._lose(_words(error))
            raise self._connection_lost() from None

    async def receive(self) -> tuple[bytes, bytes]:
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)  # for the next one who asks
            raise self._connection_lost()
        return message

    async def close(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)
        if self._writer is not None and not self._lost:
            with contextlib.suppress(OSError):
                self._writer.write(shutdown())
        self._lose("it was closed")
        self._drop()

    # --- Opening --------------------------------------------------------------------------------

    async def _request(self, tracker: TrackerConnection) -> None:
        """Get the address and one-time key of a free device, and connect to it."""
        try:
            await tracker.open()
            for attempt in range(REQUEST_ATTEMPTS):
                try:
                    answer = await tracker.call([TrackerCode.REQUEST, self._key, "", PRIORITY], REQUEST_TIMEOUT)
                except TimeoutError:
                    raise FleetError(
                        f"the tracker at {tracker} has no free device '{self._key}'",
                        code="unreachable",
                        hint="`fleet tracker status` lists what is registered",
                    ) from None
                host, port, key = _granted(answer, tracker)
                try:
                    return await self._connect(host, port, f"{key} {OPTION_SHARED}")
                except FleetError as error:
                    if error.code != "wrong-key" or attempt == REQUEST_ATTEMPTS - 1:
                        raise
        finally:
            tracker.close()

    async def _connect(self, host: str, port: int, key: str) -> None:
        reader, writer = await within(CONNECT_TIMEOUT, asyncio.open_connection(host, port, limit=1 << 20))
        self._reader, self._writer = reader, writer
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        # Enough for the device to be busy while the next piece is made ready.
        writer.transport.set_write_buffer_limits(high=WRITE_AHEAD)
        writer.write(hello(key))
        # The device starts a process for us before it answers.
        code = unpack_int(await within(WORKER_START_DEADLINE, reader.readexactly(4)))
        if code == MISMATCH:
            self._drop()
            raise FleetError(
                f"the TVM RPC listener at {host}:{port} has another key than '{self._key}'",
                code="wrong-key",
                hint="the device's `rpc_key` in fleet.yaml must be the agent's --rpc-key",
            )
        length = unpack_int(await reader.readexactly(4)) if code == SUCCESS else 0
        if not 0 < length <= MAX_KEY:
            self._drop()
            raise WireError(f"{host}:{port} is not a TVM RPC server")
        await reader.readexactly(length)

    async def _prepare(self) -> None:
        await within(REQUEST_TIMEOUT, self._ask(init_session()))
        handles = [await within(REQUEST_TIMEOUT, self._ask(get_function(name))) for name in (SEND, RECEIVE)]
        if not all(isinstance(handle, int) and handle for handle in handles):
            raise FleetError(
                f"the TVM RPC server at {self} is not a fleet agent's",
                code="unreachable",
                hint="run fleet-agent on the device: TVM's own rpc_server cannot keep releases",
            )
        self._send, self._receive = (int(handle) for handle in handles if isinstance(handle, int))

    async def _ask(self, packet: list[bytes]) -> object:
        self._write(packet)
        values = parse_answer(await self._packet())
        return values[0] if values else None

    # --- Running --------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Take answers in, in the order of their calls, and keep one `fleet.receive` under way."""
        try:
            self._ask_for_more()
            while True:
                packet = await self._packet()
                if not self._calls:
                    raise WireError("an answer to no call")
                function = self._calls.popleft()
                answer = parse_result(packet)
                if function == self._receive:
                    self._ask_for_more()
                if not isinstance(answer, bytes):
                    raise WireError("an answer of another kind than bytes")
                for message in unpack_messages(answer):
                    self._messages.put_nowait(message)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._lose(_words(error))
        except FleetError as error:
            self._lose(error.message)

    def _ask_for_more(self) -> None:
        self._call(self._receive, RECEIVE_SECONDS)

    def _call(self, function: int, *arguments: Value) -> None:
        self._calls.append(function)
        self._write(call(function, *arguments))

    def _write(self, parts: list[bytes]) -> None:
        if self._writer is None:
            raise self._connection_lost()
        # Small parts together, payloads as they are: joining would copy them.
        small: list[bytes] = []
        for part in parts:
            if len(part) < LARGE:
                small.append(part)
                continue
            self._writer.write(b"".join(small))
            self._writer.write(part)
            small = []
        if small:
            self._writer.write(b"".join(small))

    async def _packet(self) -> bytes:
        if self._reader is None:
            raise self._connection_lost()
        (size,) = struct.unpack("<Q", await self._reader.readexactly(8))
        if not 8 <= size <= MAX_PACKET:
            raise WireError(f"an answer of {size} bytes")
        return await self._reader.readexactly(size)

    def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = reason
            self._messages.put_nowait(None)

    def _connection_lost(self) -> FleetError:
        return FleetError(
            f"the TVM RPC connection to {self} is gone: {self._lost or 'it was never opened'}",
            code="connection-lost",
            hint="try again; a push goes on where it was cut",
        )

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


def _granted(answer: object, tracker: TrackerConnection) -> tuple[str, int, str]:
    """Host, port and match key from a tracker's answer to a request."""
    match answer:
        case [TrackerCode.SUCCESS, [str(host), int(port), str(key)]] if 0 < port < 65536 and len(key) < MAX_KEY:
            return host, port, key
    raise WireError(f"the tracker at {tracker} grants nothing that can be used: {str(answer)[:200]}")


def _words(error: BaseException) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return "the device closed the connection"
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
