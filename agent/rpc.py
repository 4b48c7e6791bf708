"""The device's TVM RPC server: a listener inside the agent, and one process for each session.

The listener speaks the handshake only; it loads no TVM and runs nothing a client sends. A connection that shows the
right key is handed, as an inherited descriptor, to a fresh `agent.rpc_session` in a process group of its own. So at
rest the server costs a socket, and a session that crashes, hangs or leaks takes itself and nothing else.

Sessions end with their client, after the time the client asked for (``-timeout=``), or when neither their connection
nor their processor time has moved for `RPC_SESSION_DEADLINE`. A dead client is noticed by TCP keep-alive.

TVM RPC is plain text and gives whoever reaches it the right to run code as the agent's user: the listener binds to
loopback unless told otherwise, and a key is a name, not a password.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import zmq

from agent.rpc_process import SessionProcess, send_now
from agent.rpc_session import Order
from agent.tracker import Registration
from targets.base import FleetError
from targets.defaults import CONNECT_TIMEOUT, WORKER_MEMORY_LIMIT
from targets.tvm_rpc import (
    MAGIC,
    MAX_KEY,
    MISMATCH,
    OPTION_PROBE,
    OPTION_SHARED,
    greeting,
    hello,
    refusal,
    unpack_int,
)
from targets.waiting import within

log = logging.getLogger(__name__)

PROBE_INTERVAL = 30.0
#: Connections in their handshake or waiting for a session, beyond which new ones are closed at once.
MAX_PENDING = 16


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a client says in its handshake: its key and the options behind it."""

    key: str
    timeout: float = 0.0
    shared: bool = False
    probe: bool = False

    @classmethod
    def parse(cls, text: str) -> Greeting:
        """Raises ``ValueError`` for what no client sends."""
        first, *options = text.split()
        role, _, key = first.partition(":")
        if role != "client":
            raise ValueError(f"a '{role[:20]}' instead of a client")
        timeout = 0.0
        for option in options:
            if option.startswith("-timeout="):
                timeout = float(option.removeprefix("-timeout="))
        if not 0 <= timeout < 1e9:
            raise ValueError("a timeout out of range")
        return cls(key, timeout, OPTION_SHARED in options, OPTION_PROBE in options)


class RpcListener:
    """TVM RPC for one device.

    ``port`` 0 takes a free one. ``agent_endpoint`` and ``agent_public`` are the agent's own socket and its CURVE public
    key (Z85); ``grant`` and ``revoke`` are called with the CURVE public key (Z85) of a session when it starts and when
    it has ended. ``root`` is a directory for the sessions' files, emptied at the start.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        key: str,
        tracker: tuple[str, int] | None,
        agent_endpoint: str,
        agent_public: bytes,
        grant: Callable[[bytes], None],
        revoke: Callable[[bytes], None],
        device: str = "",
        root: Path | None = None,
        max_sessions: int = 4,
    ) -> None:
        if not key or len(key) > MAX_KEY // 2 or key.split() != [key] or not key.isprintable():
            raise FleetError(
                f"'{key}' cannot be a TVM RPC key", code="bad-key", hint="use a word without spaces, such as the target"
            )
        self.host = host
        self.port = port
        self.key = key
        self._tracker = tracker
        self._agent_endpoint = agent_endpoint
        self._agent_public = agent_public
        self._grant = grant
        self._revoke = revoke
        self._device = device
        self._root = root
        self._slots = asyncio.Semaphore(max_sessions)
        self._registration: Registration | None = None
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._max_connections = max_sessions + MAX_PENDING

    # --- Life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises :class:`FleetError` (code ``rpc-port``) when the address cannot be had."""
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)
            self._root.mkdir(parents=True, mode=0o700)
        self._listen()
        if not _is_loopback(self.host):
            log.warning(
                "TVM RPC listens on %s: whoever reaches port %d can run code as this user; use loopback and a tunnel",
                self.host,
                self.port,
            )
        self._background.append(asyncio.create_task(self._watch()))
        if self._tracker is not None:
            wildcard_or_loopback = _is_loopback(self.host) or self.host in ("", "0.0.0.0", "::")
            if _is_loopback(self.host) and not _is_loopback(self._tracker[0]):
                log.warning(
                    "the tracker at %s will send clients here, but TVM RPC listens on %s, which they cannot reach",
                    self._tracker[0],
                    self.host,
                )
            self._registration = Registration(
                self._tracker,
                key=self.key,
                port=self.port,
                # The tracker sees where the agent comes from; a socket bound to one address is found there only.
                address=None if wildcard_or_loopback else self.host,
                device=self._device,
            )
            self._background.append(asyncio.create_task(self._registration.run()))
        log.info("TVM RPC listens on %s:%d as '%s'", self.host, self.port, self.key)

    async def stop(self) -> None:
        """Close the socket and end all sessions."""
        tasks = [*self._background, *self._connections]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._background.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _listen(self) -> None:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise self._cannot_listen(error) from None
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_PENDING)
        except OSError as error:
            listener.close()
            raise self._cannot_listen(error) from None
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._socket = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    def _cannot_listen(self, error: OSError) -> FleetError:
        return FleetError(
            f"TVM RPC cannot listen on {self.host}:{self.port}: {error.strerror or error}",
            code="rpc-port",
            hint="choose another --rpc-port, or 0 for a free one",
        )

    # --- Watching itself ------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Shake hands with the listener as a client would, and open it anew when that fails."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL)
            try:
                await self.probe()
            except (OSError, FleetError, asyncio.TimeoutError) as error:
                log.error("TVM RPC does not answer itself (%s): listening anew", error or "no answer in time")
                await self._relisten()

    async def probe(self) -> None:
        """A real handshake over the network stack. Raises ``OSError``, ``TimeoutError`` or :class:`FleetError`."""
        await within(CONNECT_TIMEOUT, self._probe())

    async def _probe(self) -> None:
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        reader, writer = await asyncio.open_connection(host, self.port)
        try:
            writer.write(hello(f"{self.key} {OPTION_PROBE}"))
            answer = greeting(self.key)
            if await reader.read(len(answer)) != answer:
                raise FleetError("a wrong answer to the handshake", code="rpc-probe")
        finally:
            writer.close()

    async def _relisten(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        try:
            self._listen()
        except FleetError as error:
            log.error("%s", error)  # tried again at the next probe

    # --- Connections ----------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("TVM RPC cannot accept a connection: %s", error)
                await asyncio.sleep(1)  # out of descriptors, most likely: sessions that end give some back
                continue
            if len(self._connections) >= self._max_connections:
                connection.close()
                continue
            task = asyncio.create_task(self._handle(connection, f"{address[0]}:{address[1]}"))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _handle(self, connection: socket.socket, peer: str) -> None:
        with connection:
            connection.setblocking(False)
            try:
                client = await within(CONNECT_TIMEOUT, _read_greeting(connection))
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                log.debug("TVM RPC: no handshake from %s: %s", peer, error or "too slow")
                return
            requested = self._registration is not None and self._registration.take(client.key, shared=client.shared)
            try:
                if requested or client.key == self.key:
                    await self._welcome(connection, peer, client)
                else:
                    log.warning("TVM RPC: %s came with another key", peer)
                    send_now(connection, refusal(MISMATCH))
            finally:
                if requested and not client.shared and self._registration is not None:
                    self._registration.release()

    async def _welcome(self, connection: socket.socket, peer: str, client: Greeting) -> None:
        if client.probe:
            send_now(connection, greeting(self.key))
            return
        async with self._slots:
            if _is_gone(connection):
                return
            workdir = await asyncio.to_thread(lambda: os.path.realpath(tempfile.mkdtemp("", "rpc-", self._root)))
            public, secret = zmq.curve_keypair()
            self._grant(public)
            try:
                await SessionProcess(connection, peer, client.timeout).run(
                    Order(
                        fd=connection.fileno(),
                        workdir=workdir,
                        endpoint=self._agent_endpoint,
                        agent_public=self._agent_public.decode(),
                        public=public.decode(),
                        secret=secret.decode(),
                        memory=min(WORKER_MEMORY_LIMIT, psutil.virtual_memory().total * 4 // 5),
                        parent=os.getpid(),
                    ),
                    greeting(self.key),
                )
            except (OSError, FleetError) as error:
                log.error("TVM RPC: no session for %s: %s", peer, error)
            finally:
                self._revoke(public)
                await asyncio.to_thread(shutil.rmtree, workdir, ignore_errors=True)


async def _read_greeting(connection: socket.socket) -> Greeting:
    if unpack_int(await _read(connection, 4)) != MAGIC:
        raise ValueError("not a TVM RPC client")
    length = unpack_int(await _read(connection, 4))
    if not 0 < length <= MAX_KEY:
        raise ValueError(f"a key of {length} bytes")
    return Greeting.parse((await _read(connection, length)).decode())


async def _read(connection: socket.socket, size: int) -> bytes:
    # Never a byte more than asked for: what follows belongs to the session.
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        piece = await loop.sock_recv(connection, size - len(data))
        if not piece:
            raise ConnectionError("closed in the handshake")
        data += piece
    return data


def _is_gone(connection: socket.socket) -> bool:
    """Whether a client that waits for its answer has hung up."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
