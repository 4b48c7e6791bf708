"""The carrier to the agent's own socket: ZeroMQ with CURVE, one TCP connection per link."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_address
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from targets.base import FleetError
from targets.defaults import CONNECT_TIMEOUT, HEARTBEAT_INTERVAL, MAX_MANIFEST, MAX_MESSAGE, SUSPECT_AFTER
from targets.waiting import within

#: Seconds until somebody who broke the handshake off is tried once more.
_SECOND_LOOK = 0.3
_LOOPBACK = ("127.", "localhost:", "[::1]:")
_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)


class ZmqLink:
    """A DEALER socket to one agent. It never reconnects by itself: a new link is a new session."""

    def __init__(self, address: str, *, agent_key: str, public: bytes, secret: bytes) -> None:
        """``address`` is ``tcp://host:port``; keys are CURVE in Z85. ``agent_key`` is who must answer there."""
        self.address = address
        # A loopback connection is faster than any compressor.
        self.compress = not address.removeprefix("tcp://").startswith(_LOOPBACK)
        self._agent_key, self._public, self._secret = agent_key, public, secret
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._lost: FleetError | None = None
        self._waiting: set[asyncio.Future[Any]] = set()

    async def open(self) -> None:
        """Raises FleetError ``unreachable``, ``wrong-key``."""
        await self._resolve()
        try:
            await self._connect()
        except FleetError as error:
            if error.code != "wrong-key":
                raise
            # An agent that is just ending breaks connections off, too: who is another stays so.
            await asyncio.sleep(_SECOND_LOOK)
            self._lost = None
            await self._connect()

    async def _connect(self) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        socket = self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        socket.linger = 0
        socket.curve_serverkey = self._agent_key.encode()
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.maxmsgsize = MAX_MESSAGE + MAX_MANIFEST
        socket.reconnect_ivl = -1
        # Longer than we wait: who accepts and then says nothing is to be told from who breaks off.
        socket.connect_timeout = socket.handshake_ivl = int(CONNECT_TIMEOUT * 2000)
        socket.heartbeat_ivl = int(HEARTBEAT_INTERVAL * 1000)
        socket.heartbeat_timeout = int(SUSPECT_AFTER * 1000)
        socket.ipv6 = "[" in self.address
        self._monitor = socket.get_monitor_socket(_EVENTS)
        self._watching = asyncio.create_task(self._watch(self._monitor))
        try:
            socket.connect(self.address)
            await within(CONNECT_TIMEOUT, self._ready)
        except asyncio.TimeoutError:
            await self.close()
            raise self._unreachable("no answer") from None
        except zmq.ZMQError as error:
            await self.close()
            raise self._unreachable(str(error)) from None
        except BaseException:
            await self.close()
            raise

    async def send(self, header: bytes, payload: bytes = b"") -> None:
        frames = [header, payload] if payload else [header]
        await self._unless_lost(lambda socket: socket.send_multipart(frames, copy=False))

    async def receive(self) -> tuple[bytes, bytes]:
        while True:
            frames = await self._unless_lost(lambda socket: socket.recv_multipart())
            if len(frames) <= 2:
                return frames[0], frames[1] if len(frames) == 2 else b""

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._lose("it was closed")
        if self._socket is not None:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(linger=0)
            # What was said last, such as giving back a lease, still goes out.
            self._socket.close(linger=200)
            self._socket = self._monitor = None

    async def _resolve(self) -> None:
        """Look the name up first: ZeroMQ would try for ever, and not say what is wrong."""
        host, _, port = self.address.removeprefix("tcp://").rpartition(":")
        with contextlib.suppress(ValueError):
            ip_address(host.strip("[]"))
            return
        try:
            await asyncio.get_running_loop().getaddrinfo(host, int(port))
        except (OSError, UnicodeError):
            raise self._unreachable(f"the name {host} is not known") from None

    async def _unless_lost(self, start: Any) -> Any:
        """Wait for what ``start`` starts on the socket, or raise when the connection goes first."""
        if self._lost is not None or self._socket is None:
            raise self._lost or self._connection_lost("it was closed")
        future = start(self._socket)
        if future.done():
            return future.result()
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Follow the connection's own events."""
        connected = greeted = False
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_CONNECTED:
                connected = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                greeted = True
                self._settle(None)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._settle(self._refused())
            elif greeted:
                await self._drained()
                self._lose("the device closed it")
                return
            elif connected:
                # A CURVE server drops who speaks to another key than its own, without a word.
                self._settle(self._mistaken())
            else:
                self._settle(self._unreachable("connection refused"))

    async def _drained(self) -> None:
        """Wait until what had arrived before the connection went has been read."""
        deadline = asyncio.get_running_loop().time() + 1.0
        while self._socket is not None and asyncio.get_running_loop().time() < deadline:
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                return
            await asyncio.sleep(0.001)

    def _settle(self, error: FleetError | None) -> None:
        if self._ready is not None and not self._ready.done():
            if error is None:
                self._ready.set_result(None)
            else:
                self._ready.set_exception(error)

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = self._connection_lost(why)
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(self._lost)
        self._waiting.clear()
        if self._ready is not None and not self._ready.done():
            self._ready.cancel()

    def _connection_lost(self, why: str) -> FleetError:
        return FleetError(f"the connection to {self.address} is gone: {why}", code="connection-lost")

    def _unreachable(self, why: str) -> FleetError:
        return FleetError(
            f"cannot reach the agent at {self.address}: {why}",
            code="unreachable",
            hint="is the board on, its agent running (`systemctl status fleet-agent`) and the port open to us?",
        )

    def _refused(self) -> FleetError:
        return FleetError(
            f"the agent at {self.address} does not admit this controller's key",
            code="wrong-key",
            hint="admit it on the board: `fleet-agent authorize` with the two keys that `fleet keys` prints",
        )

    def _mistaken(self) -> FleetError:
        return FleetError(
            f"what answers at {self.address} does not hold the key that the inventory gives for it",
            code="wrong-key",
            hint="`fleet-agent show` on the board prints its key; if it was not set up anew, somebody else answers",
        )
